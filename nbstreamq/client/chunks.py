"""Cuts the items of a map into chunks.

Nobody knows at first how long an item takes. So the first chunks are a fair share, and the last,
which decide who has to wait for whom, are smaller; what is found to be short is cut into larger
ones. Workers hand back what they don't get done in a slice of time.

Source: C. Polychronopoulos and D. Kuck, "Guided Self-Scheduling: A Practical Scheduling Scheme for
Parallel Supercomputers", 1987; here towards the end only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

__all__ = ["Pace", "chunks"]

#: Chunks for each worker, if all were as large as the first. More balance the first moments better.
CHUNKS_PER_WORKER = 6
#: What part of a worker's share of the rest a chunk is, towards the end; and how much smaller than
#: the first the last may be. More let workers end closer together, and cost more messages.
TAIL, SHRINK = 2, 8
#: Seconds of work that are worth a message: so much is in a chunk, as far as is known, and towards
#: the end a quarter of it. Longer costs less for each item, and balances later.
WORTH = 0.002
#: Seconds in which the first chunks, one for each worker, are sent one by one: a worker may ask for
#: several at a time. Longer delays what comes behind them where the server is far away.
HURRY = 0.005
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
        self._n_workers = max(1, n_workers)
        self._fixed = False
        self._hurry = time.monotonic() + HURRY
        self._most = MAX_ITEMS
        self._worth = 0
        self._left = n
        #: While their number is not known, chunks of twice the size come after so many.
        self._step = CHUNKS_PER_WORKER * self._n_workers
        self._n_sent = 0
        self._first = 1 if n is None else -(-n // self._step)
        self.size = min(self._first, MAX_ITEMS)

    @classmethod
    def fixed(cls, size: int, n_workers: int) -> Pace:
        """Return a pace that never changes."""
        pace = cls(1, n_workers)
        pace.size, pace._fixed = size, True
        return pace

    @property
    def at_once(self) -> bool:
        """Whether the next chunk is to be sent by itself: there may be a worker that has none."""
        in_time = not self._n_sent or time.monotonic() < self._hurry
        return in_time and self._n_sent < self._n_workers

    def took(self, seconds: float, n_items: int) -> None:
        """Learn how long some items took."""
        self._worth = int(WORTH * n_items / max(seconds, 1e-9))

    def sent(self, n_items: int, n_bytes: int) -> None:
        """Learn from a chunk that was sent."""
        self._n_sent += 1
        if self._fixed:
            return
        self._most = min(MAX_ITEMS, max(1, n_items * MAX_BYTES // max(1, n_bytes)))
        if self._left is None:
            if self._n_sent % self._step == 0:
                self._first *= 2
            size = max(self._first, self._worth)
        else:
            self._left = max(0, self._left - n_items)
            size = self._guided(self._left // self._n_workers)
        self.size = max(1, min(size, self._most))

    def _guided(self, share: int) -> int:
        """Return the size of the next chunk, where `share` is left for each worker."""
        size = min(self._first, max(share // TAIL, self._first // SHRINK))
        return max(size, min(self._worth, max(share // 2, self._worth // 4)))


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
