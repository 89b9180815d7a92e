"""What surrounds a function while it runs: modules that came with it, and shared globals.

Each function that was unpickled has its own globals, which hold the names that its notebook
defines. Global names that the notebook does not define are shared by all functions in this process.
So a setup function on each worker can leave a connection for later calls.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

#: A pickle without this name calls none of our modules. So nothing in it needs surroundings, or
#: refers to a value elsewhere.
OUR_NAME = __name__.partition(".")[0].encode()
#: Modules whose functions are a notebook's, or a script's.
_MAIN = frozenset({"__main__", "__mp_main__"})

#: Name or file of a module -> the global names that tasks have set and it does not define.
_shared: dict[str, dict[str, Any]] = {}


def shared_names(of: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the global names that functions share in this process.

    Parameters
    ----------
    of
        The globals of one of these functions, because each module beside the notebook has its own
        shared names. None means those of notebooks.
    """
    module = "__main__" if of is None else of.get("__name__", "__main__")
    if module in _MAIN:
        # This name makes functions and classes that are defined in it be pickled by value.
        return _shared.setdefault("__main__", {"__name__": "__main__"})
    return _shared.setdefault((of or {}).get("__file__") or module, {})


@dataclass
class _Share:
    """The globals of functions, and the shared names that they read and set.

    Functions that look up names as strings, as in ``globals()["db"]``, may read and set any name
    that did not come with them.
    """

    names: dict[str, Any]
    reads: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    there: dict[str, Any] = field(default_factory=dict)
    by_text: bool = False
    own: frozenset[str] | None = None  #: names that came with the functions

    def fill(self) -> None:
        """Write the shared names into the globals."""
        shared = shared_names(self.names)
        if self.by_text:
            if self.own is None:
                self.own = frozenset(self.names)
            self.reads |= shared.keys() - self.own
        self.there = {name: shared[name] for name in self.reads & shared.keys()}
        self.names.update(self.there)

    def keep(self) -> None:
        """Share the names that were set, and delete those that were deleted."""
        shared = shared_names(self.names)
        there, found = self.there, self.names
        if self.by_text and self.own is not None:
            self.sets |= (found.keys() | there.keys()) - self.own
        for name in self.sets & found.keys():
            # If it is unchanged, another task may have set the shared name since.
            if name not in there or found[name] is not there[name]:
                shared[name] = found[name]
        for name in (self.sets & there.keys()) - found.keys():
            shared.pop(name, None)


class Surroundings:
    """A context to run functions in, with the modules and shared globals that they need.

    `arriving` fills it while functions are unpickled. It may be entered again before it is left.
    """

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        #: For each time that it was entered: the modules that it hides.
        self._hidden: list[dict[str, ModuleType]] = []
        #: By the id of the globals.
        self._shares: dict[int, _Share] = {}

    def add_module(self, module: ModuleType) -> None:
        """Make imports find this module."""
        if not self._hidden:
            self._hidden.append({})
        name = module.__name__
        if name in sys.modules and name not in self._modules:
            self._hidden[-1][name] = sys.modules[name]
        self._modules[name] = sys.modules[name] = module

    def share(
        self, names: dict[str, Any], reads: set[str], sets: set[str], *, by_text: bool
    ) -> None:
        """Let functions with the globals `names` read and set shared names.

        Parameters
        ----------
        by_text
            Whether they may read and set any name, because they call `globals`, `exec` or `eval`.
        """
        share = self._shares.setdefault(id(names), _Share(names))
        share.by_text |= by_text
        share.reads |= reads
        share.sets |= sets

    def __enter__(self) -> None:
        if _entered:  # a waiting task runs another one, which sees the names that it has set
            _entered[-1].keep()
        if self._modules:
            self._hidden.append(self._take_away())
            sys.modules.update(self._modules)
        for share in self._shares.values():
            for name in share.reads - shared_names(share.names).keys():
                share.names.pop(name, None)  # deleted since the function ran before
        self.fill()
        _entered.append(self)

    def __exit__(self, *_: object) -> None:
        _entered.pop()
        try:
            self.keep()
        finally:
            if self._modules:
                self.leave()
        if _entered:
            _entered[-1].fill()

    def fill(self) -> None:
        """Write the shared names into the globals of the functions."""
        for share in self._shares.values():
            share.fill()

    def keep(self) -> None:
        """Share the names that the functions have set."""
        for share in self._shares.values():
            share.keep()

    def leave(self) -> None:
        """Make imports find what they found before; keep modules imported since below ours."""
        if self._hidden:
            self._modules |= self._take_away()
            sys.modules.update(self._hidden.pop())

    def _take_away(self) -> dict[str, ModuleType]:
        """Remove the modules with our names, or below our packages, from `sys.modules`."""
        found = [name for name in self._modules if name in sys.modules]
        packages = [f"{n}." for n, module in self._modules.items() if hasattr(module, "__path__")]
        if packages:
            below = tuple(packages)
            found += [n for n in sys.modules if n.startswith(below) and n not in self._modules]
        return {name: sys.modules.pop(name) for name in found}


#: The surroundings that are entered now, outermost first: a process runs one task at a time.
_entered: list[Surroundings] = []
_arriving: ContextVar[arriving | None] = ContextVar("_arriving", default=None)


class arriving:  # noqa: N801 - used like a function; a generator takes three times as long
    """A context in which functions are unpickled; it collects their surroundings."""

    __slots__ = ("_token", "surroundings")

    def __enter__(self) -> arriving:
        #: What was collected; None if nothing was.
        self.surroundings: Surroundings | None = None
        self._token = _arriving.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _arriving.reset(self._token)
        if self.surroundings is not None:
            self.surroundings.leave()

    def get(self) -> Surroundings:
        """Return the surroundings that are collected."""
        if self.surroundings is None:
            self.surroundings = Surroundings()
        return self.surroundings


def arriving_here() -> Surroundings | None:
    """Return the surroundings that this thread collects while it unpickles; None if it does not."""
    collected = _arriving.get()
    return collected.get() if collected is not None else None
