"""What is asked of all supervisors: to cancel what runs of a job, and to see what is due or new."""

from __future__ import annotations

import time
from socket import socket

from ..protocol.keys import session_of
from ..protocol.messages import Control
from ..protocol.store import Store
from .slots import Level
from .timing import Timing

__all__ = ["Orders"]

#: Seconds for which a cancellation holds for items that a worker took before it, and begins later.
#: Longer covers slower imports on unpickling; each is compared with what runs, at each look.
ORDER_LIFETIME = 60.0


class Orders:
    """Follows the control stream, and remembers the cancellations in it.

    Parameters
    ----------
    store
        A connection of its own.

    Attributes
    ----------
    has_news
        Whether anything came since somebody set this to false.
    """

    def __init__(self, store: Store, timing: Timing) -> None:
        self._store = store
        self._timing = timing
        self._last: bytes | None = None
        self._overdue = 0.0
        self.has_news = False
        self._cancellations: list[tuple[float, Control]] = []

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    def sockets(self) -> list[socket]:
        """Return what can be read when something has come; nothing while not connected."""
        return self._store.sockets()

    @property
    def has_fresh(self) -> bool:
        """Whether there are cancellations of what may begin still."""
        return any(at > time.monotonic() - ORDER_LIFETIME for at, _ in self._cancellations)

    def take(self) -> None:
        """Take note of what has come, and ask for more."""
        if self._last is None:
            self._last = self._store.last_control()
        if time.monotonic() > self._overdue:
            # Nobody tells us when a firewall has cut the connection.
            self._store.close()
            self._await(self._last)
        self.follow()

    def follow(self) -> None:
        """Take note of what has come since `take`."""
        while self._last is not None and self._store.wait(0):
            self._last, orders = self._store.controls(self._last)
            self.has_news = True
            for order in orders:
                self.keep(order)
            self._await(self._last)

    def _await(self, after: bytes) -> None:
        self._store.await_control(after, self._timing.hearing)
        self._overdue = time.monotonic() + self._timing.hearing + self._timing.silence

    def ask_anew(self) -> None:
        """Ask for what came since the last entry once more: the connection was lost."""
        self._overdue = 0.0

    def keep(self, order: Control) -> None:
        """Remember a cancellation: what it concerns may have been taken, and not have begun."""
        now = time.monotonic()
        kept = [(t, o) for t, o in self._cancellations if t > now - ORDER_LIFETIME]
        if order.kind == "resume":
            self._cancellations = [(t, o) for t, o in kept if o.job != order.job]
        else:
            self._cancellations = [*kept, (now, order)]

    def cancel(self, level: Level) -> bool:
        """Return whether what runs at `level` is cancelled."""
        return any(_concerns(order, level) for _, order in self._cancellations)


def _concerns(order: Control, level: Level) -> bool:
    ours = order.job in (level.job, session_of(level.job))
    return ours and any(level.n + level.item in r for r in order.span)
