"""The two connections of a session: one carries calls to the server, one brings results back."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ..errors import DataLost, NbstreamqError, ServerUnreachable, SignatureError
from ..locks import Condition, Event
from ..tracebacks import trace_of
from ..wire import messages
from ..wire.connection import RECONNECT, REPLY_TIMEOUT, MessageTooLarge
from ..wire.keys import DAY
from ..wire.messages import Fields
from ..wire.store import Store
from .ledger import Call, Ledger, gather, task_of_calls
from .waiting import uninterrupted

#: Seconds for which the server must know a batch; far less than it keeps the number.
REMEMBERED = DAY / 2


class DataLossCheck:
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
        memory: DataLossCheck,
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


#: Seconds that one request waits for news. Longer costs nothing; it must stay below what firewalls
#: allow a silent connection.
BLOCK = 30.0
#: Seconds that the thread leaves to others who may read again at once. Longer delays the callbacks
#: of a call that is submitted in that time; shorter wakes the thread more often.
PARK = 0.002
#: Seconds in which the thread stops waiting when somebody else wants to read; longer: it is in a
#: callback. Longer delays who waits beside one.
HANDOVER = 0.01


class Listener:
    """Reads the events of a session.

    Its thread reads when nobody waits. Who waits for a result reads by himself, see `lead`: to be
    told by another thread would take as long as the server does.

    Source: the leader/followers pattern, D. Schmidt et al., "Leader/Followers: a design pattern for
    efficient multi-threaded event demultiplexing and dispatching", 2000.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Whose events.
    deliver
        Called with each event, in order; returns whether to go on.
    on_fault
        Called with an event that could not be delivered, and why; returns the same.
    on_delivered
        Called when all events that were read are delivered.
    is_far
        Tells whether a part of the event has to be fetched from the server first, which may be
        away for a while: only our own thread waits for that.
    on_trouble
        Called with the error when the server can't be reached, and with None when it can again.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        deliver: Callable[[messages.Event], bool],
        on_fault: Callable[[messages.Event, Exception], bool],
        on_delivered: Callable[[], object],
        on_trouble: Callable[[ServerUnreachable | None], None],
        is_far: Callable[[messages.Event], bool],
    ) -> None:
        self._store = store
        self._session = session
        self._deliver, self._on_fault, self._is_far = deliver, on_fault, is_far
        self._on_delivered = on_delivered
        self._on_trouble = on_trouble
        self._closing = Event()
        #: Session, and each named job that is followed -> the last entry that was read.
        self._after = {session: b"0"}
        #: Jobs to follow from an entry on, or no more (None), from the next request on.
        self._changes: deque[tuple[str, bytes | None]] = deque()
        self._asked = self._ended = self._lost = self._has_warned = False
        self._is_wanted = self._is_followed = False
        #: Held by the one thread that reads, and by the one that wants to instead of our own.
        self._reading, self._leading = threading.Lock(), threading.Lock()
        self._reader = 0  # the thread that reads
        self._n_leads = 0  # how many of its calls wait for something: a callback may wait, too
        self._soon = False  # whether the next wait ends soon
        self._led = 0.0  # when somebody else has read last
        self._overdue = 0.0  # when the answer should have come
        #: What came, and is not delivered yet.
        self._events: deque[messages.Event | SignatureError] = deque()
        self._n_deliveries = 0  # a callback that waits reads on
        self._bell, self._ring = socket.socketpair()
        self._resume = Event()
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-listener-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End, once the event is read that says so; or the server can't be reached."""
        self._closing.set()
        self._resume.set()
        if self._reader != threading.get_ident() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def lead(self, is_reached: Callable[[], bool], timeout: float, *, soon: bool = False) -> bool:
        """Read in the calling thread until `is_reached`, for at most `timeout` seconds.

        Parameters
        ----------
        soon
            It may be reached in no time.

        Returns
        -------
        bool
            False if that can't be: another thread does, or the server is lost. Then wait to be
            told.
        """
        deadline = time.monotonic() + timeout
        if self._reader == threading.get_ident():  # a callback waits: nobody else can read
            return self._lead(is_reached, deadline)
        if self._lost or self._ended:
            return False
        with uninterrupted() as shield:  # else an interrupt could leave a lock held
            if not self._leading.acquire(blocking=False):
                self._is_followed = True
                return False
            try:
                if not self._take_over():
                    return False
                try:
                    self._reader = threading.get_ident()
                    self._soon = soon
                    return self._lead(is_reached, deadline, shield)
                finally:
                    self._reader, self._led = 0, time.monotonic()
                    self._reading.release()
            finally:
                self._leading.release()
                if self._is_followed:  # else we may be back before our thread is awake
                    self._is_followed = False
                    self._resume.set()

    def ask(self) -> None:
        """Ask for what comes next, before it is waited for, if nobody does."""
        if not self._asked and not self._lost and self._reading.acquire(blocking=False):
            try:
                self._ask()
            except Exception as error:  # noqa: BLE001 - our thread meets it again, or is not hurt
                self._start_anew(error)
            finally:
                self._reading.release()

    def _start_anew(self, error: BaseException) -> None:
        """Ask again for what was not delivered: what was read of a reply is not known."""
        self._asked = False
        if not isinstance(error, NbstreamqError):
            self._store.close()
            logger.error("results are read again after a fault\n%s", trace_of(error))

    @property
    def is_delivering(self) -> bool:
        """Whether events are being dealt with, callbacks included."""
        return self._n_deliveries > 0

    def follow(self, job: str, after: bytes) -> None:
        """Read the events of a named job behind the entry `after`, from the next request on."""
        self._changes.append((job, after))

    def unfollow(self, job: str) -> bytes | None:
        """Read the events of a named job no more; return the last entry that was read.

        None, and nothing is changed, while events that were read are not delivered yet.
        """
        last = self._after.get(job, b"0")
        if self._events:
            return None
        self._changes.append((job, None))
        return last

    def _apply_changes(self) -> None:
        while self._changes:
            job, after = self._changes.popleft()
            if after is None:
                self._after.pop(job, None)
            else:
                self._after[job] = after

    def look_again(self) -> None:
        """Tell who leads that what he waits for may have come about without an event."""
        if self._n_leads and self._reader != threading.get_ident():
            with contextlib.suppress(OSError):  # it has just ended
                self._ring.send(b"!")

    def _take_over(self) -> bool:
        """Return whether it is ours to read now; not while our thread is in a callback."""
        if self._reading.acquire(blocking=False):
            return True
        self._is_wanted = True
        try:
            self._ring.send(b"!")
            return self._reading.acquire(timeout=HANDOVER)
        except OSError:  # it has just ended
            return False
        finally:
            self._is_wanted = False

    def _lead(
        self,
        is_reached: Callable[[], bool],
        deadline: float,
        shield: uninterrupted | None = None,
    ) -> bool:
        self._n_leads += 1
        try:
            while not is_reached() and (left := deadline - time.monotonic()) > 0:
                if self._ended or self._lost or (self._wait(left, shield) and not self._read()):
                    return False
        except Exception as error:  # noqa: BLE001 - our own thread meets it again, and deals with it
            self._start_anew(error)
            return False
        else:
            return True
        finally:
            self._n_leads -= 1

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._turn()
            except BaseException as error:  # noqa: BLE001 - no fault of ours may end the thread
                text = trace_of(error)
                logger.error("the listener goes on after a fault\n%s", text)  # noqa: TRY400
                time.sleep(RECONNECT)
        self._forget()

    def _turn(self) -> bool:
        """Read once, when nobody else does; return whether to go on."""
        if self._ended:
            return False
        try:
            self._step_aside()
            with self._reading:
                if self._ended:  # another thread has read the last event
                    return False
                self._reader = threading.get_ident()
                # After a loss it must not take a whole wait to notice that all is well again.
                news = self._wait(None)
                if news and self._lost:
                    self._lost = False
                    self._on_trouble(None)
                return not news or self._read()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the rest can be read
            self._start_anew(error)
            if isinstance(error, ServerUnreachable):
                self._lost = True
                self._on_trouble(error)
            elif isinstance(error, NbstreamqError):
                warnings.warn(f"nbstreamq can't read results: {error}", stacklevel=1)
            return not self._closing.wait(RECONNECT)

    def _step_aside(self) -> None:
        """Leave the reading to others, until they have not done it for a while."""
        self._resume.clear()
        while not self._closing.is_set():
            while self._is_wanted:  # a lock is not fair: we would have it again at once
                time.sleep(PARK)
            with self._reading:
                left = self._led + PARK - time.monotonic()
            if left <= 0 or self._resume.wait(left):
                break

    def _wait(self, seconds: float | None, shield: uninterrupted | None = None) -> bool:
        """Wait until there is something to read; return whether there is, and the bell is silent.

        An interrupt during the wait itself does no harm.
        """
        if self._events:
            return True
        now = time.monotonic()
        if not self._asked:
            self._ask()
        if now > self._overdue:
            # Nobody tells us when a firewall, or a machine's sleep, has cut the connection.
            self._store.close()
            raise ServerUnreachable("The server did not answer in time; connecting again.")
        left = max(0.0, self._overdue - now) + 0.001
        seconds = left if seconds is None else min(seconds, left)
        if shield is None:
            return self._store.wait(seconds, self._bell)
        soon, self._soon = self._soon, False
        try:
            shield.lower(True)
            return self._store.wait(seconds, self._bell, soon=soon)
        finally:
            shield.lower(False)

    def _ask(self) -> None:
        block = RECONNECT if self._lost else BLOCK
        self._apply_changes()
        self._store.await_events(self._session, self._after, block)
        self._asked, self._overdue = True, time.monotonic() + block + REPLY_TIMEOUT

    def _read(self) -> bool:
        """Deliver what there is; return whether to go on.

        Each event is taken before it is delivered: a callback that waits reads on behind it.
        """
        if not self._events:
            after = self._after.copy()
            self._asked = False  # first: if this fails, it is asked for again
            try:
                events = self._store.events(after)
            except BaseException:
                self._store.close()  # a part of the reply may be left in it
                raise
            self._events.extend(events)
            self._after = after  # not before: see `unfollow`
        self._n_deliveries += 1
        try:
            while self._events:
                if self._must_be_left(self._events[0]):
                    self._resume.set()
                    return False
                self._deliver_next()
            self._on_delivered()
        finally:
            self._n_deliveries -= 1
        return not self._ended

    def _must_be_left(self, event: messages.Event | SignatureError) -> bool:
        """Return whether an event is for our own thread: others have timeouts to keep."""
        if isinstance(event, SignatureError) or threading.current_thread() is self._thread:
            return False
        return self._is_far(event)

    def _deliver_next(self) -> None:
        event = self._events.popleft()
        try:
            if isinstance(event, SignatureError):
                self._warn_of(event)
            elif not self._deliver(event):
                self._ended = True
        except Exception as error:  # noqa: BLE001 - it fails what it is about, and no other
            if isinstance(event, messages.Event) and not self._on_fault(event, error):
                self._ended = True
        except BaseException:  # an interrupt of a callback
            self._events.appendleft(event)
            raise

    def _warn_of(self, forgery: SignatureError) -> None:
        """Say once that something was refused: there may be thousands."""
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{forgery} More of them are only counted: see q.status(), and q.dead().",
                stacklevel=1,
            )

    def _forget(self) -> None:
        self._ended = True
        try:
            with contextlib.suppress(NbstreamqError):  # else its keys expire by themselves
                self._store.forget_session(self._session)
        finally:
            self._store.close()
            self._bell.close()
            self._ring.close()
