"""What a task may say of itself while it runs, and its random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from ..arguments import check_count, check_iterable
from ..objects import random_numbers
from ..worker_context import WorkerContext, host

if TYPE_CHECKING:
    import numpy as np


T = TypeVar("T")


def rng() -> np.random.Generator:
    """Return the random number generator of the running task.

    In an item of ``q.map(f, xs, seed=42)`` it is the item's own: its numbers are the same for any
    number of workers, any chunks and each retry, and differ from those of all other items. It is
    ``numpy.random.default_rng(SeedSequence(42).spawn(n)[index])``. Without a seed, in a call of
    ``q.submit``, and outside tasks, it is a new generator whose numbers differ each time.

    Raises
    ------
    ModuleNotFoundError
        NumPy is not installed on the worker.

    Examples
    --------
    >>> def estimate(n):
    ...     x, y = nbstreamq.rng().random((2, n))
    ...     return 4 * np.mean(x * x + y * y < 1)
    >>> q.map(estimate, [1000] * 8, seed=42)  # doctest: +SKIP
    """
    return random_numbers.generator()


def track(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Yield `items`, and report how many of them are done as the progress of the running task.

    Parameters
    ----------
    items
        What the task loops over.
    total
        Number of items; the default is ``len(items)``, unknown where it has none.

    Examples
    --------
    >>> list(track(range(3)))  # outside a task it reports nothing
    [0, 1, 2]
    """
    check_iterable("items", items)
    if total is not None:
        total = check_count("total", total, instead="None")
    elif isinstance(items, Sized):
        total = len(items)
    worker = host()
    return iter(items) if worker is None else _reporting(worker, items, total)


def _reporting(worker: WorkerContext, items: Iterable[T], total: int | None) -> Iterator[T]:
    done = 0
    worker.progress(done, total)
    for item in items:
        yield item
        done += 1
        worker.progress(done, total)
