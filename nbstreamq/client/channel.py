"""The two connections of a session: one carries calls to the server, one brings results back."""

from __future__ import annotations

import contextlib
import logging
import operator
import select
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence, Sized
from typing import Any

import msgspec

from ..errors import NbstreamqError, ServerUnreachable, SignatureError
from ..locks import Condition, Event
from ..objects.large_values import refers_to_server
from ..tracebacks import trace_of
from ..wire import messages
from ..wire.connection import RECONNECT, REPLY_TIMEOUT, MessageTooLarge
from ..wire.keys import DAY
from ..wire.store import Store
from .calls import Call, Calls, Submission, gather
from .table import JobTable
from .waiting import uninterrupted

logger = logging.getLogger(__name__)

#: Seconds for which the server must know a batch; far less than it keeps the number.
REMEMBERED = DAY / 2
#: Bytes that may wait to be sent; then `submit` waits. More hides a longer outage.
MAX_WAITING_BYTES = 64 * 2**20
#: Most tasks, and bytes, in one message to the server: it does nothing else meanwhile.
MAX_BATCH, MAX_BATCH_BYTES = 400, 2**20
#: Seconds after which a thread that waits for room notices Ctrl-C.
FULL_WAIT = 0.1
#: How often a parcel is tried that our own code fails with; then its calls fail. More outlive rarer
#: faults; fewer tell sooner.
MOST_TRIES = 3
#: Bytes below which the submitting thread sends by itself.
MAX_IMMEDIATE_BYTES = 2**16


class Command(msgspec.Struct, frozen=True):
    """Something else to be done at the server, in its turn."""

    carry_out: Callable[[Store], object]
    fail: Callable[[BaseException], None]
    size_bytes: int = 0

    def has_ended(self) -> bool:
        """Return whether it need not be sent again: never."""
        return False


_message = operator.attrgetter("message")


