"""Whether a function, or an input, is the same as one in another process, or of last week.

The pickles of a function differ from kernel to kernel: they hold the names of cells' files, line
numbers, and marks of the process. Here only what it does counts: its code and what it captures.
"""

from __future__ import annotations

import dis
import enum
import hashlib
import inspect
import pickle
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

__all__ = ["identities", "identity", "inputs_digest"]

_DIGEST_BYTES = 16
#: Flag of the classes that class statements make: Py_TPFLAGS_HEAPTYPE.
_MADE_BY_CODE = 1 << 9
#: Names in the body of a class that say where it stands and what it is for, not what it does.
_OF_TEXT = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})
#: Attributes of a class that say nothing of it, or are made anew in each process.
_OF_PROCESS = _OF_TEXT | {
    "__dict__",
    "__weakref__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "_abc_impl",
}
#: Flag of code with a docstring, from Python 3.13 on; free before: CO_HAS_DOCSTRING.
_HAS_DOCSTRING = 0x4000000
#: Instructions that say how the others are carried out.
_FILLING = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL", "RESUME"})


def identity(value: object) -> str:
    """Return a digest, in hex, that is the same in each process where `value` is the same.

    Of functions, the code counts and what they capture; their name, place and documentation do not.
    The order of sets and dicts does not count, either. What pickles to other bytes each time never
    is the same.
    """
    file = _Hash()
    _IdentityPickler(file).dump(value)
    return file.hexdigest()


def identities(fn: Any) -> dict[str, str]:
    """Return the `identity` of each part of a function, by a name of the part for people.

    What is no function of Python code, or is sent by reference, has one part, ``""``.
    """
    if not isinstance(fn, types.FunctionType) or by_reference(fn):
        return {"": identity(fn)}
    return {name: identity(part) for name, part in _parts(fn).items() if part is not fn}


def inputs_digest(items: list[Any]) -> str:
    """Return a digest, in hex, that is the same where all items of a chunk are the same."""
    file = _Hash()
    if SIMPLE.issuperset(map(type, items)):
        pickler = pickle.Pickler(file, 5)
        pickler.fast = True  # no references: two equal strings may be one object, or two
        pickler.dump(items)
        return file.hexdigest()
    careful = _IdentityPickler(file)
    for item in items:
        careful.dump(item)
        careful.forget()
    return file.hexdigest()


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

    def __init__(self, file: _Hash) -> None:
        super().__init__(file)
        #: Each string: equal ones may be one object in this process, and two in the next.
        self._texts: dict[Any, Any] = {}
        #: Id of a dict -> the dict, and the same in order.
        self._in_order: dict[int, tuple[Any, Any]] = {}

    def forget(self) -> None:
        """Write what comes as if it were the first."""
        self.clear_memo()
        self._texts.clear()
        self._in_order.clear()

    def persistent_id(self, obj: Any) -> Any:
        """Write sets and dicts in an order that does not change, and equal strings as one."""
        kind = type(obj)
        if kind is str or kind is bytes:
            return self._texts.setdefault(obj, obj)
        if kind is dict:
            if id(obj) not in self._in_order:
                self._in_order[id(obj)] = obj, _in_order(obj)
            return self._in_order[id(obj)][1]
        if isinstance(obj, set | frozenset):
            return kind.__qualname__, sorted(map(identity, obj))
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return _Stands, (), _code_state(obj)
        if isinstance(obj, types.FunctionType) and not by_reference(obj):
            return _Stands, (), _parts(obj)
        if isinstance(obj, type) and obj.__flags__ & _MADE_BY_CODE and not by_reference(obj):
            return _Stands, (), _class_state(obj)
        if isinstance(obj, types.ModuleType) and is_local(obj):
            return _Stands, (), _module_state(obj)
        if isinstance(obj, typing.TypeVar | Ref):
            return _Stands, (), obj.digest if isinstance(obj, Ref) else obj.__name__
        return super().reducer_override(obj)


def _in_order(known: dict[Any, Any]) -> dict[Any, Any]:
    if {type(key) for key in known} in ({str}, {int}):
        return dict(sorted(known.items(), key=lambda item: item[0]))
    return dict(sorted(known.items(), key=lambda item: identity(item[0])))


def _code_state(code: types.CodeType) -> Any:
    flags = code.co_flags & ~_HAS_DOCSTRING
    n_arguments = code.co_argcount + code.co_kwonlyargcount
    n_arguments += bool(flags & inspect.CO_VARARGS) + bool(flags & inspect.CO_VARKEYWORDS)
    names = code.co_varnames[:n_arguments], code.co_freevars
    return _steps(code), names, (code.co_argcount, code.co_posonlyargcount, flags)


def _steps(code: types.CodeType) -> Any:
    """Return the instructions, and those that each handler of errors protects.

    Without what depends on where the code stands: a call of ``time.sleep`` is compiled in one way
    where `time` is imported in the same file, and in another one in a notebook.
    """
    bytecode = dis.Bytecode(code)
    kept = [i for i in bytecode if i.opname not in _FILLING]
    silent = {k for k, i in enumerate(kept) if i.opname == "STORE_NAME" and i.argval in _OF_TEXT}
    kept = [i for k, i in enumerate(kept) if k not in silent and k + 1 not in silent]
    offsets = [i.offset for i in kept]
    jumps = {*dis.hasjrel, *dis.hasjabs}

    def argument(i: dis.Instruction) -> Any:
        if i.opcode in jumps:
            return bisect_left(offsets, i.argval)
        # Not the number of a constant: a docstring is one, too.
        return i.argval if i.opcode in dis.hasconst or isinstance(i.argval, str) else i.arg

    names = ("LOAD_ATTR" if i.opname == "LOAD_METHOD" else i.opname for i in kept)
    handlers = [
        [bisect_left(offsets, at) for at in (entry.start, entry.end, entry.target)]
        for entry in bytecode.exception_entries  # type: ignore[attr-defined]
    ]
    return list(zip(names, map(argument, kept), strict=True)), handlers


def _parts(fn: types.FunctionType) -> dict[str, Any]:
    """Return what a function consists of, by names for people."""
    code, defaults = fn.__code__, fn.__defaults__ or ()
    names = names_of(code).globals
    optional = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    given = dict(zip(optional, defaults, strict=True)) | (fn.__kwdefaults__ or {})
    return {
        "its code": code,
        **{f"`{name}`": fn.__globals__[name] for name in names if name in fn.__globals__},
        **{
            f"`{name}`": _contents(cell)
            for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True)
        },
        **{f"the default of `{name}`": value for name, value in given.items()},
        **{f"its attribute `{name}`": value for name, value in vars(fn).items()},
    }


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
