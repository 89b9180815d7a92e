"""Whether a function, and all that it captures, is the same as last time.

A `Snapshot` exists for functions that capture immutable things only; it holds each of them, and
compares by identity. What could change without a trace has no snapshot.
"""

from __future__ import annotations

import sys
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

from .code import imported_names, names_of
from .modules import is_local

__all__ = ["Snapshot", "take"]

_ATOMS = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(...), type(NotImplemented), range}
    | {CodeType}
)
#: Immutable types, by name: to import them here would be slow.
_FROZEN = frozenset(
    {
        ("datetime", "date"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("numpy", "bool"),
        ("numpy", "bool_"),
        ("numpy", "float32"),
        ("numpy", "float64"),
        ("numpy", "int32"),
        ("numpy", "int64"),
        ("numpy", "ufunc"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
        ("re", "Pattern"),
        ("uuid", "UUID"),
    }
)


class _Mark:
    """Stands for what isn't there, or must not be held."""


_UNBOUND = _Mark()
_ROOT = _Mark()  # to hold the function itself would keep it in a weak cache for ever


class _Guard(Protocol):
    def holds(self, thing: Any, root: Any) -> bool: ...


class Snapshot:
    """What a function captured; only made if all of it is immutable."""

    __slots__ = ("_guards",)

    def __init__(self, guards: list[tuple[Any, _Guard]]) -> None:
        self._guards = guards

    def holds(self, root: Any) -> bool:
        """Tell whether `root`, which this was taken of, still captures the very same things."""
        for thing, guard in self._guards:
            if not guard.holds(root if thing is _ROOT else thing, root):
                return False
        return True


def take(root: Any) -> Snapshot | None:
    """Return a snapshot of the function `root`; None if anything it captures can be changed."""
    walk = _Walk(root)
    try:
        return Snapshot(walk.guards) if walk.is_fixed(root) else None
    except RecursionError:
        return None


class _FunctionGuard:
    __slots__ = ("_absent", "_attributes", "_cells", "_code", "_defaults", "_globals", "_keywords")

    def __init__(self, fn: FunctionType, root: Any) -> None:
        self._code = fn.__code__
        self._defaults = fn.__defaults__
        self._keywords = dict(fn.__kwdefaults__ or ())
        self._attributes = dict(fn.__dict__)
        names = names_of(fn.__code__).globals
        self._globals = [(n, _held(fn.__globals__.get(n, _UNBOUND), root)) for n in names]
        self._cells = [_held(_content(cell), root) for cell in fn.__closure__ or ()]
        self._absent = [n for n in imported_names(fn) if n not in sys.modules]

    def captured(self) -> list[Any]:
        values = [value for _, value in self._globals]
        return [*values, *self._cells, *self._keywords.values(), *self._attributes.values()]

    def holds(self, thing: FunctionType, root: Any) -> bool:
        if thing.__code__ is not self._code or thing.__defaults__ is not self._defaults:
            return False
        get = thing.__globals__.get
        for name, value in self._globals:
            found = get(name, _UNBOUND)
            if found is not value and not (value is _ROOT and found is root):
                return False
        return self._cells_hold(thing, root) and (
            _same_items(thing.__dict__, self._attributes)
            and _same_items(thing.__kwdefaults__ or {}, self._keywords)
            and not any(name in sys.modules for name in self._absent)
        )

    def _cells_hold(self, fn: FunctionType, root: Any) -> bool:
        for cell, value in zip(fn.__closure__ or (), self._cells, strict=True):
            found = _content(cell)
            if found is not value and not (value is _ROOT and found is root):
                return False
        return True


class _PartialGuard:
    __slots__ = ("_args", "_func", "_keywords")

    def __init__(self, thing: partial[Any]) -> None:
        self._func, self._args, self._keywords = thing.func, thing.args, dict(thing.keywords)

    def holds(self, thing: partial[Any], root: Any) -> bool:  # noqa: ARG002
        return (
            thing.func is self._func
            and thing.args is self._args
            and not vars(thing)
            and _same_items(thing.keywords, self._keywords)
        )


class _Walk:
    """Goes through what a function captures, and stops at the first thing that can be changed."""

    def __init__(self, root: Any) -> None:
        from .pickler import by_reference, lru_cache_wrapper

        self.guards: list[tuple[Any, _Guard]] = []
        self._root = root
        self._seen: dict[int, Any] = {}
        self._by_reference = by_reference
        self._lru_cache_wrapper = lru_cache_wrapper

    def is_fixed(self, value: Any) -> bool:
        kind = type(value)
        if kind in _ATOMS or kind is _Mark or id(value) in self._seen:
            return True
        self._seen[id(value)] = value
        if kind is FunctionType:
            return self._by_reference(value) or self._is_fixed_function(value)
        if kind is tuple or kind is frozenset:
            return all(map(self.is_fixed, value))
        if kind is ModuleType:
            return not is_local(value) and sys.modules.get(value.__name__) is value
        if isinstance(value, type):
            return self._by_reference(value)
        return self._is_fixed_callable(value, kind)

    def _is_fixed_function(self, fn: FunctionType) -> bool:
        # A function that rebinds its globals must not find, at its next job, what it left there.
        if names_of(fn.__code__).rebinds or not fn.__dict__.keys() <= {"__wrapped__"}:
            return False
        if any(is_local(m) for n in imported_names(fn) if (m := sys.modules.get(n)) is not None):
            return False
        guard = _FunctionGuard(fn, self._root)
        self._add(fn, guard)
        return self.is_fixed(fn.__defaults__) and all(map(self.is_fixed, guard.captured()))

    def _is_fixed_callable(self, value: Any, kind: type) -> bool:
        if kind is partial:
            self._add(value, _PartialGuard(value))
            parts = [value.func, value.args, *value.keywords.values()]
            return not vars(value) and all(map(self.is_fixed, parts))
        if kind is MethodType:
            return self.is_fixed(value.__func__) and self.is_fixed(value.__self__)
        if kind is BuiltinFunctionType:
            return self.is_fixed(value.__self__)
        if kind is self._lru_cache_wrapper:
            return self._by_reference(value) or self.is_fixed(value.__wrapped__)
        return (kind.__module__, kind.__qualname__) in _FROZEN

    def _add(self, thing: Any, guard: _Guard) -> None:
        self.guards.append((_ROOT if thing is self._root else thing, guard))


def _held(value: Any, root: Any) -> Any:
    return _ROOT if value is root else value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNBOUND


def _same_items(now: dict[str, Any], before: dict[str, Any]) -> bool:
    if not now and not before:
        return True
    return now.keys() == before.keys() and all(now[k] is v for k, v in before.items())