class Sender:
    """Sends submissions and commands in the order in which they came.

    While nothing else is being sent, a call is sent by the thread that submits it: that saves the
    time of waking another. What comes in quick succession is batched by the sender's own thread.

    A server without data, or with an old snapshot, does not know the number of the last batch that
    it took. So lost data are noticed with the next batch, and after each lost connection.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Id of the session.
    outstanding
        The calls and jobs that are open.
    on_trouble
        Called with the error when the server can't be reached, and with None before it is told
        anything again; raises `ServerUnreachable` if it is still away.
    on_forgotten
        Called with a number of calls when the server took these, and had forgotten all before.
    on_refused
        Called with calls that can't be sent: what they are of, why, and which items.

    Attributes
    ----------
    meanwhile
        Asks for results, if nobody has; called while calls are on their way.
    """

    meanwhile: Callable[[], object]

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        outstanding: Sized,
        on_trouble: Callable[[ServerUnreachable | None], None],
        on_forgotten: Callable[[int], None],
        on_refused: Callable[[Calls | JobTable, BaseException, range], None],
    ) -> None:
        self._store = store
        self._outstanding = outstanding
        self._on_forgotten, self._on_refused = on_forgotten, on_refused
        self._session = session
        #: Number of the last batch that the server took, and when.
        self._taken, self._checking = (0, 0.0), threading.Lock()
        self._on_trouble = on_trouble
        self._queue: deque[Call | Submission | Command] = deque()
        self._waiting_bytes = 0
        self._changed = Condition()
        #: Held by the thread that sends. Only that thread takes from the queue, so order is kept.
        self._sending = threading.Lock()
        #: What is being sent: one command, or some submissions; its number; whether it was sent.
        self._batch: Sequence[Submission | Command] = ()
        self._number, self._is_retry = 0, False
        #: How many of the next submissions go one by one.
        self._n_single = 0
        self._lost = self._idle = self._full = False
        self._is_closing = self._giving_up = False
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-sender-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def send(
        self,
        item: Call | Submission | Command,
        shield: uninterrupted | None = None,
        *,
        immediate: bool = True,
    ) -> None:
        """Send `item` soon; blocks while too much waits to be sent.

        A small one is sent now, in this thread, if it is about the only call or job that is open,
        and nothing else is being sent.

        Parameters
        ----------
        shield
            Already around the call: Ctrl-C could leave a lock held, or half an item.
        immediate
            False: leave it to our thread anyway; more items come.
        """
        if shield is None:
            with uninterrupted() as own:
                self.send(item, own, immediate=immediate)
            return
        if isinstance(item, Call):
            immediate, n_bytes = len(item.group.open) == 1, len(item.args)
        else:
            n_bytes = item.size_bytes
        immediate = immediate and n_bytes < MAX_IMMEDIATE_BYTES and len(self._outstanding) <= 1
        if immediate and self._sending.acquire(blocking=False):
            try:
                if not (self._queue or self._batch or self._is_closing):
                    self._send_now(item)
                    return
            finally:
                self._sending.release()
        while not self._enqueue(item):
            shield.lower(True)
            shield.lower(False)

    def send_soon(self, command: Command) -> None:
        """Add a small command, and never wait: the garbage collector calls this, in any thread."""
        with self._changed:  # reentrant, and a thread that holds it has locked nothing else
            self._queue.append(command)
            if self._idle:
                self._changed.notify_all()

    def _enqueue(self, item: Call | Submission | Command) -> bool:
        """Add `item` to the queue; False if there is no room for it yet."""
        with self._changed:
            if self._waiting_bytes > MAX_WAITING_BYTES and not self._is_closing:
                self._full = True
                self._changed.wait(FULL_WAIT)
                return False
            self._waiting_bytes += item.size_bytes
            self._queue.append(item)
            if self._idle:
                self._changed.notify_all()
            return True

    def _send_now(self, item: Call | Submission | Command) -> None:
        """Send one item; if that fails, our thread goes on trying."""
        if isinstance(item, Call):
            item = item.group.submission([item], self._store.encode_task)
        self._number += 1
        self._is_retry = False
        self._batch = (item,)
        try:
            self._send_batch()
        except ServerUnreachable:
            self._lost = True
        except Exception:
            self._store.close()  # a reply may be left in it
            logger.exception("a message could not be sent; it is tried again")
        finally:
            if self._batch:  # after a second Ctrl-C, too
                with self._changed:
                    self._changed.notify_all()

    def has_lost_data(self, ask: Callable[..., Any]) -> bool:
        """Return, once, whether the server has forgotten the queue, or what it took for it.

        Parameters
        ----------
        ask
            Returns the server's answer to a question.
        """
        with self._checking:
            batch, at = self._taken
            if time.time() > at + REMEMBERED:
                batch = 0
            if ask(Store.remembers, self._session, batch):
                return False
            self._taken = (0, 0.0)
            ask(Store.check_secret)
        return True

    @property
    def is_busy(self) -> bool:
        """Whether something waits to be sent, or is being sent."""
        return bool(self._queue or self._batch)

    def close(self, timeout: float | None) -> None:
        """End; what is queued is sent first, if that takes no longer than `timeout` seconds."""
        with self._changed:
            self._is_closing = True
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
            while not self._queue and not self._batch and not self._is_closing:
                self._idle = True
                self._changed.wait()
                self._idle = False
            return bool(self._queue or self._batch)

    def _send_next(self) -> None:
        """Send the next batch, again and again until the server has answered."""
        if not self._batch:
            self._take_batch()
        n_tries = 0
        while self._batch:
            try:
                if self._lost:
                    # First of all: what it has lost shows in the number of the last batch.
                    self._on_trouble(None)
                    self._lost = False
                if self._is_retry:
                    self._batch = [item for item in self._batch if not item.has_ended()]
                if self._batch:
                    self._send_batch()
            except ServerUnreachable as error:
                self._lost = True
                self._report(error)
                if self._giving_up:
                    self._batch = ()
                time.sleep(RECONNECT)
            except BaseException as error:
                # Whether the server has it is not known: it takes the same number once.
                self._store.close()
                n_tries += 1
                logger.exception("a message could not be sent")
                if n_tries == MOST_TRIES:
                    self._fail_batch(error)
                    self._batch = ()

    def _report(self, error: ServerUnreachable) -> None:
        try:
            self._on_trouble(error)
        except Exception:
            logger.exception("reporting that the server is lost has failed, too")

    def _take_batch(self) -> None:
        """Make the next command, or the next submissions, the batch."""
        refused: list[tuple[Call, BaseException]] = []
        with self._changed:
            # However often it is sent, the server takes a number once.
            self._number += 1
            self._is_retry = False
            self._fill_batch(refused)
            if self._full:  # not otherwise: waking a thread costs more than the rest
                self._full = False
                self._changed.notify_all()
        for call, error in refused:
            self._on_refused(call.group, error, range(call.index, call.index + 1))

    def _fill_batch(self, refused: list[tuple[Call, BaseException]]) -> None:
        queue, batch, n_bytes = self._queue, list[Submission | Command](), 0
        self._batch = batch  # first: what is taken is in one of the two at any moment
        most = 1 if self._n_single else MAX_BATCH
        self._n_single = max(0, self._n_single - 1)
        while queue and len(batch) < most and n_bytes < MAX_BATCH_BYTES:
            item, n = queue[0], 1
            if isinstance(item, Command):
                if not batch:
                    batch.append(item)
                    n_bytes = item.size_bytes
                    queue.popleft()
                break
            if isinstance(item, Call):
                call = item
                try:
                    calls = gather(queue)
                    item, n = item.group.submission(calls, self._store.encode_task), len(calls)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
                    refused.append((call, error))
                    self._waiting_bytes -= queue.popleft().size_bytes
                    continue
            batch.append(item)
            n_bytes += item.size_bytes
            for _ in range(n):
                queue.popleft()
        self._waiting_bytes -= n_bytes

    def _send_batch(self) -> None:
        batch: Sequence[Any] = self._batch
        try:
            if type(batch[0]) is Command:
                batch[0].carry_out(self._store)
                self.meanwhile()
            else:
                is_retry, self._is_retry = self._is_retry, True
                previous = self._store.submit(
                    self._session,
                    self._number,
                    list(map(_message, batch)),
                    again=is_retry,
                    meanwhile=self.meanwhile,
                )
                last, at = self._taken
                # By the wall clock: the monotonic one stops while a machine sleeps.
                self._taken = self._number, time.time()
                if previous < last and self._taken[1] <= at + REMEMBERED:
                    self._on_forgotten(sum(len(submission.items) for submission in batch))
        except ServerUnreachable:
            raise
        except MessageTooLarge as error:
            if len(batch) > 1:
                self._split()
            else:
                self._fail_batch(error)
        except NbstreamqError as error:
            self._fail_batch(error)
        self._batch = ()

    def _fail_batch(self, error: BaseException) -> None:
        for item in self._batch:
            try:
                if isinstance(item, Command):
                    item.fail(error)
                else:
                    self._on_refused(item.owner, error, item.items)
            except Exception:
                logger.exception("a call that could not be sent could not be failed, either")

    def _split(self) -> None:
        """Put the batch back, to be sent one by one: the server has not even read it."""
        with self._changed:
            self._n_single = len(self._batch)
            self._waiting_bytes += sum(item.size_bytes for item in self._batch)
            self._queue.extendleft(reversed(self._batch))


