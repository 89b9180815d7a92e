"""Compares what this Python has installed with what the Pythons of workers elsewhere have."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..environment import Environment, package_of
from ..errors import NbstreamqError, SignatureError
from ..home import PYTHON
from ..objects.functions import name_of
from ..objects.imports import modules_used
from ..sizes import plural
from ..wire.store import Store
from ..worker_context import WorkerContext

#: Seconds between two looks at which workers there are, before a function's first call.
LOOK = 1.0
#: Most functions, and environments, that are remembered.
_MOST_KNOWN = 1000
#: Most packages that a line names.
_MOST_NAMED = 5

Descriptions = dict[str, dict[str, Any]]


class Environments:
    """Says where workers lack what a function uses, or have other versions of it.

    Workers that a kernel has started are left out: they have its environment.

    Parameters
    ----------
    ask
        Returns the server's answer to a question, or raises at once if it is away.
    warn
        Says a text once.
    """

    def __init__(self, ask: Callable[..., Any], warn: Callable[[str], object]) -> None:
        self._ask, self._warn = ask, warn
        self._looked, self._workers = -math.inf, Descriptions()
        self._known: dict[str, Environment | None] = {}
        #: Code of a function -> the modules that it uses.
        self._used: dict[Any, frozenset[str]] = {}

    def check(self, fn: Callable[..., Any]) -> None:
        """Warn, before the first call of a function, of what may make it fail or differ."""
        code = _code_of(fn)
        if code in self._used or WorkerContext.current is not None:  # a task has no reader
            return
        with suppress(NbstreamqError):
            if time.monotonic() > self._looked + LOOK:
                self._workers, self._looked = self._ask(Store.workers), time.monotonic()
            self.warn_of(fn, self._workers)

    def warn_of(self, fn: Callable[..., Any], workers: Descriptions) -> None:
        """Warn of what `notes` says, once of each."""
        for note in self.notes(fn, workers):
            self._warn(note)

    def notes(self, fn: Callable[..., Any], workers: Descriptions) -> list[str]:
        """Return, for each other environment that matters to `fn`, what is different there."""
        if not any(about.get("environment") for about in workers.values()):
            return []
        ours = Environment.here()
        machines = machines_by_environment(workers, ours)
        if not machines:
            return []
        found, used = [], self._modules(fn)
        for digest, hosts in machines.items():
            if (theirs := self._environment(digest)) is not None:
                found.append(difference(name_of(fn), used, ours, theirs, hosts))
        return [*filter(None, found)]

    def _modules(self, fn: Callable[..., Any]) -> frozenset[str]:
        code = _code_of(fn)
        if code not in self._used:
            if len(self._used) >= _MOST_KNOWN:
                self._used.clear()
            self._used[code] = modules_used(fn)
        return self._used[code]

    def _environment(self, digest: str) -> Environment | None:
        """Return an environment that a worker names; None if the server can't say."""
        if self._known.get(digest) is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            # A note must not end the wait or the view that it is for.
            with suppress(NbstreamqError):
                self._known[digest] = self._ask(read_environment, digest)
        return self._known.get(digest)


def read_environment(store: Store, digest: str) -> Environment | None:
    """Return an environment that workers have reported; None if it is not there, or not signed."""
    try:
        data = store.get_environment(digest)
        return None if data is None else Environment.decode(data)
    except (SignatureError, ValueError):
        return None


def machines_by_environment(workers: Descriptions, ours: Environment) -> dict[str, list[str]]:
    """Return, by the digests of environments other than `ours`, the machines that have them.

    Those with another minor version of Python are left out: our functions do not run there.
    """
    found: dict[str, dict[str, None]] = {}
    for about in workers.values():
        digest = about.get("environment", "")
        if digest not in ("", ours.digest) and about.get("python") == PYTHON:
            found.setdefault(digest, {})[about.get("host", "")] = None
    return {digest: sorted(hosts) for digest, hosts in found.items()}


def difference(
    name: str,
    used: Collection[str],
    ours: Environment,
    theirs: Environment,
    hosts: Sequence[str],
) -> str:
    """Return in a line what a function finds different on some machines; empty if nothing.

    Examples
    --------
    >>> here = Environment(
    ...     python="3.11.7", packages={"a": "1", "idna": "3.10"}, modules=frozenset({"a", "idna"})
    ... )
    >>> there = Environment(
    ...     python="3.11.9", packages={"a": "2", "idna": "3.7"}, modules=frozenset({"a", "idna"})
    ... )
    >>> difference("f", {"idna"}, here, there, ["node3"])
    '2 packages differ on node3, 1 matters: f() uses idna 3.10, node3 has 3.7'
    """
    packages = {p: m for m in sorted(used) if (p := package_of(m)) in ours.packages}
    where, have = place(hosts), "has" if len(hosts) == 1 else "have"
    missing = [p for p, m in packages.items() if not theirs.has(m, p)]
    others = [p for p in packages if theirs.packages.get(p, ours.packages[p]) != ours.packages[p]]
    found = []
    if missing:
        found.append(f"{where} {have} no {_listed(missing)}, which {name}() uses")
    if others:
        n = len([*different(ours, theirs)])
        found.append(
            f"{plural(n, 'package')} differ{'s' * (n == 1)} on {where},"
            f" {len(others)} matter{'s' * (len(others) == 1)}: {name}() uses"
            f" {_listed(f'{p} {ours.packages[p]}' for p in others)}, {where} {have}"
            f" {_listed(theirs.packages[p] for p in others)}"
        )
    return "; ".join(found)


def different(ours: Environment, theirs: Environment) -> Iterator[str]:
    """Yield the packages that both have, in other versions."""
    shared = sorted(ours.packages.keys() & theirs.packages.keys())
    return (p for p in shared if ours.packages[p] != theirs.packages[p])


def examine_environments(store: Store) -> Iterator[str]:
    """Yield, for each environment of workers elsewhere, how it differs from this one."""
    ours = Environment.here()
    for digest, hosts in machines_by_environment(store.workers(), ours).items():
        if (theirs := read_environment(store, digest)) is not None:
            others = [f"{p} {theirs.packages[p]}, here {v}" for p, v in _versions(ours, theirs)]
            missing = sorted(ours.packages.keys() - theirs.packages.keys())
            if not (others or missing):
                yield f"{place(hosts)}: the same packages as here"
                continue
            yield (
                f"{place(hosts)}: {plural(len(others), 'package')} in other versions"
                f"{_in_brackets(others)}, {len(missing):,} missing{_in_brackets(missing)}"
            )


def _versions(ours: Environment, theirs: Environment) -> Iterator[tuple[str, str]]:
    return ((package, ours.packages[package]) for package in different(ours, theirs))


def _in_brackets(names: Sequence[str]) -> str:
    more = f", and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f" ({'; '.join(names[:_MOST_NAMED])}{more})" if names else ""


def place(hosts: Sequence[str]) -> str:
    """Return some machines in words, the first two by name."""
    if len(hosts) <= 2:
        return " and ".join(hosts)
    return f"{hosts[0]} and {len(hosts) - 1:,} other machines"


def _listed(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _code_of(fn: Callable[..., Any]) -> Any:
    """Return what stays the same when a cell that defines `fn` runs again, or its type."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, "__code__", None) or getattr(fn, "__qualname__", None) or type(fn)
