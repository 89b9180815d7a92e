"""`concurrent.futures.wait` and `as_completed` inside a task: the worker runs others meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

from ..current import Host

__all__ = ["HelpedWaiters"]


class HelpedWaiters(list[Any]):
    """The waiters of a future inside a task.

    Both functions add theirs to each future, and wait for its event: it gets one that helps.
    """

    def __init__(self, host: Host, lane: str) -> None:
        super().__init__()
        self._host = host
        self._lane = lane

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _HelpingEvent):
            # All futures are locked: nobody waits for the old one yet, nor has set it.
            waiter.event = _HelpingEvent(self._host)
        waiter.event.lanes.add(self._lane)
        super().append(waiter)


class _HelpingEvent(threading.Event):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self.lanes: set[str] = set()

    def wait(self, timeout: float | None = None) -> bool:
        begun = time.monotonic()
        self._host.help_until(super().wait, timeout, self.lanes)
        left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
        return super().wait(left)