#: Seconds that one request waits for news. Longer costs nothing; it must stay below what firewalls
#: allow a silent connection.
BLOCK = 30.0
#: Seconds that the thread leaves to callers that may read again at once. Longer delays callbacks of
#: a call that is submitted in that time; shorter wakes the thread more often.
PARK = 0.002


class _Watch:
    """Where the listener's thread sleeps until the server answers, or somebody wakes it.

    While a caller reads, the connection is hidden: an answer would also wake the thread, for
    nothing. It is shown again as soon as an answer may come that no caller reads. macOS has no
    epoll, so the thread wakes.
    """

    def __init__(self) -> None:
        self._bell, self._ring = socket.socketpair()
        #: The connection that is watched, while it is shown.
        self.server: socket.socket | None = None
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        if self._epoll:
            self._epoll.register(self._bell, select.EPOLLIN)

    def show(self, server: socket.socket | None) -> None:
        """Wake the thread when there is something to read from `server`."""
        is_new, self.server = server is not self.server, server
        if self._epoll and server is not None:
            try:
                if is_new:
                    self._epoll.register(server, select.EPOLLIN)
                else:
                    self._epoll.modify(server, select.EPOLLIN)
            except (OSError, ValueError):
                self.server = None  # it is closed

    def hide(self) -> None:
        """Do not wake it for that until the next `show`."""
        if self._epoll and self.server is not None:
            try:
                self._epoll.modify(self.server, 0)
            except (OSError, ValueError):
                self.server = None  # it is closed

    def sleep(self, seconds: float) -> None:
        """Wait until there is something to read, or `wake` is called."""
        if self._epoll:
            ready = dict(self._epoll.poll(seconds))
        else:
            poll = select.poll()
            for one in filter(None, (self._bell, self.server)):
                poll.register(one, select.POLLIN)
            ready = dict(poll.poll(seconds * 1000))
        if self._bell.fileno() in ready:
            self._bell.recv(4096)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            self._ring.send(b"!")

    def close(self) -> None:
        for one in (self._epoll, self._bell, self._ring):
            if one is not None:
                one.close()


