"""Limits of a queue: how many of its calls may be in a section of their code at the same time."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import NbstreamqError
from .worker_context import WorkerContext

#: The leases that this thread or coroutine has, the last one last: name of the limit, and lease.
_leases: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("nbstreamq_leases", default=())


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit for sections of calls, on all workers of a queue; `TaskQueue.limit` makes it.

    In a call, ``with limit:`` waits until the section may begin. In a coroutine, ``async with
    limit:`` does. Those that have waited longest come first. A wait can be cancelled, and counts
    for `time_limit`. Outside of calls, a section begins at once and is not counted.

    If the worker in the section dies, its place is free as soon as that is noticed: at once, or
    after four seconds if its machine is lost.

    Attributes
    ----------
    queue, name
        Names of the queue and of the limit.
    concurrent
        How many calls may be in such a section at the same time; None: any number.
    rate
        How many sections may begin in a second; None: any number.

    Examples
    --------
    >>> api = q.limit("api", concurrent=2, rate=100)
    >>> def fetch(number):
    ...     with api:
    ...         return 2 * number  # in place of a request
    >>> list(q.map(fetch, range(3)))
    [0, 2, 4]
    """

    queue: str
    name: str
    concurrent: int | None = None
    rate: float | None = None

    def __enter__(self) -> None:
        if worker := self._worker():
            if _is_in_loop():
                raise RuntimeError(
                    f"`with` limit {self.name!r} would block the event loop, and with it the"
                    " coroutines that leave such a section: write `async with`."
                )
            self._note(worker.acquire(self))

    def __exit__(self, *_: object) -> None:
        if (worker := WorkerContext.current) and (lease := self._last()):
            worker.release(lease)

    async def __aenter__(self) -> None:
        if worker := self._worker():
            self._note(await worker.acquire_in_loop(self))

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _worker(self) -> WorkerContext | None:
        worker = WorkerContext.current
        if worker is not None and worker.queue != self.queue:
            raise NbstreamqError(
                f"Limit {self.name!r} is one of queue {self.queue!r}, and this call was submitted"
                f" to queue {worker.queue!r}: use a limit of that queue."
            )
        return worker

    def _note(self, lease: str) -> None:
        _leases.set((*_leases.get(), (self.name, lease)))

    def _last(self) -> str:
        """Forget the last lease of this limit, and return it; empty if there is none."""
        leases = _leases.get()
        for k in range(len(leases) - 1, -1, -1):
            if leases[k][0] == self.name:
                _leases.set(leases[:k] + leases[k + 1 :])
                return leases[k][1]
        return ""


def _is_in_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    if (asyncio := sys.modules.get("asyncio")) is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
