"""A thread that carries calls to the server: batched by nature, in order, each once."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import NbstreamqError, ServerUnreachable
from ..protocol.messages import Fields
from ..protocol.store import Store

__all__ = ["Entry", "Order", "Sender"]

#: Bytes that may wait to be sent; who submits more waits. More hides a longer outage.
MAX_WAITING_BYTES = 64 * 2**20
#: Most tasks, and bytes, in one message to the server: it does nothing else meanwhile.
MAX_BATCH, MAX_BATCH_BYTES = 400, 2**20
#: Seconds between attempts to reach a lost server.
RECONNECT = 0.2


@dataclass(frozen=True, slots=True)
class Entry:
    """A task on its way to the server.

    Attributes
    ----------
    lane, delay
        Where it goes, and in how many seconds.
    fields
        What `Store.encode_task` returned.
    size_bytes
        About how much that is.
    fail
        Called with the error if the server refuses it.
    """

    lane: str
    delay: float
    fields: Fields
    size_bytes: int
    fail: Callable[[BaseException], None]


@dataclass(frozen=True, slots=True)
class Order:
    """Something else to be done at the server, in its turn."""

    carry_out: Callable[[Store], None]
    fail: Callable[[BaseException], None]
    size_bytes: int = 0


class Sender:
    """Sends entries and orders in the order in which they came.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Who submits.
    on_trouble
        Called with the error when the server can't be reached, and with None when it can again.
    """

    def __init__(
        self, store: Store, session: str, on_trouble: Callable[[ServerUnreachable | None], None]
    ) -> None:
        self._store = store
        self._session = session
        self._on_trouble = on_trouble
        self._queue: deque[Entry | Order] = deque()
        self._changed = threading.Condition()
        self._waiting_bytes = 0
        self._batch = 0
        self._idle = False
        self._closing = threading.Event()
        self._giving_up = False
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-sender-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def put(self, item: Entry | Order) -> None:
        """Send `item` soon; blocks while too much waits to be sent."""
        with self._changed:
            while self._waiting_bytes > MAX_WAITING_BYTES and not self._closing.is_set():
                self._changed.wait()
            self._queue.append(item)
            self._waiting_bytes += item.size_bytes
            if self._idle:
                self._changed.notify_all()

    def close(self, timeout: float | None) -> None:
        """End; what is queued is sent first, if that takes no longer than `timeout` seconds."""
        with self._changed:
            self._closing.set()
            self._giving_up = timeout is not None
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self._next():
            if isinstance(batch[0], Order):
                self._insist(functools.partial(batch[0].carry_out, self._store), batch)
            else:
                self._batch += 1
                self._insist(functools.partial(self._submit, batch), batch)
            with self._changed:
                self._waiting_bytes -= sum(item.size_bytes for item in batch)
                self._changed.notify_all()
        self._store.close()

    def _next(self) -> list[Entry | Order]:
        """Return the next order, or the next tasks; nothing at the end."""
        with self._changed:
            while not self._queue and not self._closing.is_set():
                self._idle = True
                self._changed.wait()
                self._idle = False
            batch: list[Entry | Order] = []
            n_bytes = 0
            while self._queue and len(batch) < MAX_BATCH and n_bytes < MAX_BATCH_BYTES:
                if isinstance(self._queue[0], Order) and batch:
                    break
                batch.append(self._queue.popleft())
                n_bytes += batch[-1].size_bytes
                if isinstance(batch[-1], Order):
                    break
            return batch

    def _submit(self, batch: list[Entry | Order]) -> None:
        tasks = [(e.lane, e.delay, e.fields) for e in batch if isinstance(e, Entry)]
        self._store.submit(self._session, self._batch, tasks)

    def _insist(self, action: Callable[[], None], batch: list[Entry | Order]) -> None:
        """Do `action` until the server has answered it."""
        lost = False
        while True:
            try:
                action()
            except ServerUnreachable as error:
                self._on_trouble(error)
                lost = True
                if self._giving_up:
                    return
                self._closing.wait(RECONNECT)
            except NbstreamqError as error:
                for item in batch:
                    item.fail(error)
                return
            else:
                if lost:
                    self._on_trouble(None)
                return
