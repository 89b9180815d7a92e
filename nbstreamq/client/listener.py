"""`Listener`: the connection of a session that brings results back."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence, Sized

from ..errors import NbstreamqError, ServerUnreachable, SignatureError
from ..locks import Event
from ..objects.large_values import refers_to_server
from ..tracebacks import trace_of
from ..wire import messages
from ..wire.addresses import REPLY_TIMEOUT
from ..wire.connection import RECONNECT
from ..wire.store import Store
from .waiting import uninterrupted

logger = logging.getLogger(__name__)

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
