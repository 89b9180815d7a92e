"""Ctrl-C, where it must not come at any moment."""

from __future__ import annotations

# `signal` makes an enum member of each signal and handler, which takes ten times as long.
import _signal as signal  # type: ignore[import-not-found]
import threading
from typing import Any

__all__ = ["uninterrupted"]


class uninterrupted:  # noqa: N801 - used like a function; a generator would take thrice as long
    """Puts off Ctrl-C, which in the midst of an event would leave half of it undone.

    A second one is not put off: a callback may hang.
    """

    def __enter__(self) -> uninterrupted:
        self._interrupts: list[Any] = []
        self._known: Any = None
        self._is_low = False
        if threading.current_thread() is threading.main_thread():
            known = signal.getsignal(signal.SIGINT)
            if callable(known):
                self._known = known
                signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *frame: Any) -> None:
        if self._is_low or self._interrupts:
            self._is_low = False
            self._interrupts.clear()
            self._known(*frame)
        else:
            self._interrupts.append(frame)

    def __exit__(self, *_: object) -> None:
        if self._known is not None:
            signal.signal(signal.SIGINT, self._known)
        self._catch_up()

    def lower(self, is_low: bool) -> None:
        """Let Ctrl-C pass, also one that was put off; or no more."""
        self._is_low = is_low
        if is_low:
            self._catch_up()

    def _catch_up(self) -> None:
        if self._interrupts:
            self._known(*self._interrupts.pop())
