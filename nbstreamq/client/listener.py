"""A thread that takes what comes back, and tells whom it concerns."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable

from ..errors import NbstreamqError, ServerUnreachable, SignatureError
from ..protocol.connection import RECONNECT
from ..protocol.messages import Event
from ..protocol.store import Store

__all__ = ["Listener"]

#: Seconds that one request waits for news. Longer costs nothing; it must stay below what firewalls
#: allow a silent connection.
BLOCK = 30.0


class Listener:
    """Reads the events of a session.

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
        self._thread = threading.Thread(
            target=self._run, name=f"nbstreamq-listener-{store.keys.queue}", daemon=True
        )
        self._thread.start()

    def close(self, timeout: float) -> None:
        """End, once the event is read that says so; or the server can't be reached."""
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        lost = False
        while True:
            try:
                # After a loss it shall not take a whole wait to notice that all is well again.
                block = RECONNECT if lost else BLOCK
                self._last, events = self._store.events(self._session, self._last, block)
                if lost:
                    self._on_trouble(None)
                    lost = False
                if False in list(map(self._handle, events)):
                    break
            except ServerUnreachable as error:
                lost = True
                self._on_trouble(error)
                if self._closing.wait(RECONNECT):
                    break
            except NbstreamqError as error:
                warnings.warn(f"nbstreamq can't read results: {error}", stacklevel=1)
                if self._closing.wait(RECONNECT):
                    break
        self._forget()

    def _handle(self, event: Event | SignatureError) -> bool:
        if isinstance(event, SignatureError):
            warnings.warn(str(event), stacklevel=1)
            return True
        return self._deliver(event)

    def _forget(self) -> None:
        with contextlib.suppress(NbstreamqError):  # else its keys expire by themselves
            self._store.forget_session(self._session)
        self._store.close()
