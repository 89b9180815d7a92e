"""Warnings of random numbers that repeat, since each call gets a copy of the same generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..objects.generators import is_spawned, type_name

__all__ = ["Repeats"]

_REMEDY = (
    "Each call gets a copy of it in the state that it has here, so random numbers repeat from call"
    " to call. Use nbstreamq.rng() inside the function instead, with q.map(..., seed=42) if the"
    " numbers are to be the same each time; or give each call a generator of its own:"
    " zip(inputs, rng.spawn(n))."
)


class Repeats:
    """Notices generators among what is sent.

    Parameters
    ----------
    warn
        Says a text once.
    """

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn
        #: Held, so that another one can't have the same id.
        self._last: list[Any] = []

    def captured(self, name: str, kind: str) -> None:
        """Say that the function `name` captures a generator."""
        self._warn(f"{name}() captures a random number generator ({kind}). {_REMEDY}")

    def argument(self, name: str, generators: list[Any]) -> None:
        """Look at the generators among the arguments of one call."""
        if self._were_sent(generators) or not all(map(is_spawned, generators)):
            self._say(f"An argument of {name}() is, or holds,", generators)

    def items(self, name: str, generators: list[Any], n_items: int) -> None:
        """Look at the generators among the items of a message; one for each item is all right."""
        if self._were_sent(generators) or len(generators) < n_items:
            self._say(f"Items of {name}() are, or hold,", generators)

    def _were_sent(self, generators: list[Any]) -> bool:
        last, self._last = self._last, generators
        return any(one is other for one in generators for other in last)

    def _say(self, what: str, generators: list[Any]) -> None:
        self._warn(f"{what} a random number generator ({type_name(generators[0])}). {_REMEDY}")
