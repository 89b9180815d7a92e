"""How long a supervisor goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from .slot import Slot


class Life:
    """Tells when a supervisor's lifetime is over, or its workers have had nothing to do for long.

    Parameters
    ----------
    lifetime, idle_timeout
        Seconds from now to the end, and seconds without a call; infinite: it goes on.
    """

    def __init__(self, lifetime: float, idle_timeout: float) -> None:
        self._lifetime, self._idle_timeout = lifetime, idle_timeout
        self._active_at = now = time.monotonic()
        #: When it is over, by the monotonic clock.
        self.ends_at = now + lifetime
        self._seen: list[int] = []

    def why_over(self, slots: Iterable[Slot]) -> str:
        """Return why to end now, for the log; empty: there is no reason.

        Parameters
        ----------
        slots
            Of the workers that there are.
        """
        now = time.monotonic()
        if now >= self.ends_at:
            return f"its lifetime of {self._lifetime:g} s is over"
        if self._idle_timeout == float("inf"):
            return ""
        found = list(slots)
        # A short call may begin and end between two looks.
        seen = [slot.n_begun for slot in found]
        if seen != self._seen or any(slot.n_running for slot in found):
            self._seen, self._active_at = seen, now
        idle = now - self._active_at
        return f"nothing has run for {idle:.0f} s" if idle >= self._idle_timeout else ""