class Listener:
    """Reads the events of a session.

    Its thread reads when no caller waits. A caller that waits for a result reads by itself, see
    `lead`: to be told by another thread would take as long as the server does.

    Source: the leader/followers pattern, D. Schmidt et al., "Leader/Followers: a design pattern for
    efficient multi-threaded event demultiplexing and dispatching", 2000.

    Parameters
    ----------
    store
        A connection of its own.
    session
        Id of the session.
    deliver
        Called with each event, in order; returns whether to go on.
    on_fault
        Called with an event that could not be delivered, and why; returns the same.
    on_trouble
        Called with the error when the server can't be reached, and with None when it can again.
    awaited
        Events may come while any of these holds something.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        deliver: Callable[[messages.Event], bool],
        on_fault: Callable[[messages.Event, Exception], bool],
        on_trouble: Callable[[ServerUnreachable | None], None],
        awaited: Sequence[Sized],
    ) -> None:
        self._store = store
        self._session = session
        self._deliver, self._on_fault = deliver, on_fault
        self._on_trouble, self._awaited = on_trouble, awaited
        self._closing = Event()
        #: Session, and each named job that is followed -> the last entry that was read.
        self._after = {session: b"0"}
        #: Jobs to follow from an entry on, or no longer (None), from the next request on.
        self._changes: deque[tuple[str, bytes | None]] = deque()
        self._asked = self._ended = self._lost = self._has_warned = False
        #: Held by the thread that reads: ours, or a caller's.
        self._reading = threading.Lock()
        self._reader = 0  # the thread that reads
        self._n_leads = 0  # how many of its calls wait for something: a callback may wait, too
        self._is_followed = False  # whether another caller waits to be told
        self._led = 0.0  # when a caller has read last
        self._overdue = 0.0  # when the answer should have come
        #: What came, and is not delivered yet.
        self._events: deque[messages.Event | SignatureError] = deque()
        self._n_deliveries = 0  # a callback that waits reads on
        self._after_delivery: deque[Callable[[], object]] = deque()
        self._bell, self._ring = socket.socketpair()
        #: Where our thread sleeps, and whether it does; what it waits for between two callers.
        self._watch, self._is_asleep, self._resume = _Watch(), False, Event()
        self._thread_id = 0
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-listener-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End, once the event is read that says so; or the server can't be reached."""
        self._closing.set()
        self._resume.set()
        self._watch.wake()
        if threading.get_ident() not in (self._reader, self._thread_id):
            self._thread.join(timeout)

    # -- a caller reads ------------------------------------------------------------------------

    def lead(self, is_reached: Callable[[], bool], timeout: float, *, spin: bool = False) -> bool:
        """Read in the calling thread until `is_reached`, for at most `timeout` seconds.

        Parameters
        ----------
        spin
            Look for the first event without sleeping: it may come in no time.

        Returns
        -------
        bool
            Whether it is reached. If not, the time is over, or another thread reads, or the server
            is lost: then wait to be told.
        """
        deadline, me = time.monotonic() + timeout, threading.get_ident()
        if self._reader == me:  # a callback waits: no other thread can read
            return self._read_until(is_reached, deadline)
        if self._lost or self._ended:
            return False
        with uninterrupted() as shield:  # else an interrupt could leave the lock held
            if not self._reading.acquire(blocking=False):
                self._is_followed = True
                return False
            try:
                self._reader = me
                self._watch.hide()
                return self._read_until(is_reached, deadline, shield, spin=spin)
            finally:
                self._reader, self._led = 0, time.monotonic()
                if self._asked:  # otherwise nothing can come
                    self._watch.show(self._store.wire.socket)
                self._reading.release()
                is_left = self._events or (not self._asked and any(self._awaited))
                if is_left and self._is_asleep:
                    self._watch.wake()
                if self._is_followed:  # else we may be back before our thread is awake
                    self._is_followed = False
                    self._resume.set()

    def _read_until(
        self,
        is_reached: Callable[[], bool],
        deadline: float,
        shield: uninterrupted | None = None,
        *,
        spin: bool = False,
    ) -> bool:
        self._n_leads += 1
        try:
            while not is_reached():
                left = deadline - time.monotonic()
                if left <= 0 or self._ended or self._lost:
                    return False
                is_there = self._events or (spin and self._asked and self._store.wire.spin())
                spin = False
                if (is_there or self._sleep(left, shield)) and not self._read():
                    return False
        except Exception as error:  # noqa: BLE001 - our own thread meets it again, and deals with it
            self._start_over(error)
            return False
        else:
            return True
        finally:
            self._n_leads -= 1

    def _sleep(self, seconds: float, shield: uninterrupted | None) -> bool:
        """Wait for events; return whether there are any. An interrupt meanwhile does no harm."""
        left = self._overdue - time.monotonic() if self._asked else 0.0
        seconds = min(seconds, left if left > 0 else self._ask())
        if shield is None:
            return self._store.wire.wait(seconds, self._bell)
        try:
            shield.lower(True)
            return self._store.wire.wait(seconds, self._bell)
        finally:
            shield.lower(False)

    def look_again(self) -> None:
        """Wake the caller that reads: what it waits for may have come without an event."""
        if self._n_leads and self._reader != threading.get_ident():
            with contextlib.suppress(OSError):  # it has just ended
                self._ring.send(b"!")

    # -- the thread reads ----------------------------------------------------------------------

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
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
        """Read once, when no caller does; return whether to go on."""
        if self._ended:
            return False
        try:
            self._step_aside()
            with self._reading:
                left = 0.0 if self._events else self._ask()
                self._watch.show(self._store.wire.socket)
                self._is_asleep = True
            self._watch.sleep(left)  # without the lock: a caller that comes meanwhile reads at once
            self._is_asleep = False
            if self._ended:  # a caller has read the last event
                return False
            if not self._reading.acquire(blocking=False):
                return True
            try:
                return self._read_what_came()
            finally:
                self._reader = 0
                self._reading.release()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the rest can be read
            self._start_over(error)
            if isinstance(error, ServerUnreachable):
                self._lost = True
                self._on_trouble(error)
            elif isinstance(error, NbstreamqError):
                warnings.warn(f"nbstreamq can't read results: {error}", stacklevel=1)
            return not self._closing.wait(RECONNECT)

    def _step_aside(self) -> None:
        """Leave the reading to callers, until they have not done it for a while."""
        self._resume.clear()
        while not self._closing.is_set():
            with self._reading:
                left = self._led + PARK - time.monotonic()
            if left <= 0 or self._resume.wait(left):
                break

    def _read_what_came(self) -> bool:
        """Deliver what came if no caller has; return whether to go on."""
        self._reader = threading.get_ident()
        if not self._events and not (self._asked and self._store.wire.wait(0)):
            return True
        if self._lost:
            self._lost = False
            self._on_trouble(None)
        return self._read()

    # -- reading -------------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask for the next events before a caller waits for them, if no thread has."""
        if not self._asked and not self._lost and self._reading.acquire(blocking=False):
            try:
                if not self._ended:  # else the farewell would wait for the answer
                    self._ask()
            except Exception as error:  # noqa: BLE001 - our thread meets it again, or is not hurt
                self._start_over(error)
            finally:
                self._reading.release()

    def _ask(self) -> float:
        """Ask for events if nobody has; return the seconds in which there must be an answer."""
        now = time.monotonic()
        if not self._asked:
            while self._changes:
                job, after = self._changes.popleft()
                if after is None:
                    self._after.pop(job, None)
                else:
                    self._after[job] = after
            # After a loss it must not take a whole wait to notice that all is well again.
            block = RECONNECT if self._lost else BLOCK
            self._store.await_events(self._session, self._after, block)
            self._asked, self._overdue = True, now + block + REPLY_TIMEOUT
            if not self._n_leads:
                self._watch.show(self._store.wire.socket)
        elif now > self._overdue:
            # A firewall, or a machine that slept, may have cut the connection without a word.
            self._store.close()
            raise ServerUnreachable("The server did not answer in time; connecting again.")
        return self._overdue - now + 0.001

    def _start_over(self, error: BaseException) -> None:
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

    def unfollow(self, job: str, try_again: Callable[[], object]) -> bytes | None:
        """Stop reading the events of a named job; return the last entry that was read.

        While events that were read are not delivered yet, return None and change nothing;
        `try_again` is called when they are.
        """
        last = self._after.get(job, b"0")
        if self._events:
            self._after_delivery.append(try_again)
            return None
        self._changes.append((job, None))
        return last

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
            return self._deliver_all()
        finally:
            self._n_deliveries -= 1

    def _deliver_all(self) -> bool:
        """Deliver what was read; return whether to go on."""
        events, is_own = self._events, self._reader == self._thread_id
        while events:
            event = events[0]
            if isinstance(event, SignatureError):
                events.popleft()
                self._warn_of(event)
                continue
            if not is_own and b"server:" in event.body and refers_to_server(event.body):
                # It takes long to read, and a caller has a timeout to keep.
                self._resume.set()
                return False
            events.popleft()
            try:
                if not self._deliver(event):
                    self._ended = True
            except Exception as error:  # noqa: BLE001 - it fails what it is about, and nothing else
                if not self._on_fault(event, error):
                    self._ended = True
            except BaseException:  # an interrupt of a callback
                events.appendleft(event)
                raise
        while self._after_delivery:
            self._after_delivery.popleft()()
        return not self._ended

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
        self.look_again()
        with self._reading:
            if self._asked:  # after a fault: its answer would be taken for another one
                self._store.close()
        try:
            with contextlib.suppress(NbstreamqError):  # else its keys expire by themselves
                self._store.forget_session(self._session)
        finally:
            self._store.close()
            self._watch.close()
            self._bell.close()
            self._ring.close()
