"""The leases of limits that this worker's tasks have, and those that they wait for.

::

    task ──asks──> thread ──acquire.lua──> server <──release.lua── any worker
      ^               │                      │
      └───is woken────┴───────BLMPOP─────────┘

A thread talks to the server, for all tasks and coroutines of this worker. The server knows which
lease is next, and tells only its worker. A lease belongs to its worker: when the heartbeat no
longer brings that, others forget the worker, and its leases with it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from ..errors import NbstreamqError, ServerRefused, ServerUnreachable
from ..limit import Limit
from ..wire.addresses import REPLY_TIMEOUT
from ..wire.connection import RECONNECT
from ..wire.store import Store
from .slot import Slot

logger = logging.getLogger(__name__)
_K = TypeVar("_K")

#: Seconds after which a worker asks again for a lease that it waits for. It hears of it earlier, so
#: this is for what the server has lost. Shorter costs each waiting worker a request more often.
ASK_AGAIN = 10.0


@dataclass(eq=False, slots=True, kw_only=True)
class _Wait:
    """A lease that a task waits for.

    Attributes
    ----------
    wake
        Called, in the thread, when the wait is over.
    due
        When to ask the server, by the monotonic clock.
    is_over, error
        Whether the wait is over; and why there is no lease, if so.
    """

    limit: Limit
    wake: Callable[[], object]
    due: float = 0.0
    is_over: bool = False
    error: NbstreamqError | None = None


class Leases:
    """Gets leases for this worker's tasks, and gives them back.

    A stop may be raised in a task at any moment, so tasks hold no lock here: what they do to a dict
    or a deque is one step each.

    Parameters
    ----------
    store
        A connection of its own.
    worker
        Id of the worker.
    slot
        Where the supervisor reads what the worker waits for.
    task
        Returns the running task, or the item that runs as a coroutine.
    put_off
        Puts off stops, as in `WorkerContext`.

    Attributes
    ----------
    held
        The leases that were asked for and not given back -> their limit, and the task or item that
        did.
    owners
        Each task or item that may have some of these -> its own. So the end of one of thousands of
        coroutines does not look at the leases of all.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        slot: Slot,
        task: Callable[[], object],
        put_off: Callable[[bool], None],
    ) -> None:
        self._asking, self._hearing = store, store.clone()
        self._worker, self._slot, self._task, self._put_off = worker, slot, task, put_off
        self.held: dict[str, tuple[Limit, object]] = {}
        self.owners: dict[object, set[str]] = {}
        self._waits: dict[str, _Wait] = {}
        self._given_back = deque[tuple[str, str]]()
        self._numbers = itertools.count()
        #: When a reply with grants is overdue, by the monotonic clock; 0: none was asked for.
        self._overdue = 0.0
        self._starting = threading.Lock()
        self._wakeup = self._wake = -1  #: a pipe that wakes the thread; -1: there is no thread yet

    # -- for tasks -----------------------------------------------------------------------------

    def acquire(self, limit: Limit, until: Callable[[Callable[[float], bool]], object]) -> str:
        """Wait for a lease of a limit, and return it.

        Parameters
        ----------
        until
            Returns when ``wait(seconds)`` returns true; may raise what stops the task.
        """
        lock = threading.Lock()
        lock.acquire()
        lease, wait = self._ask(limit, lock.release)
        try:
            until(lambda seconds: wait.is_over or lock.acquire(timeout=seconds))
            if wait.error:
                raise wait.error
        except BaseException:
            self.release(lease)
            raise
        return lease

    async def acquire_in_loop(self, limit: Limit) -> str:
        """Wait for a lease without blocking the event loop, and return it."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop may be closed
                loop.call_soon_threadsafe(over.set)

        lease, wait = self._ask(limit, wake)
        try:
            await over.wait()
            if wait.error:
                raise wait.error
        except BaseException:
            self.release(lease)
            raise
        return lease

    def release(self, lease: str) -> None:
        """Give a lease back, or no longer wait for it."""
        self._waits.pop(lease, None)
        if found := self.held.get(lease):
            self._given_back.append((found[0].name, lease))
            self.held.pop(lease, None)
            self.owners.get(found[1], set()).discard(lease)
            self._wake_up()

    def release_all(self, task: object) -> None:
        """Give back what a task or item has not, which is over or was stopped at a bad moment.

        A thread that it has left waiting for a lease gets an error.
        """
        for lease in list(self.owners.pop(task, ())):
            if found := self.held.get(lease):
                why = f"The call whose thread waits for limit {found[0].name!r} is over."
                self._end(lease, NbstreamqError(why))
                self.release(lease)

    def forked(self) -> None:
        """Close the connections, which belong to the process that this one was forked from."""
        self._asking.close()
        self._hearing.close()

    def _ask(self, limit: Limit, wake: Callable[[], object]) -> tuple[str, _Wait]:
        lease = self._asking.new_lease(self._worker, next(self._numbers))
        wait = _Wait(limit=limit, wake=wake)
        owner = self._task()
        self.owners.setdefault(owner, set()).add(lease)  # first: a stop may follow
        self.held[lease] = limit, owner
        self._waits[lease] = wait
        self._wake_up()
        return lease, wait

    def _wake_up(self) -> None:
        if self._wake < 0:
            self._start()
        with suppress(BlockingIOError):  # it is full: the thread will look
            os.write(self._wake, b"\0")

    def _start(self) -> None:
        """Start the thread, if no other task has just done it."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            self._put_off(True)
        try:
            with self._starting:
                if self._wake < 0:
                    self._wakeup, wake = os.pipe()  # pipe2 is not on macOS
                    os.set_blocking(wake, False)
                    threading.Thread(target=self._run, name="nbstreamq-leases", daemon=True).start()
                    self._wake = wake
        finally:
            if is_main:
                self._put_off(False)

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                self._give_back()
                self._ask_for_due()
                self._listen()
            except (ServerUnreachable, ServerRefused):
                self._start_over()  # It is tried again until the server is back, or has memory.
            except BaseException:  # No fault of ours may end the thread.
                logger.exception("the thread of limits goes on after a fault")
                self._start_over()

    def _start_over(self) -> None:
        """Ask again for everything: what the server has said may be lost."""
        self._asking.close()
        self._hearing.close()
        self._overdue = 0.0
        time.sleep(RECONNECT)
        for wait in list(self._waits.values()):
            wait.due = 0.0

    def _give_back(self) -> None:
        back, refused = list(self._given_back), list[tuple[str, str]]()
        for name, leases in _grouped(back).items():
            try:
                self._asking.release(name, self._worker, leases)
            except ServerRefused as error:  # Somebody may have spoilt the keys of this limit.
                logger.warning("leases of limit %r can't be given back now: %s", name, error)
                refused += [(name, lease) for lease in leases]
        for _ in back:  # Not before: if the server can't be reached, all is sent again.
            self._given_back.popleft()
        self._given_back += refused

    def _ask_for_due(self) -> None:
        now = time.monotonic()
        due = [(wait.limit, lease) for lease, wait in list(self._waits.items()) if wait.due <= now]
        for limit, leases in _grouped(due).items():
            for wait in filter(None, map(self._waits.get, leases)):
                wait.due = now + ASK_AGAIN
            try:
                self._take_note(
                    self._asking.acquire(
                        limit.name, limit.concurrent, limit.rate, self._worker, leases
                    )
                )
            except ServerRefused as error:
                for lease in leases:
                    self._end(lease, error)
        names = [wait.limit.name for wait in list(self._waits.values())[:1]]
        self._slot.set_awaited(*names)

    def _listen(self) -> None:
        """Wait for orders, for what becomes of leases, or until one is due."""
        now, waits = time.monotonic(), list(self._waits.values())
        if waits and not self._overdue:
            self._hearing.await_grants(self._worker, ASK_AGAIN)
            self._overdue = now + ASK_AGAIN + REPLY_TIMEOUT
        poll, hearing = select.poll(), self._hearing.wire
        poll.register(self._wakeup, select.POLLIN)
        if self._overdue:
            poll.register(hearing.socket, select.POLLIN)
        until = min([wait.due for wait in waits] + [self._overdue or float("inf")])
        if self._given_back:  # The server has refused these.
            until = min(until, now + ASK_AGAIN)
        seconds = max(0.0, until - now) if until < float("inf") else None
        ready = dict(poll.poll(None if seconds is None else math.ceil(seconds * 1000)))
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if self._overdue and hearing.wait(0):
            self._overdue = 0.0
            self._take_note(self._hearing.grants())
        elif 0 < self._overdue < time.monotonic():
            self._start_over()  # A firewall may cut a connection without a word.

    def _take_note(self, notes: Iterable[tuple[float, str]]) -> None:
        for seconds, lease in notes:
            if not seconds:
                self._end(lease)
            elif wait := self._waits.get(lease):
                wait.due = time.monotonic() + seconds

    def _end(self, lease: str, error: NbstreamqError | None = None) -> None:
        """End the wait for a lease, unless it was given up."""
        if wait := self._waits.pop(lease, None):
            wait.error, wait.is_over = error, True
            wait.wake()


def _grouped(pairs: Iterable[tuple[_K, str]]) -> dict[_K, list[str]]:
    found: dict[_K, list[str]] = {}
    for key, lease in pairs:
        found.setdefault(key, []).append(lease)
    return found
