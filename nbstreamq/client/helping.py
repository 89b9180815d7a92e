"""Waits inside a task: the worker runs other tasks meanwhile, and a task may be stopped there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ..current import host
from ..protocol.keys import is_named
from .ledger import Ledger

__all__ = ["HelpedWaiters", "help_until"]


class Client(Protocol):
    """Who has submitted what is waited for."""

    def open_ledgers(self) -> list[Ledger]: ...
    def cancel(self, ledger: Ledger, chosen: Iterable[int]) -> None: ...


def help_until(
    client: Client, wait: Callable[[float], bool], timeout: float | None, lanes: Collection[str]
) -> None:
    """Do in a task what `Host.help_until` does; what a task submitted is cancelled if it stops."""
    worker = host()
    if worker is None:
        return
    try:
        worker.help_until(wait, timeout, lanes)
    except BaseException:
        task = worker.task()
        for ledger in client.open_ledgers():
            if ledger.outer is task and not is_named(ledger.job):
                client.cancel(ledger, range(len(ledger)))
        raise


class HelpedWaiters(list[Any]):
    """The waiters of a future inside a task.

    `concurrent.futures.wait` and `as_completed` add theirs to each future, and wait for its event:
    it gets one that helps.
    """

    def __init__(self, client: Client, lane: str) -> None:
        super().__init__()
        self._client = client
        self._lane = lane

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _HelpingEvent):
            # All futures are locked: nobody waits for the old one yet, nor has set it.
            waiter.event = _HelpingEvent(self._client)
        waiter.event.lanes.add(self._lane)
        super().append(waiter)


class _HelpingEvent(threading.Event):
    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.lanes: set[str] = set()

    def wait(self, timeout: float | None = None) -> bool:
        begun = time.monotonic()
        help_until(self._client, super().wait, timeout, self.lanes)
        left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
        return super().wait(left)
