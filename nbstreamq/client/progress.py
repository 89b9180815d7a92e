"""Waits that last: a person sees progress, and reads why a wait may never end.

Where progress is shown depends on the place: a notebook, a terminal, nowhere. A front end gives
`show_waits` what shows it there.
"""

from __future__ import annotations

import contextvars
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..worker_context import WorkerContext
from .table import JobTable, Outstanding

#: Seconds of waiting, in all, after which progress is shown.
PROGRESS_AFTER = 1.0
#: Seconds between two waits that belong together, where there are no cells.
TOGETHER = 1.0
#: Seconds between two pictures. Shorter costs the waiting thread more than eyes can see.
FRAME = 0.2


class Display:
    """Shows how far something is while a thread waits for it; that thread draws it."""

    def draws_after(self) -> float:
        """Return how many seconds the next wait has to last until it draws."""
        raise NotImplementedError

    def draw(self) -> None:
        """Show how far it is now."""
        raise NotImplementedError

    def end(self) -> None:
        """Note that a wait is over. Another one for the same may follow."""
        raise NotImplementedError


@dataclass(eq=False, kw_only=True)
class Loop:
    """A loop of another library, such as a `joblib.Parallel`, that makes calls of a queue.

    Attributes
    ----------
    name
        Of the function that it calls.
    count
        Returns how many of its calls are over, how many it has made, and how many it will make in
        all; None: that is not known yet.
    began
        When, in seconds since the epoch.
    """

    name: str
    count: Callable[[], tuple[int, int, int | None]]
    began: float


class Waits:
    """The waits of a thread that belong together, and what shows how far they are.

    Those of one cell belong together; elsewhere, those with less than a second between them. So
    many short waits in a row are shown, too. It keeps nothing alive that was waited for.

    Parameters
    ----------
    what
        What is waited for first.
    cell
        The cell that runs; None: there are no cells.

    Attributes
    ----------
    began
        When the first wait began, in seconds since the epoch.
    shows_after
        How many seconds the wait that began last has to last until it shows progress.
    """

    def __init__(self, what: Outstanding, cell: object) -> None:
        self.began = time.time()
        self._first = what.job, getattr(what, "index", 0)
        self._cell = cell
        self._seconds = 0.0
        self._ended = math.inf
        self._displays: dict[tuple[Any, ...], Display | None] = {}
        self.shows_after = math.inf

    @classmethod
    def begin(cls, session: Any, what: Outstanding) -> Waits:
        """Return those to which a wait of this thread belongs that begins now."""
        cell = None if _cell_now is None else _cell_now()
        waits: Waits | None = getattr(_thread, "waits", None)
        if (
            waits is None
            or waits._cell is not cell  # noqa: SLF001 - its own
            or (cell is None and time.monotonic() > waits._ended + TOGETHER)  # noqa: SLF001
        ):
            waits = _thread.waits = cls(what, cell)
        if not what.shows_progress or _show is None or WorkerContext.current is not None:
            waits.shows_after = math.inf
        elif waits._seconds < PROGRESS_AFTER:
            waits.shows_after = PROGRESS_AFTER - waits._seconds
        else:
            waits.shows_after = waits._draws_after(session, what)
        return waits

    def first_of(self, job: str) -> int | None:
        """Return the number of the call that was waited for first, if it is of this job."""
        return self._first[1] if job == self._first[0] else None

    def _draws_after(self, session: Any, what: Outstanding) -> float:
        key = _key(session, what)
        if key not in self._displays:
            return 0.0
        display = self._displays[key]
        return math.inf if display is None else display.draws_after()

    def display(self, session: Any, what: Outstanding) -> Display | None:
        """Return what shows it; None: this thread has nothing to draw."""
        if _show is None or _is_shown_by_tqdm():
            return None
        key = _key(session, what)
        if key not in self._displays:
            self._displays[key] = _show(session, what, self)
        return self._displays[key]

    def add(self, what: Outstanding, seconds: float) -> None:
        """Take note that a wait is over."""
        self._ended = time.monotonic()
        if what.shows_progress:
            self._seconds += seconds


_thread = threading.local()

#: Begins to show what a `Session` waits for; None: the waiting thread has nothing to draw.
Show: TypeAlias = Callable[[Any, Outstanding | Loop, Waits | None], Display | None]
_show: Show | None = None
_cell_now: Callable[[], object] | None = None


def show_waits(show: Show, cell_now: Callable[[], object] | None = None) -> None:
    """Have `show` called when waits that belong together have lasted for a second.

    Parameters
    ----------
    cell_now
        Returns an object that stands for the run of the cell that runs; None: none runs.
    """
    global _show, _cell_now
    _show, _cell_now = show, cell_now


def _key(session: Any, what: Outstanding) -> tuple[Any, ...]:
    """Return what two waits have in common that are shown as one."""
    if isinstance(what, JobTable):
        return what.job, what.run
    return session.id, what.name


def _is_shown_by_tqdm() -> bool:
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))


class LongWait:
    """A wait that has lasted for a while.

    Parameters
    ----------
    waits
        The waits that it belongs to.
    session, what
        Who waits, and for what.
    began
        When, as `time.monotonic` tells it.
    explain
        Says why nothing happens, if there is a reason.
    patience
        Seconds until `explain` is called, and from one call to the next.
    """

    def __init__(  # noqa: PLR0917 - what it is about
        self,
        waits: Waits,
        session: Any,
        what: Outstanding,
        began: float,
        explain: Callable[[], object],
        patience: float,
    ) -> None:
        self._waits, self._session, self._what = waits, session, what
        self._show_at = began + waits.shows_after
        self._explain = explain
        self._explain_at = began + patience
        self._patience = patience
        self._display: Display | None = None

    def go_on(self) -> float:
        """Show the progress, and explain if it is time; return the seconds until the next call."""
        now = time.monotonic()
        if now >= self._show_at:
            self._show_at = math.inf
            self._display = self._waits.display(self._session, self._what)
        if now >= self._explain_at:
            self._explain()
            self._explain_at = now + self._patience
        if self._display is not None:
            self._display.draw()
            return FRAME
        return min(self._show_at, self._explain_at) - now

    def end(self) -> None:
        """Note that the wait is over."""
        if self._display is not None:
            self._display.end()


class LoopProgress:
    """Shows how far a loop is; the threads in which its calls end draw it.

    Parameters
    ----------
    session, loop
        Whose calls they are, and what is shown. It is shown where this object is made.
    """

    def __init__(self, session: Any, loop: Loop) -> None:
        self._session, self._loop = session, loop
        self._context = contextvars.copy_context()
        self._next = time.monotonic() + PROGRESS_AFTER
        self._display: Display | None = None
        self._lock, self._is_over = threading.Lock(), False

    def draw(self) -> None:
        """Show how far the loop is now, if it has lasted for a while."""
        if time.monotonic() < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._is_over:
                self._context.run(self._draw)
        finally:
            self._lock.release()

    def _draw(self) -> None:
        self._next = time.monotonic() + FRAME
        if self._display is None and not _is_shown_by_tqdm() and _show is not None:
            self._display = _show(self._session, self._loop, None)
        if self._display is not None:
            self._display.draw()

    def end(self) -> None:
        """Show for the last time how far the loop is."""
        counts = self._loop.count()
        self._loop.count = lambda: counts  # The same object may count another loop next.
        with self._lock:
            self._is_over = True
            if self._display is not None:
                self._display.draw()
                self._display.end()
