"""What a job will take: time, memory and bytes, from the items that are over."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..arguments import MAX_WORKERS, check_count
from ..objects.large_values import size_of
from ..sizes import duration, in_units
from ..wire.item_ranges import size
from ..wire.messages import State
from .table import JobTable

#: Numbers of workers that an estimate tells the time for.
OFFERED = (2, 8, 64)
#: Results whose size is measured. More are more precise, and take longer.
N_RESULTS = 3


def seconds_on(n_workers: int, n_items: int, item_seconds: float) -> float:
    """Return how long workers are busy with items that take equally long.

    Examples
    --------
    >>> seconds_on(8, 20, 1.5)
    4.5
    """
    return math.ceil(n_items / n_workers) * item_seconds


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What items will take, if they are like those that were measured.

    Attributes
    ----------
    n_items
        Number of items that it is about.
    n_measured
        Number of items that were over, and told how long they took.
    item_seconds
        Mean seconds of one item in a worker.
    worker_bytes
        The most memory that a worker of the job has used since it started; None if unknown.
    input_bytes, result_bytes
        Bytes of the arguments and of the results of all items; None if unknown.
    """

    n_items: int
    n_measured: int
    item_seconds: float
    worker_bytes: int | None
    input_bytes: int | None
    result_bytes: int | None

    def seconds(self, n_workers: int) -> float:
        """Return the seconds that the items take on that many workers, without sending them.

        Raises
        ------
        ValueError, TypeError
            `n_workers` is no number of workers.
        """
        n_workers = check_count("n_workers", n_workers, least=1, most=MAX_WORKERS)
        return seconds_on(n_workers, self.n_items, self.item_seconds)

    def __str__(self) -> str:
        head = (
            f"{self.n_items:,} items of {duration(self.item_seconds)} each"
            f" ({self.n_measured:,} measured)"
        )
        lines = [f"{n:>5} workers: {duration(self.seconds(n))}{self._memory(n)}" for n in OFFERED]
        sizes = {"arguments": self.input_bytes, "results": self.result_bytes}
        told = [f"{in_units(n)} of {what}" for what, n in sizes.items() if n is not None]
        return "\n".join([head, *lines, *filter(None, [", ".join(told)])])

    __repr__ = __str__

    def _memory(self, n_workers: int) -> str:
        if self.worker_bytes is None:
            return ""
        total = in_units(n_workers * self.worker_bytes)
        return f", {total} of memory ({in_units(self.worker_bytes)} each)"


def estimate_of(
    table: JobTable, workers: dict[str, dict[str, Any]], n_items: int | None
) -> Estimate | None:
    """Return what items of a job will take; None if no item has told how long it took.

    Parameters
    ----------
    workers
        Id -> description of the registered workers.
    n_items
        Number of items; None: those that are not over, or all of a job that is over.
    """
    runs = [r for r in table.reports(0) if r.kind == "finished" and r.started]
    n_measured = sum(size(run.span) for run in runs)
    if not n_measured:
        return None
    n = (table.n_open or table.n_items) if n_items is None else n_items
    return Estimate(
        n_items=n,
        n_measured=n_measured,
        item_seconds=sum(run.seconds for run in runs) / n_measured,
        worker_bytes=peak_of(workers[r.worker] for r in runs if r.worker in workers),
        input_bytes=_times(n, _bytes_of_arguments(table)),
        result_bytes=_times(n, _bytes_of_results(table)),
    )


def peak_of(workers: Iterable[dict[str, Any]]) -> int | None:
    """Return the most memory that one of some workers has used; None if that is not known."""
    return max((d.get("peak") or d.get("memory", 0) for d in workers), default=0) or None


def _times(n: int, each: float | None) -> int | None:
    return None if each is None else round(n * each)


def _bytes_of_arguments(table: JobTable) -> float | None:
    """Return the bytes of one item's arguments; None if they are not kept any more."""
    still_open = (i for i in range(table.n_items) if not table.has_ended(i))
    payload = table.payload(next(still_open, 0))
    return None if payload is None else size_of(payload.args) / payload.n_items


def _bytes_of_results(table: JobTable) -> float | None:
    done = [i for i in range(table.n_items) if table.state(i) is State.DONE]
    chosen = done[:: max(1, len(done) // N_RESULTS)][:N_RESULTS]
    sizes = []
    for item in chosen:
        with suppress(Exception):  # what can't be pickled here came by value
            sizes.append(_pickled_bytes(table.value(item)))
    return sum(sizes) / len(sizes) if sizes else None


def _pickled_bytes(value: Any) -> int:
    """Return the bytes of a value, without copying its arrays."""
    buffers: list[pickle.PickleBuffer] = []
    n = len(pickle.dumps(value, 5, buffer_callback=buffers.append))
    return n + sum(buffer.raw().nbytes for buffer in buffers)
