"""A thread that takes what comes back, and tells whom it concerns."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable

from ..errors import NbstreamqError, ServerUnreachable, SignatureError
from ..locks import Event
from ..protocol import messages
from ..protocol.clients import REPLY_TIMEOUT
from ..protocol.connection import RECONNECT
from ..protocol.store import Store
from ..tracebacks import trace_of
from .interrupts import uninterrupted

__all__ = ["Listener"]

logger = logging.getLogger(__name__)

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
