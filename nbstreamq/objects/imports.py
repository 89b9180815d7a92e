"""Which modules a function uses that a worker must be able to import."""

from __future__ import annotations

import functools
import itertools
import sys
from collections import deque
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from .bytecode import imported_names, names_of
from .modules import is_local

_MAIN = {"__main__", "__mp_main__"}
#: Most things that are looked at. More finds what is used far below a function, and takes longer.
_MOST = 5_000
#: Most elements of a container that are looked at.
_MOST_ELEMENTS = 20
#: Where objects that hold a function have it.
_INSIDE: dict[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    MethodType: ("__func__", "__self__"),
    property: ("fget", "fset"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
}


def modules_used(fn: Any) -> frozenset[str]:
    """Return the top-level modules that `fn` uses, without those that travel with it.

    What its own functions and classes use counts, and so do the modules beside the notebook. What
    an installed package uses does not.

    Examples
    --------
    >>> import json
    >>> sorted(modules_used(lambda text: json.loads(text)))
    ['json']
    """
    walk = _Walk()
    walk.visit(fn)
    return frozenset(walk.found - _MAIN - {"builtins"})


class _Walk:
    """Goes through what a function refers to, each thing once.

    Attributes
    ----------
    found
        The top-level modules.
    """

    def __init__(self) -> None:
        from .standard import by_reference, lru_cache_wrapper  # slow to import

        self.found = set[str]()
        #: They are held, so that no other thing can have the same id.
        self._seen: dict[int, Any] = {}
        self._by_reference = by_reference
        self._inside = _INSIDE | {lru_cache_wrapper: ("__wrapped__",)}

    def visit(self, thing: Any) -> None:
        """Look at a thing and all that it refers to, what is near first."""
        pending = deque([thing])
        while pending and len(self._seen) <= _MOST:
            thing = pending.popleft()
            if id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                # A proxy has code of its own for attributes, which may raise anything.
                with suppress(Exception):
                    pending += self._parts(thing)

    def _parts(self, thing: Any) -> list[Any]:
        """Return what else to look at; a thing that a worker imports has no parts."""
        kind = type(thing)  # isinstance() would have a lazy object load what it stands for
        if issubclass(kind, ModuleType):
            return self._module(thing)
        if issubclass(kind, FunctionType | type):
            if self._by_reference(thing):
                return self._name(thing.__module__)
            return self._function(thing) if kind is FunctionType else self._class(thing)
        if kind is BuiltinFunctionType:
            return self._name(thing.__module__)
        return self._held_by(thing, kind)

    def _held_by(self, thing: Any, kind: type) -> list[Any]:
        """Return what a container holds, or what holds a function; else the type."""
        if kind in (list, tuple, set, frozenset, dict):
            elements = thing.values() if kind is dict else thing
            return [*itertools.islice(elements, _MOST_ELEMENTS)]
        if kind in self._inside:
            return [getattr(thing, name) for name in self._inside[kind]]
        own = _vars_of(thing)
        # Functions that are instances of a class in C, such as `numpy.sum`, are sent by name.
        if isinstance(own.get("__name__"), str) and own.get("__module__") not in _MAIN:
            return self._name(own.get("__module__"))
        return [kind, own.get("__wrapped__")]

    def _name(self, module: Any) -> list[Any]:
        if isinstance(module, str):
            self.found.add(module.partition(".")[0])
        return []

    def _module(self, module: ModuleType) -> list[Any]:
        return [*vars(module).values()] if is_local(module) else self._name(module.__name__)

    def _function(self, fn: FunctionType) -> list[Any]:
        parts = [fn.__defaults__, fn.__kwdefaults__, getattr(fn, "__wrapped__", None)]
        for name in imported_names(fn):
            module = sys.modules.get(name)
            if module is None or not is_local(module):
                self._name(name)
            else:
                parts.append(module)
        parts += (fn.__globals__.get(name) for name in names_of(fn.__code__).globals)
        for cell in fn.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # it is not bound yet
                continue
        return parts

    def _class(self, cls: type) -> list[Any]:
        return [*cls.__bases__, *vars(cls).values()]


def _vars_of(thing: Any) -> dict[str, Any]:
    """Return the attributes that an object has by itself."""
    try:
        found: dict[str, Any] = vars(thing)
    except TypeError:
        return {}
    return found
