"""What a running task may call.

`track` reports its progress, `rng` gives it random numbers, and `checkpoint` and `resume` carry a
state over to its next attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

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
def checkpoint(state: object) -> None:
    """Store a state of the running task on the server, for its next attempt.

    If the task runs again, because its worker died, was told to end or because it raised and has
    ``retries``, `resume` returns the last state there. It is dropped when the task is over, and a
    week after the last checkpoint at the latest. Outside tasks, this does nothing.

    Parameters
    ----------
    state
        Anything that can be pickled. It is pickled at once and sent to the server, so store one
        every few seconds rather than in each step, and keep it small: 100 MB take about a second.

    Raises
    ------
    NotPicklable
        It can't be pickled. The last state stays.

    Examples
    --------
    >>> def total(n):
    ...     first, sum_ = nbstreamq.resume((0, 0))
    ...     for k in range(first, n):
    ...         sum_ += k
    ...         nbstreamq.checkpoint((k + 1, sum_))
    ...     return sum_
    >>> q.submit(total, 5).result()
    10
    """
    if (worker := WorkerContext.current) is not None:
        worker.checkpoint(state)


def resume(default: Any = None) -> Any:
    """Return the last state that an earlier attempt of the running task gave to `checkpoint`.

    Parameters
    ----------
    default
        What to return if there is none, and outside tasks.

    Examples
    --------
    >>> nbstreamq.resume(0)
    0
    """
    worker = WorkerContext.current
    found = None if worker is None else worker.resume()
    return found[0] if found else default


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
