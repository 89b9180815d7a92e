"""A thread that carries calls to the server: batched by nature, in order, each once."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ..errors import NbstreamqError, ServerUnreachable
from ..locks import Condition, Event
from ..protocol.connection import RECONNECT, MessageTooLarge
from ..protocol.messages import Fields
from ..protocol.store import Store
from .calls import Call, gather, task_of_calls
from .interrupts import uninterrupted
from .ledger import Ledger
from .memory import Memory

__all__ = ["Entry", "Order", "Sender"]

logger = logging.getLogger(__name__)

#: Bytes that may wait to be sent; who submits more waits. More hides a longer outage.
MAX_WAITING_BYTES = 64 * 2**20
#: Most tasks, and bytes, in one message to the server: it does nothing else meanwhile.
MAX_BATCH, MAX_BATCH_BYTES = 400, 2**20
#: Seconds after which who waits for room notices Ctrl-C.
FULL_WAIT = 0.1
#: How often a parcel is tried that our own code fails with; then its calls fail. More outlive rarer
#: faults; fewer tell sooner.
MOST_TRIES = 3
#: Bytes up to which the submitting thread sends by itself.
SMALL_BYTES = 2**16


class Entry(NamedTuple):
    """A task on its way to the server.

    Attributes
    ----------
    lane, delay
        Where it goes, and in how many seconds.
    fields
        What `Store.encode_task` returned.
    size_bytes
        About how much that is.
    ledger, items
        Whose calls fail if the server refuses it.
    at_once
        Whether to send it by itself now, if nothing else is under way.
    """

    lane: str
    delay: float
    fields: Fields
    size_bytes: int
    ledger: Ledger
    items: range
    at_once: bool = False

    def fail(self, error: BaseException) -> None:
        self.ledger.fail(self.items, error)


class Order(NamedTuple):
    """Something else to be done at the server, in its turn."""

    carry_out: Callable[[Store], object]
    fail: Callable[[BaseException], None]
    size_bytes: int = 0


#: What could not be sent, and why.
Refused: TypeAlias = list[tuple[Any, BaseException]]


def _fail(refused: Refused) -> None:
    for item, error in refused:
        try:
            item.fail(error)
        except Exception:
            logger.exception("a call that could not be sent could not be failed, either")


class Sender:
    """Sends entries and orders in the order in which they came.

    What is put in when nothing else is under way is sent by the thread that puts it: that saves the
    time of waking another. What comes in quick succession is batched by the sender's own thread.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Who submits.
    on_trouble
        Called with the error when the server can't be reached, and with None before it is told
        anything again; raises `ServerUnreachable` if it is still away.
    memory
        Is told what the server took.
    meanwhile
        Called when a lone call is on its way: it asks for the result while the server is awake.
    on_forgotten
        Called with a number of calls when the server took these, and had forgotten all before.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        on_trouble: Callable[[ServerUnreachable | None], None],
        memory: Memory,
        meanwhile: Callable[[], object],
        on_forgotten: Callable[[int], None],
    ) -> None:
        self._store = store
        self._on_forgotten = on_forgotten
        self._session = session
        self._memory = memory
        self._meanwhile = meanwhile
        self._on_trouble = on_trouble
        self._queue: deque[Entry | Call | Order] = deque()
        self._changed = Condition()
        #: Held by who sends; what is sent is taken from the queue by him, so that order is kept.
        self._sending = threading.Lock()
        self._parcel: list[Entry | Order] = []
        self._waiting_bytes = 0
        self._batch = self._n_alone = 0
        self._again = self._lost = False
        self._idle = self._full = False
        self._closing = Event()
        self._giving_up = False
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-sender-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def put(
        self,
        item: Entry | Call | Order,
        shield: uninterrupted | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Send `item` soon; blocks while too much waits to be sent.

        Parameters
        ----------
        shield
            Around the call already: Ctrl-C could leave a lock held, or half an item.
        alone
            Nothing else is under way: send it now, in this thread.
        """
        if shield is not None:
            self._put(item, shield, alone=alone)
            return
        with uninterrupted() as own:
            self._put(item, own, alone=alone)

    def _put(self, item: Entry | Call | Order, shield: uninterrupted, *, alone: bool) -> None:
        if alone and item.size_bytes < SMALL_BYTES and self._sending.acquire(blocking=False):
            try:
                if self._put_first(item):
                    self._send_once(self._meanwhile)
                    return
            finally:
                self._sending.release()
        while not self._put_last(item):
            shield.lower(True)
            shield.lower(False)

    def put_soon(self, order: Order) -> None:
        """Add a small order, and never wait: the garbage collector calls this, in any thread."""
        with self._changed:  # reentrant, and nothing else is locked by who holds it
            self._queue.append(order)
            if self._idle:
                self._changed.notify_all()

    def _put_last(self, item: Entry | Call | Order) -> bool:
        """Add `item` to the queue; False if there is no room for it yet."""
        with self._changed:
            if self._waiting_bytes > MAX_WAITING_BYTES and not self._closing.is_set():
                self._full = True
                self._changed.wait(FULL_WAIT)
                return False
            self._waiting_bytes += item.size_bytes
            self._queue.append(item)
            if self._idle:
                self._changed.notify_all()
            return True

    def _put_first(self, item: Entry | Call | Order) -> bool:
        """Make `item` the next parcel, if nothing is before it."""
        with self._changed:
            if self._queue or self._parcel or self._closing.is_set():
                return False
            self._waiting_bytes += item.size_bytes
            self._queue.append(item)
            refused = self._pack()
        _fail(refused)
        return True

    def _send_once(self, meanwhile: Callable[[], object]) -> None:
        try:
            self._send_parcel(meanwhile)
        except ServerUnreachable:
            self._lost = True
        except Exception:
            self._store.close()  # a reply may be left in it
            logger.exception("a message could not be sent; it is tried again")
        finally:
            if self._parcel:  # a second Ctrl-C does it, too
                with self._changed:
                    self._changed.notify_all()  # the thread goes on trying

    @property
    def is_busy(self) -> bool:
        """Whether something is to be sent, or under way."""
        return bool(self._queue or self._parcel)

    def close(self, timeout: float | None) -> None:
        """End; what is queued is sent first, if that takes no longer than `timeout` seconds."""
        with self._changed:
            self._closing.set()
            self._giving_up = timeout is not None
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._wait_for_work()
                if is_open:
                    with self._sending:
                        self._send_next()
            except BaseException:  # no fault of ours, nor of a callback, may end the thread
                logger.exception("the sender goes on after a fault")
                time.sleep(RECONNECT)
        self._store.close()

    def _wait_for_work(self) -> bool:
        """Return true when there is something to send, false at the end."""
        with self._changed:
            while not self._queue and not self._parcel and not self._closing.is_set():
                self._idle = True
                self._changed.wait()
                self._idle = False
            return bool(self._queue or self._parcel)

    def _send_next(self) -> None:
        """Send the next parcel, again and again until the server has answered."""
        refused: Refused = []
        with self._changed:
            if not self._parcel:
                refused = self._pack()
        _fail(refused)
        n_tries = 0
        while self._parcel:
            try:
                if self._lost:
                    # First of all: what it has lost shows in the number of the last batch.
                    self._on_trouble(None)
                    self._lost = False
                self._send_parcel()
            except ServerUnreachable as error:
                self._lost = True
                self._report(error)
                if self._giving_up:
                    self._done()
                time.sleep(RECONNECT)
            except BaseException as error:
                # Whether the server has it is not known: it takes the same number once.
                self._store.close()
                n_tries += 1
                logger.exception("a message could not be sent")
                if n_tries == MOST_TRIES:
                    _fail([(item, error) for item in self._parcel])
                    self._done()

    def _report(self, error: ServerUnreachable) -> None:
        try:
            self._on_trouble(error)
        except Exception:
            logger.exception("the server is lost, and this went wrong besides")

    def _pack(self) -> Refused:
        """Take the next order, or the next tasks, from the queue; return what can't be sent.

        What is taken is in the parcel before it is out of the queue.
        """
        # However often it is sent, the server takes a number once.
        self._batch += 1
        self._again = False
        parcel: list[Entry | Order] = []
        refused: Refused = []
        self._parcel, n_bytes = parcel, 0
        most = 1 if self._n_alone else MAX_BATCH
        self._n_alone = max(0, self._n_alone - 1)
        while self._queue and len(parcel) < most and n_bytes < MAX_BATCH_BYTES:
            first = self._queue[0]
            if isinstance(first, Order):
                if not parcel:
                    parcel.append(first)
                    self._queue.popleft()
                break
            try:
                entry, n = self._entry(first)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
                refused.append((self._queue.popleft(), error))
                self._waiting_bytes -= first.size_bytes
                continue
            parcel.append(entry)
            for _ in range(n):
                self._queue.popleft()
            n_bytes += entry.size_bytes
        return refused

    def _entry(self, first: Any) -> tuple[Entry, int]:
        """Return the next entry, and how many of the queue it stands for."""
        entry, n = first, 1
        if type(first) is Call:
            calls = gather(self._queue)
            ledger, item, _, delay = calls[0]
            fields, n = self._store.encode_task(task_of_calls(calls)), len(calls)
            n_bytes = sum(call.size_bytes for call in calls)
            entry = Entry(ledger.lane, delay, fields, n_bytes, ledger, range(item, item + n))
        if entry.delay:
            int(entry.delay * 1000)  # fails here, for this one, if that is no time
        return entry, n

    def _send_parcel(self, meanwhile: Callable[[], object] | None = None) -> None:
        parcel = self._parcel
        if not parcel:
            return
        try:
            if isinstance(parcel[0], Order):
                parcel[0].carry_out(self._store)
            else:
                again, self._again = self._again, True
                entries = [e for e in parcel if isinstance(e, Entry)]
                if again:
                    entries = [e for e in entries if not all(map(e.ledger.has_ended, e.items))]
                tasks = [(e.lane, e.delay, e.fields) for e in entries]
                if tasks:
                    previous = self._store.submit(
                        self._session, self._batch, tasks, again=again, meanwhile=meanwhile
                    )
                    is_known = self._memory.knows(previous)
                    self._memory.took(self._batch)
                    if not is_known:
                        self._on_forgotten(sum(len(entry.items) for entry in entries))
        except ServerUnreachable:
            raise
        except MessageTooLarge as error:
            if len(parcel) == 1:
                _fail([(parcel[0], error)])
            else:
                self._part()
        except NbstreamqError as error:
            _fail([(item, error) for item in parcel])
        self._done()

    def _part(self) -> None:
        """Put the parcel back, for each in it to be sent alone: the server has not even read it."""
        with self._changed:
            self._n_alone = len(self._parcel)
            self._waiting_bytes += sum(item.size_bytes for item in self._parcel)
            self._queue.extendleft(reversed(self._parcel))

    def _done(self) -> None:
        with self._changed:
            n_bytes = sum(item.size_bytes for item in self._parcel)
            # Both or neither: no call is between.
            self._waiting_bytes -= n_bytes
            self._parcel = []
            if self._full:  # not else: waking the thread for nothing costs more than the rest
                self._full = False
                self._changed.notify_all()
