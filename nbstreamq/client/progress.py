"""Waits that last: a person sees progress, and reads why a wait may never end.

Where progress is shown depends on the place: a notebook, a terminal, nowhere. A front end gives
`show_waits` what shows it there.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from ..worker_context import WorkerContext
from .table import Outstanding

#: Seconds between two pictures. Shorter costs the waiting thread more than eyes can see.
FRAME = 0.2


class Display:
    """Progress as long as one wait lasts; the waiting thread draws it."""

    def draw(self) -> None:
        """Show how far it is now."""
        raise NotImplementedError

    def end(self) -> None:
        """Show that the wait is over."""
        raise NotImplementedError


#: Begins to show what a `Session` waits for; None: the waiting thread has nothing to draw.
Show: TypeAlias = Callable[[Any, Outstanding], Display | None]
_show: Show | None = None


def show_waits(show: Show) -> None:
    """Have `show` called when a wait has lasted for a second."""
    global _show  # noqa: PLW0603 - a process is one notebook, or has one terminal
    _show = show


class LongWait:
    """A wait that has lasted for a while.

    Parameters
    ----------
    session, what
        Who waits, and for what.
    began
        When, as `time.monotonic` tells it.
    explain
        Says why nothing happens, if there is a reason.
    patience
        Seconds until `explain` is called, and from one call to the next.
    """

    def __init__(
        self,
        session: Any,
        what: Outstanding,
        began: float,
        explain: Callable[[], object],
        patience: float,
    ) -> None:
        self._begin = functools.partial(_begin, session, what)
        self._show_at = began + what.progress_after
        self._explain = explain
        self._explain_at = began + patience
        self._patience = patience
        self._display: Display | None = None

    def go_on(self) -> float:
        """Show the progress, and explain if it is time; return the seconds until the next call."""
        now = time.monotonic()
        if now >= self._show_at:
            self._show_at = math.inf
            self._display = self._begin()
        if now >= self._explain_at:
            self._explain()
            self._explain_at = now + self._patience
        if self._display is not None:
            self._display.draw()
            return FRAME
        return min(self._show_at, self._explain_at) - now

    def end(self) -> None:
        """Show that the wait is over."""
        if self._display is not None:
            self._display.end()


def _begin(session: Any, what: Outstanding) -> Display | None:
    if WorkerContext.current is not None or _show is None or _is_shown_by_tqdm():
        return None
    what.progress_after = 0.0  # the next wait for it shows progress at once
    return _show(session, what)


def _is_shown_by_tqdm() -> bool:
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))
