"""Whether a function, or an input, is the same as one in another process, or of last week.

The pickles of a function differ from kernel to kernel: they hold the names of cells' files, line
numbers, and marks of the process. Here only what it does counts: its code and what it captures.
"""

from __future__ import annotations

import dis
import enum
import hashlib
import types
import typing
from bisect import bisect_left
from pathlib import Path
from typing import Any

from .code import names_of
from .modules import is_local
from .payloads import SIMPLE
from .pickler import Pickler, by_reference
from .references import Ref

__all__ = ["identity", "inputs_digest"]

_DIGEST_BYTES = 16
#: Flag of the classes that class statements make: Py_TPFLAGS_HEAPTYPE.
_MADE_BY_CODE = 1 << 9
#: Attributes of a class that say nothing of it, or are made anew in each process.
_OF_PROCESS = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__module__",
        "__firstlineno__",
        "__static_attributes__",
        "__orig_bases__",
        "__parameters__",
        "_abc_impl",
    }
)
#: Instructions that say how the others are carried out.
_FILLING = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "RESUME"})


def identity(value: object) -> str:
    """Return a digest, in hex, that is the same in each process where `value` is the same.

    Of functions, the code counts and what they capture, their name and place do not. A set counts
    by its elements; what pickles to other bytes each time never is the same.
    """
    file = _Hash()
    _IdentityPickler(file).dump(value)
    return file.hexdigest()


def inputs_digest(items: list[Any], data: bytes) -> str:
    """Return the `identity` of a chunk of inputs, `data` when pickled, in the quickest way."""
    if SIMPLE.issuperset(map(type, items)):
        return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    return identity(items)


class _Hash:
    """A file that forgets what is written to it, but for its digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return memoryview(data).nbytes

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Stands:
    """Stands for a function, class or code, by what is the same everywhere."""


class _IdentityPickler(Pickler):
    """Writes what nobody reads: the same bytes for the same things."""

    def persistent_id(self, obj: Any) -> Any:
        """Write a set in an order that does not change from process to process."""
        if isinstance(obj, set | frozenset):
            return type(obj).__qualname__, sorted(map(identity, obj))
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return _Stands, (), _code_state(obj)
        if isinstance(obj, types.FunctionType) and not by_reference(obj):
            return _Stands, (), _function_state(obj)
        if isinstance(obj, type) and obj.__flags__ & _MADE_BY_CODE and not by_reference(obj):
            return _Stands, (), _class_state(obj)
        if isinstance(obj, types.ModuleType) and is_local(obj):
            return _Stands, (), _module_state(obj)
        if isinstance(obj, typing.TypeVar | Ref):
            return _Stands, (), obj.digest if isinstance(obj, Ref) else obj.__name__
        return super().reducer_override(obj)


def _code_state(code: types.CodeType) -> Any:
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return _steps(code), code.co_consts, names, counts


def _steps(code: types.CodeType) -> list[tuple[str, Any]]:
    """Return the instructions, without what depends on where the code stands.

    A call of ``time.sleep`` is compiled in one way where `time` is imported in the same file, and
    in another one in a notebook.
    """
    kept = [i for i in dis.get_instructions(code) if i.opname not in _FILLING]
    offsets = [i.offset for i in kept]
    jumps = {*dis.hasjrel, *dis.hasjabs}

    def argument(i: dis.Instruction) -> Any:
        if i.opcode in jumps:
            return bisect_left(offsets, i.argval)
        return i.argval if isinstance(i.argval, str) else i.arg

    names = ("LOAD_ATTR" if i.opname == "LOAD_METHOD" else i.opname for i in kept)
    return list(zip(names, map(argument, kept), strict=True))


def _function_state(fn: types.FunctionType) -> Any:
    names = (name for name in names_of(fn.__code__).globals if name in fn.__globals__)
    captured = {name: fn.__globals__[name] for name in names}
    cells = [_contents(cell) for cell in fn.__closure__ or ()]
    return fn.__code__, captured, cells, fn.__defaults__, fn.__kwdefaults__, vars(fn)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _Stands


def _class_state(cls: type) -> Any:
    if issubclass(cls, enum.Enum):
        # Its other attributes are caches, which grow as it is used.
        methods = {k: v for k, v in vars(cls).items() if isinstance(v, types.FunctionType)}
        return cls.__qualname__, {one.name: one.value for one in cls}, methods
    members = {name: member for name, member in vars(cls).items() if name not in _OF_PROCESS}
    return cls.__qualname__, cls.__bases__, members


def _module_state(module: types.ModuleType) -> Any:
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file and Path(file).exists() else b""
    return module.__name__, source
