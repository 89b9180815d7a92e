"""Ctrl-C as a test wants it: often, and only where it may come."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable


class Armed:
    """Sends SIGINT to this thread all the time; it raises only in `once`, and once in each."""

    def __init__(self, pause: float = 0.003) -> None:
        self._pause = pause
        self._is_armed = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._pester)

    def __enter__(self) -> Armed:
        self._usual = signal.signal(signal.SIGINT, self._handle)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        signal.signal(signal.SIGINT, self._usual)

    def once(self, act: Callable[[], object]) -> bool:
        """Call `act`, which is interrupted if it takes long enough; return whether it was."""
        try:
            self._is_armed = True
            act()
            self._is_armed = False
        except KeyboardInterrupt:
            return True
        return False

    def _handle(self, *_: object) -> None:
        if self._is_armed:
            self._is_armed = False
            raise KeyboardInterrupt

    def _pester(self) -> None:
        while not self._end.wait(self._pause):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def is_waiting(thread: threading.Thread) -> bool:
    """Return whether `thread` waits for a result."""
    frame = sys._current_frames().get(thread.ident or 0)
    # Thread.start() waits, too.
    return {"wait_until", "wait"} <= {f.name for f in traceback.extract_stack(frame)}


def is_reading(thread: threading.Thread) -> bool:
    """Return whether `thread` waits for a result, and reads it by itself: callbacks run in it."""
    frame = sys._current_frames().get(thread.ident or 0)
    return {"lead", "wait"} <= {f.name for f in traceback.extract_stack(frame)}


def interrupt_wait() -> threading.Thread:
    """Press Ctrl-C, from a thread, as soon as the main thread waits for a result."""

    def press() -> None:
        while not is_waiting(threading.main_thread()):
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    return pressing
