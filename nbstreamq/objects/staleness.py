"""Whether a function still captures what it captured when it was pickled."""

from __future__ import annotations

import sys
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from .bytecode import imported_names, names_of
from .modules import is_local

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
    """Stands for something that is not there, or must not be held."""


_UNBOUND = _Mark()
#: The function itself: to hold it would keep it in a weak cache forever.
_ROOT = _Mark()


class _Function(NamedTuple):
    """What one of the functions captured.

    Attributes
    ----------
    function
        The function, or `_ROOT`.
    code, defaults
        Compared by identity.
    names, cells
        Global names and variables of enclosing functions, with their values.
    keywords, attributes
        Defaults of keyword-only arguments, and the attributes of the function.
    absent
        Modules that it imports and that are not loaded: a local one would be pickled with it.
    """

    function: Any
    code: CodeType
    defaults: tuple[Any, ...] | None
    names: tuple[tuple[str, Any], ...]
    cells: tuple[Any, ...]
    keywords: dict[str, Any]
    attributes: dict[str, Any]
    absent: tuple[str, ...]


class Snapshot:
    """What a function captured. There is one only if all of that is immutable."""

    __slots__ = ("_functions", "_partials")

    def __init__(
        self,
        functions: list[_Function],
        partials: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]],
    ) -> None:
        self._functions = functions
        self._partials = partials

    @classmethod
    def of(cls, root: Any) -> Snapshot | None:
        """Return a snapshot of the function `root`; None if anything it captures can be changed."""
        walk = _Walk(root)
        try:
            return cls(walk.functions, walk.partials) if walk.is_fixed(root) else None
        except RecursionError:
            return None

    def holds(self, root: Any) -> bool:
        """Tell whether `root`, which this is a snapshot of, still captures the same objects."""
        for known in self._functions:
            fn = root if known.function is _ROOT else known.function
            if fn.__code__ is not known.code or fn.__defaults__ is not known.defaults:
                return False
            get = fn.__globals__.get
            for name, value in known.names:
                if get(name, _UNBOUND) is not (root if value is _ROOT else value):
                    return False
            # Most functions have nothing else.
            has_more = known.cells or known.absent or known.attributes or known.keywords
            if (has_more or fn.__dict__ or fn.__kwdefaults__) and not _rest_holds(known, fn, root):
                return False
        return not self._partials or self._partials_hold(root)

    def _partials_hold(self, root: Any) -> bool:
        for held, func, args, keywords in self._partials:
            thing = root if held is _ROOT else held
            if thing.func is not func or thing.args is not args or vars(thing):
                return False
            if not _same_items(thing.keywords, keywords):
                return False
        return True


def _rest_holds(known: _Function, fn: FunctionType, root: Any) -> bool:
    cells = zip(fn.__closure__ or (), known.cells, strict=True)
    return (
        all(_content(cell) is (root if value is _ROOT else value) for cell, value in cells)
        and _same_items(fn.__dict__, known.attributes)
        and _same_items(fn.__kwdefaults__ or {}, known.keywords)
        and not any(name in sys.modules for name in known.absent)
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNBOUND


def _same_items(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[k] is v for k, v in before.items())


class _Walk:
    """Goes through what a function captures, and stops at the first thing that can be changed."""

    def __init__(self, root: Any) -> None:
        from .standard import by_reference, lru_cache_wrapper  # slow to import

        self.functions: list[_Function] = []
        self.partials: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = []
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
        imported = imported_names(fn)
        if any(is_local(m) for n in imported if (m := sys.modules.get(n)) is not None):
            return False
        names = names_of(fn.__code__).globals
        known = _Function(
            function=self._held(fn),
            code=fn.__code__,
            defaults=fn.__defaults__,
            names=tuple((n, self._held(fn.__globals__.get(n, _UNBOUND))) for n in names),
            cells=tuple(self._held(_content(cell)) for cell in fn.__closure__ or ()),
            keywords=dict(fn.__kwdefaults__ or ()),
            attributes=dict(fn.__dict__),
            absent=tuple(n for n in imported if n not in sys.modules),
        )
        self.functions.append(known)
        captured = [v for _, v in known.names]
        captured += [*known.cells, *known.keywords.values(), *known.attributes.values()]
        return self.is_fixed(fn.__defaults__) and all(map(self.is_fixed, captured))

    def _is_fixed_callable(self, value: Any, kind: type) -> bool:
        if kind is partial:
            self.partials.append((self._held(value), value.func, value.args, dict(value.keywords)))
            parts = [value.func, value.args, *value.keywords.values()]
            return not vars(value) and all(map(self.is_fixed, parts))
        if kind is MethodType:
            return self.is_fixed(value.__func__) and self.is_fixed(value.__self__)
        if kind is BuiltinFunctionType:
            return self.is_fixed(value.__self__)
        if kind is self._lru_cache_wrapper:
            return self._by_reference(value) or self.is_fixed(value.__wrapped__)
        return (kind.__module__, kind.__qualname__) in _FROZEN

    def _held(self, value: Any) -> Any:
        return _ROOT if value is self._root else value
