"""What ``@q.task`` makes of a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from ..objects.functions import name_of
from .future import TaskFuture
from .job import Job

__all__ = ["TaskFunction"]

P = ParamSpec("P")
T = TypeVar("T")


class _Queue(Protocol):
    """The part of `TaskQueue` that is needed here."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

    @property
    def map(self) -> Callable[..., Any]: ...

    @property
    def options(self) -> Callable[..., Any]: ...


class TaskFunction(Generic[P, T]):
    """A function of a queue: calling it submits it.

    Attributes
    ----------
    fn
        The function itself.
    """

    def __init__(self, queue: _Queue, fn: Callable[P, T]) -> None:
        self._queue = queue
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Submit a call."""
        return self._queue.submit(self.fn, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], **options: Any) -> Job[T]:
        """As `TaskQueue.map`, with this function."""
        job: Job[T] = self._queue.map(self.fn, *iterables, **options)
        return job

    def options(self, **options: Any) -> TaskFunction[P, T]:
        """As `TaskQueue.options`, for this function."""
        return TaskFunction(self._queue.options(**options), self.fn)

    def __repr__(self) -> str:
        return f"<task {name_of(self.fn)} of {self._queue!r}>"
