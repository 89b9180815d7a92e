"""Whether the server still knows what it was told: it may be restarted without its data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import DataLost
from ..protocol.keys import DAY
from ..protocol.store import Store

__all__ = ["Memory"]

#: Seconds for which the server must know a batch; far less than it keeps the number.
REMEMBERED = DAY / 2


class Memory:
    """The last batch that the server took from a session, which it must still know.

    Of a server without any data, or with an old snapshot, this number is gone, or too small.

    Parameters
    ----------
    session, queue
        Who submitted, and where.
    """

    def __init__(self, session: str, queue: str) -> None:
        self._session = session
        self._queue = queue
        self._lock = threading.Lock()
        self._last = (0, 0.0)

    def took(self, batch: int) -> None:
        """Note that the server has just taken a batch."""
        # By the wall clock: the other one stands still while a machine sleeps.
        self._last = (batch, time.time())

    def knows(self, previous: int) -> bool:
        """Return whether a server that knew the batch `previous` as our last has lost none."""
        batch, at = self._last
        return previous >= batch or time.time() > at + REMEMBERED

    def lost(self) -> DataLost:
        """Return what is said to those whose calls the server has forgotten."""
        return DataLost(
            f"The server has lost the data of queue {self._queue!r}, this call's too; probably it"
            " was restarted without them. Calls can be submitted again, after what they need of"
            " everywhere() and put(). So that a server keeps its data: appendonly yes."
        )

    def check(self, ask: Callable[[Callable[[Store], Any]], Any]) -> DataLost | None:
        """Return an error, once, if the server has forgotten the queue, or what it took for it.

        Parameters
        ----------
        ask
            Returns the server's answer to a question.
        """
        with self._lock:
            batch, at = self._last
            if time.time() > at + REMEMBERED:
                batch = 0
            if ask(lambda store: store.remembers(self._session, batch)):
                return None
            self._last = (0, 0.0)
            ask(Store.check_secret)
        return self.lost()
