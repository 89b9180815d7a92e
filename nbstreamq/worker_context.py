"""The worker that this process is: set by the worker, read by the client code inside a task.

Here `client` and `worker` meet without importing each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .secret import Address, Secret

if TYPE_CHECKING:
    from .limit import Limit


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """The worker around the running task.

    Attributes
    ----------
    current
        The worker that this process is; None in any other process.
    open_calls
        Returns the calls that are not over: what submitted each, and its lane. Set by the client
        code.
    cancel_calls
        Cancels what a task has submitted. Set by the client code.
    url
        Address of the server of its queue.
    queue
        Name of its queue.
    secret
        The queue's secret.
    task
        Returns the running task, or the item that runs as a coroutine.
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
    acquire, acquire_in_loop
        Waits for a lease of a limit, and returns it; the second one is for coroutines.
    release
        Gives a lease back.
    put_off
        With true, puts off stops of the running task until it is called with false: in the main
        thread, the exception of a stop could leave a lock held.
    """

    current: ClassVar[WorkerContext | None] = None
    open_calls: ClassVar[Callable[[], Iterable[tuple[object, str]]]] = tuple
    cancel_calls: ClassVar[Callable[[object], object]] = lambda _: None

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
    acquire: Callable[[Limit], str]
    acquire_in_loop: Callable[[Limit], Awaitable[str]]
    release: Callable[[str], None]
    put_off: Callable[[bool], None]

    def __repr__(self) -> str:
        return f"<WorkerContext of {self.queue!r}>"
