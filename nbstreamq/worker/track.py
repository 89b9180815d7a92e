"""What a running task may call: `track` reports its progress, `rng` gives it random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from ..arguments import check_count, check_iterable
from ..objects import random_numbers
from ..tracebacks import concise
from ..worker_context import WorkerContext

if TYPE_CHECKING:
    import numpy as np


T = TypeVar("T")


def rng() -> np.random.Generator:
    """Return the NumPy random number generator of the running task.

    In an item of ``q.map(f, xs, seed=42)`` it is the item's own generator,
    ``numpy.random.default_rng(SeedSequence(42).spawn(n)[index])``. Its numbers do not depend on the
    number of workers, on chunks or on retries. Without a seed, in a call of ``q.submit`` and
    outside tasks, it is a new generator whose numbers differ each time.

    Raises
    ------
    ModuleNotFoundError
        NumPy is not installed on the worker.

    Examples
    --------
    >>> def draw(_):
    ...     return int(nbstreamq.rng().integers(100))
    >>> q.map(draw, range(3), seed=42).result() == q.map(draw, range(3), seed=42).result()
    True
    """
    return random_numbers.generator()


@concise
def track(items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Yield `items`, and report how many of them are done as the progress of the running task.

    Parameters
    ----------
    items
        What the task loops over.
    total
        Number of items. None: ``len(items)``, or unknown if there is no length.

    Examples
    --------
    >>> def total(n):
    ...     return sum(track(range(n)))
    >>> future = q.submit(total, 4)
    >>> future.result(), future.progress
    (6, (4, 4))
    """
    check_iterable("items", items)
    if total is not None:
        total = check_count("total", total, instead="None")
    elif isinstance(items, Sized):
        total = len(items)
    worker = WorkerContext.current
    return iter(items) if worker is None else _reporting(worker, items, total)


def _reporting(worker: WorkerContext, items: Iterable[T], total: int | None) -> Iterator[T]:
    done = 0
    worker.progress(done, total)
    for item in items:
        yield item
        done += 1
        worker.progress(done, total)
