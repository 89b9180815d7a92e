"""A thread that takes what comes back, and tells whom it concerns."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from ..errors import NbstreamqError, ServerUnreachable, SignatureError
from ..protocol.connection import RECONNECT
from ..protocol.messages import Event
from ..protocol.store import Store

__all__ = ["Listener"]

#: Seconds that one request waits for news. Longer costs nothing; it must stay below what firewalls
#: allow a silent connection.
BLOCK = 30.0
#: Seconds that the thread leaves to others who may read again at once. Longer delays the callbacks
#: of a call that is submitted in that time; shorter wakes the thread more often.
PARK = 0.002


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
    on_trouble
        Called with the error when the server can't be reached, and with None when it can again.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        deliver: Callable[[Event], bool],
        on_trouble: Callable[[ServerUnreachable | None], None],
    ) -> None:
        self._store = store
        self._session = session
        self._deliver = deliver
        self._on_trouble = on_trouble
        self._closing = threading.Event()
        self._last = b"0"
        self._asked = self._ended = self._lost = False
        self._is_wanted = self._is_followed = False
        #: Held by the one thread that reads, and by the one that wants to instead of our own.
        self._reading, self._leading = threading.Lock(), threading.Lock()
        self._bell, self._ring = socket.socketpair()
        self._resume = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-listener-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End, once the event is read that says so; or the server can't be reached."""
        self._closing.set()
        self._resume.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def lead(self, is_reached: Callable[[], bool], timeout: float) -> bool:
        """Read in the calling thread until `is_reached`, for at most `timeout` seconds.

        Returns
        -------
        bool
            False if that can't be: another thread does, or the server is lost. Then wait to be
            told.
        """
        if threading.current_thread() is self._thread or self._lost or self._ended:
            return False
        if not self._leading.acquire(blocking=False):
            self._is_followed = True
            return False
        try:
            if not self._reading.acquire(blocking=False):
                self._is_wanted = True
                self._ring.send(b"!")
                self._reading.acquire()
                self._is_wanted = False
            try:
                return self._lead(is_reached, time.monotonic() + timeout)
            finally:
                self._reading.release()
        finally:
            self._leading.release()
            if self._is_followed:  # else we may be back before our thread is awake
                self._is_followed = False
                self._resume.set()

    def _lead(self, is_reached: Callable[[], bool], deadline: float) -> bool:
        while not is_reached() and (left := deadline - time.monotonic()) > 0:
            try:
                if self._ended or self._lost or (self._wait(left) and not self._read()):
                    return False
            except NbstreamqError:
                self._asked = False  # our own thread meets the error again, and deals with it
                return False
        return True

    def _run(self) -> None:
        while not self._ended:
            try:
                with self._reading:
                    # After a loss it shall not take a whole wait to notice that all is well again.
                    news = self._wait(None, self._bell)
                    if news and self._lost:
                        self._lost = False
                        self._on_trouble(None)
                    if news and not self._read():
                        break
                if not news:
                    self._step_aside()
            except NbstreamqError as error:
                self._asked = False
                if isinstance(error, ServerUnreachable):
                    self._lost = True
                    self._on_trouble(error)
                else:
                    warnings.warn(f"nbstreamq can't read results: {error}", stacklevel=1)
                if self._closing.wait(RECONNECT):
                    break
        self._forget()

    def _step_aside(self) -> None:
        self._resume.clear()
        self._resume.wait(PARK)
        while self._is_wanted:  # a lock is not fair: we would have it again at once
            time.sleep(PARK)

    def _wait(self, seconds: float | None, *bell: socket.socket) -> bool:
        """Wait until there is something to read; return whether there is, and the bell is silent.

        An interrupt here does no harm.
        """
        if not self._asked:
            block = RECONNECT if self._lost else BLOCK
            self._store.await_events(self._session, self._last, block)
            self._asked = True
        return self._store.wait(seconds, *bell)

    def _read(self) -> bool:
        """Deliver what there is; return whether to go on."""
        with _uninterrupted():
            last, events = self._store.events(self._last)
            self._asked = False
            for event in events:
                if isinstance(event, SignatureError):
                    warnings.warn(str(event), stacklevel=1)
                elif not self._deliver(event):
                    self._ended = True
            self._last = last
        return not self._ended

    def _forget(self) -> None:
        self._ended = True
        with contextlib.suppress(NbstreamqError):  # else its keys expire by themselves
            self._store.forget_session(self._session)
        self._store.close()
        self._bell.close()
        self._ring.close()


class _uninterrupted:  # noqa: N801 - used like a function; a generator would take thrice as long
    """Puts off Ctrl-C, which in the midst of an event would leave half of it undone."""

    def __enter__(self) -> None:
        self._interrupts: list[Any] = []
        self._known: Any = None
        if threading.current_thread() is threading.main_thread():
            known = signal.getsignal(signal.SIGINT)
            if callable(known):
                signal.signal(signal.SIGINT, lambda *frame: self._interrupts.append(frame))
                self._known = known

    def __exit__(self, *_: object) -> None:
        if self._known is not None:
            signal.signal(signal.SIGINT, self._known)
        if self._interrupts:
            self._known(*self._interrupts[0])
