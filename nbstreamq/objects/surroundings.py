"""What a function finds around it while it runs: modules that came with it, and shared globals.

Each function that arrives gets globals of its own, with what its notebook defines. Global names
that the notebook does not define are shared by all functions that run in this process: so a set-up
on each worker can leave a connection for later calls.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

#: Modules whose functions are a notebook's, or a script's.
_MAIN = frozenset({"__main__", "__mp_main__"})

#: Name or file of a module -> the global names that it does not define, as tasks have set them.
_shared: dict[str, dict[str, Any]] = {}


def shared_names(of: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the global names that functions share in this process.

    Parameters
    ----------
    of
        The globals of one of these functions: each module beside the notebook has names of its own.
        None: those of notebooks.
    """
    module = "__main__" if of is None else of.get("__name__", "__main__")
    if module in _MAIN:
        # With this name in it, the functions and classes that are defined in it travel by value.
        return _shared.setdefault("__main__", {"__name__": "__main__"})
    return _shared.setdefault((of or {}).get("__file__") or module, {})


@dataclass
class _Share:
    """Globals of functions, the shared names that they read and set, and those that were there.

    Functions that look names up by text, as in ``globals()["db"]``, may read and set any name that
    did not come with them.
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
        """Share what was set, and delete what was deleted."""
        shared = shared_names(self.names)
        there, found = self.there, self.names
        if self.by_text and self.own is not None:
            self.sets |= (found.keys() | there.keys()) - self.own
        for name in self.sets & found.keys():
            if name not in there or found[name] is not there[name]:  # else others may have set it
                shared[name] = found[name]
        for name in (self.sets & there.keys()) - found.keys():
            shared.pop(name, None)


class Surroundings:
    """What functions need around them: a context to run them in.

    `arriving` fills it while they are unpickled. It may be entered again before it is left.
    """

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        #: For each time that it was entered: the modules that it stands in front of.
        self._hidden: list[dict[str, ModuleType]] = []
        #: By the id of the globals.
        self._shares: dict[int, _Share] = {}

    def add_module(self, module: ModuleType) -> None:
        """Have imports find this module."""
        if not self._hidden:
            self._hidden.append({})
        name = module.__name__
        if name in sys.modules and name not in self._modules:
            self._hidden[-1][name] = sys.modules[name]
        self._modules[name] = sys.modules[name] = module

    def share(
        self, names: dict[str, Any], reads: set[str], sets: set[str], *, by_text: bool
    ) -> None:
        """Have functions with the globals `names` read shared names, and set some.

        Parameters
        ----------
        by_text
            They may read and set any name: they call `globals`, `exec` or `eval`.
        """
        share = self._shares.setdefault(id(names), _Share(names))
        share.by_text |= by_text
        share.reads |= reads
        share.sets |= sets

    def __enter__(self) -> None:
        if _entered:  # a task that waits runs another one, which sees what this one has set
            _entered[-1].keep()
        if self._modules:
            self._hidden.append(self._take_away())
            sys.modules.update(self._modules)
        for share in self._shares.values():
            for name in share.reads - shared_names(share.names).keys():
                share.names.pop(name, None)  # the function has run before, and it was deleted since
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
        """Share what the functions have set."""
        for share in self._shares.values():
            share.keep()

    def leave(self) -> None:
        """Have imports find what they found before; what they found since in our packages stays."""
        if self._hidden:
            self._modules |= self._take_away()
            sys.modules.update(self._hidden.pop())

    def _take_away(self) -> dict[str, ModuleType]:
        """Take the modules with our names, or below our packages, from where imports find them."""
        found = [name for name in self._modules if name in sys.modules]
        packages = [f"{n}." for n, module in self._modules.items() if hasattr(module, "__path__")]
        if packages:
            below = tuple(packages)
            found += [n for n in sys.modules if n.startswith(below) and n not in self._modules]
        return {name: sys.modules.pop(name) for name in found}


#: Those that are entered now, outermost first: a process runs one task at a time.
_entered: list[Surroundings] = []
_arriving: ContextVar[arriving | None] = ContextVar("_arriving", default=None)


class arriving:  # noqa: N801 - used like a function; a generator would take thrice as long
    """A context in which functions are unpickled; it collects what they need around them."""

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
        """Return what is being collected."""
        if self.surroundings is None:
            self.surroundings = Surroundings()
        return self.surroundings


def arriving_here() -> Surroundings | None:
    """Return what collects the needs of functions unpickled in this thread; None: nothing does."""
    collected = _arriving.get()
    return collected.get() if collected is not None else None
