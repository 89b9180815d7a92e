"""What a task may say of itself while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from ..arguments import check_count, check_iterable
from ..current import Host, host

__all__ = ["track"]

T = TypeVar("T")


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


def _reporting(worker: Host, items: Iterable[T], total: int | None) -> Iterator[T]:
    done = 0
    worker.progress(done, total)
    for item in items:
        yield item
        done += 1
        worker.progress(done, total)
