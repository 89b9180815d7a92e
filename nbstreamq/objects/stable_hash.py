"""Hashes by which functions and inputs can be compared with those of another process, or day.

The pickles of a function differ from kernel to kernel: they hold the file names of cells, line
numbers, and ids of the process. Here only the function's code and captured values count.
"""

from __future__ import annotations

import hashlib
import pickle
import types
import typing
from pathlib import Path
from typing import Any

from ..limit import Limit
from .bytecode import OF_TEXT, steps_of
from .classes import attributes_of, is_made_by_code, own_states
from .modules import is_local
from .pickler import Pickler
from .pickling import PLAIN
from .references import Ref
from .shell_lines import captures_of
from .standard import by_reference, is_generic

_DIGEST_BYTES = 16
#: Types that are pickled as an id of this process, or as an address.
_NAMED = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.NewType, Ref)
#: Attributes of a class that differ from process to process, or do not matter.
_OF_PROCESS = OF_TEXT | {"__orig_bases__", "__parameters__"}


def stable_hash(value: object) -> str:
    """Return a digest, in hex, that is the same in each process where `value` is the same.

    The code and the captured values of functions count; their name, location and documentation do
    not. The order of sets and dicts does not count, either. Objects whose pickle is different each
    time are never the same.
    """
    file = _Hash()
    _HashPickler(file).dump(value)
    return file.hexdigest()


def part_hashes(fn: Any) -> dict[str, str]:
    """Return the `stable_hash` of each part of a function, by a name of the part for people.

    An object that is not a Python function, or is sent by reference, has one part, ``""``.
    """
    if not isinstance(fn, types.FunctionType) or by_reference(fn):
        return {"": stable_hash(fn)}
    return {name: stable_hash(part) for name, part in _parts(fn).items() if part is not fn}


def inputs_hash(items: list[Any]) -> str:
    """Return a digest, in hex, that is the same where all items of a chunk are the same."""
    file = _Hash()
    if PLAIN.issuperset(map(type, items)):
        pickler = pickle.Pickler(file, 5)
        pickler.fast = True  # no references: two equal strings may be one object, or two
        pickler.dump(items)
        return file.hexdigest()
    careful = _HashPickler(file)
    for item in items:
        careful.dump(item)
        careful.forget()
    return file.hexdigest()


class _Hash:
    """A file that keeps only a digest of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return memoryview(data).nbytes

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Stands:
    """Stands for a function, class or code object in the stream that is hashed."""


class _HashPickler(Pickler):
    """Writes the same bytes for the same values; they are hashed, and never unpickled."""

    def __init__(self, file: _Hash) -> None:
        super().__init__(file)
        #: All strings: equal ones may be one object in this process, and two in another.
        self._texts: dict[Any, Any] = {}
        #: Id of a dict -> the dict, and a copy in sorted order.
        self._in_order: dict[int, tuple[Any, Any]] = {}

    def forget(self) -> None:
        """Write the next value as if it were the first."""
        self.clear_memo()
        self._texts.clear()
        self._in_order.clear()

    def persistent_id(self, obj: Any) -> Any:
        """Write sets and dicts in a fixed order, and equal strings as one object."""
        kind = type(obj)
        if kind is str or kind is bytes:
            return self._texts.setdefault(obj, obj)
        if kind is dict:
            if id(obj) not in self._in_order:
                self._in_order[id(obj)] = obj, _in_order(obj)
            return self._in_order[id(obj)][1]
        if kind is Limit:  # What it allows says when a function runs, not what it returns.
            return obj.name
        if isinstance(obj, set | frozenset):
            return kind.__qualname__, sorted(map(stable_hash, obj))
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return _Stands, (), steps_of(obj)
        if isinstance(obj, types.FunctionType) and not by_reference(obj):
            return _Stands, (), _parts(obj)
        if isinstance(obj, type) and is_made_by_code(obj) and not by_reference(obj):
            return _Stands, (), _class_state(obj)
        if isinstance(obj, types.ModuleType) and is_local(obj):
            return _Stands, (), _module_state(obj)
        if isinstance(obj, _NAMED):
            return _Stands, (), obj.digest if isinstance(obj, Ref) else obj.__name__
        return super().reducer_override(obj)


def _in_order(known: dict[Any, Any]) -> dict[Any, Any]:
    if {type(key) for key in known} in ({str}, {int}):
        return dict(sorted(known.items(), key=lambda item: item[0]))
    return dict(sorted(known.items(), key=lambda item: stable_hash(item[0])))


def _parts(fn: Any) -> dict[str, Any]:
    """Return the parts of a function by their names in messages."""
    if is_generic(fn):
        return {"": dict(fn.registry)}
    captured = {what.format(name): value for what, name, value in captures_of(fn)}
    return {"its code": fn.__code__, **captured}


def _class_state(cls: type) -> Any:
    own = {name: value for name, value in attributes_of(cls).items() if name not in _OF_PROCESS}
    return cls.__qualname__, cls.__bases__, own, own_states(cls)


def _module_state(module: types.ModuleType) -> Any:
    file = getattr(module, "__file__", None)
    source = Path(file).read_bytes() if file and Path(file).exists() else b""
    return module.__name__, source
