"""Cuts the items of a map into chunks, without knowing how long any of them takes.

Workers hand back what they don't get done in a slice of time, so a chunk may be large; it must only
be small enough that every worker gets one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

__all__ = ["Pace", "chunks"]

#: Chunks for each worker, at least. More balance the very first moments better.
CHUNKS_PER_WORKER = 16
#: Most items, and bytes, in a chunk. Larger ones are copied more often than they need be.
MAX_ITEMS, MAX_BYTES = 10_000, 2**18
#: Seconds that an item may wait for others to fill its chunk, where the items come slowly.
MAX_WAIT = 0.02


class Pace:
    """How large the next chunk shall be.

    Parameters
    ----------
    n
        Number of items, where it is known.
    n_workers
        For how many workers.
    """

    def __init__(self, n: int | None, n_workers: int) -> None:
        self._fixed = False
        self._growing = n is None
        goal = 1 if n is None else -(-n // (CHUNKS_PER_WORKER * max(1, n_workers)))
        self.size = min(goal, MAX_ITEMS)
        self._most = MAX_ITEMS
        self._n = 0
        self._step = CHUNKS_PER_WORKER * max(1, n_workers)

    @classmethod
    def fixed(cls, size: int) -> Pace:
        """Return a pace that never changes."""
        pace = cls(1, 1)
        pace.size, pace._fixed = size, True
        return pace

    def sent(self, n_items: int, n_bytes: int) -> None:
        """Learn from a chunk that was sent."""
        if self._fixed:
            return
        if n_bytes > MAX_BYTES:
            self._most = max(1, n_items * MAX_BYTES // n_bytes)
        self._n += 1
        if self._growing and self._n % self._step == 0:
            self.size *= 2
        self.size = min(self.size, self._most)


def chunks(items: Iterable[Any], pace: Pace) -> Iterator[list[Any]]:
    """Yield lists of successive items, of the size that `pace` says at each time."""
    iterator = iter(items)
    if isinstance(items, list | tuple | range):
        while chunk := list(islice(iterator, pace.size)):
            yield chunk
        return
    chunk = []
    begun = time.monotonic()
    for item in iterator:
        chunk.append(item)
        if len(chunk) >= pace.size or time.monotonic() > begun + MAX_WAIT:
            yield chunk
            chunk, begun = [], time.monotonic()
    if chunk:
        yield chunk
