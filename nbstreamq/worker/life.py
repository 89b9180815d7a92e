"""How long a supervisor goes on, and which calls its workers may begin until then."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..wire.item_ranges import size
from ..wire.settlement import Delivery, Settlement
from .slot import Slot

#: Part of its lifetime in which a worker begins any call, also one that takes longer than that.
#: More lets such calls begin more often; less gives them more time.
FRESH = 0.1
#: By which part a shorter call lowers the duration that its function is expected to have.
FORGET = 0.2


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
        if seen != self._seen or any(slot.is_busy for slot in found):
            self._seen, self._active_at = seen, now
        idle = now - self._active_at
        return f"nothing has run for {idle:.0f} s" if idle >= self._idle_timeout else ""


class Term:
    """Tells which calls a worker may begin, whose lifetime is limited.

    Parameters
    ----------
    ends_at, lifetime
        When that is over, by the monotonic clock, and how many seconds it has in all.

    Attributes
    ----------
    is_old
        Whether it has left a call to workers that live longer, and is to meet no more such calls.
    """

    def __init__(self, ends_at: float, lifetime: float) -> None:
        self._ends_at, self._fresh_until = ends_at, ends_at - (1 - FRESH) * lifetime
        self._expected: dict[str, float] = {}
        self.is_old = False

    def allows(self, delivery: Delivery) -> bool:
        """Return whether a call is expected to end in time, or nobody could do better."""
        now, task = time.monotonic(), delivery.task
        # What is in its own lane is for this worker only.
        if now <= self._fresh_until or delivery.lane[0] == "@":
            return True
        return now + max(task.ran, self._expected.get(task.fn, 0.0)) <= self._ends_at

    def learn(self, settlement: Settlement) -> None:
        """Note how long the calls of a function took: about the longest of late."""
        fn = settlement.delivery.task.fn
        for event in settlement.events:
            if event.kind == "finished":
                took, known = event.seconds / size(event.span), self._expected.get(fn, 0.0)
                self._expected[fn] = max(took, known + FORGET * (took - known))
