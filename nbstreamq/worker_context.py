"""The worker that this process is: set by the worker, read by the client code inside a task.

Here `client` and `worker` meet without importing each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

from .secret import Address, Secret


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """The worker around the running task.

    Attributes
    ----------
    current
        The worker that this process is; None in any other process.
    has_open_calls
        Tells whether a task has submitted calls that are not over; set by the client code.
    url
        Address of the server of its queue.
    queue
        Name of its queue.
    secret
        The queue's secret.
    task
        Returns the running task.
    homes
        Tags of the calls and named jobs that it runs, see `Home`; empty: all.
    home
        Returns the tag of what the running task submits: that of the task.
    depth
        Returns how deep the running task is nested: 0 for one that a notebook submitted.
    help_until
        Takes `wait`, `timeout` and `lanes`. Runs deeper tasks, and those of `lanes`, until
        ``wait(seconds)`` returns true or `timeout` seconds are over. Returns immediately outside
        the worker's main thread. Raises only what stops the running task.
    progress
        Takes (items done, items in all or None) of the running task.
    checkpoint, resume
        Stores a state of the running task; returns the last one, in a tuple, or None.
    put_off
        With true, puts off stops of the running task until it is called with false: in the main
        thread, the exception of a stop could leave a lock held.
    """

    current: ClassVar[WorkerContext | None] = None
    has_open_calls: ClassVar[Callable[[object], bool] | None] = None

    url: Address
    queue: str
    secret: Secret
    task: Callable[[], object]
    homes: tuple[str, ...]
    home: Callable[[], str]
    depth: Callable[[], int]
    help_until: Callable[[Callable[[float], bool], float | None, Collection[str]], None]
    progress: Callable[[int, int | None], None]
    checkpoint: Callable[[object], None]
    resume: Callable[[], tuple[object] | None]
    put_off: Callable[[bool], None]

    def __repr__(self) -> str:
        return f"<WorkerContext of {self.queue!r}>"
