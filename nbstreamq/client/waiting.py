"""Waits: Ctrl-C in two stages, and waits inside a task."""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import contextvars
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any, ClassVar, TypeAlias, TypeVar

from ..wire.messages import State
from ..worker_context import WorkerContext
from .table import Outstanding

# `signal` makes an enum member of each signal and handler, which takes ten times as long.


#: Seconds after an interrupt in which another one cancels. Longer takes a new one for the second.
SPAN = 2.0
#: Most jobs that a message about an interrupt names.
N_NAMED = 3

F = TypeVar("F", bound=Callable[..., Any])
#: A method that cancels items of a call or job.
Cancel: TypeAlias = Callable[[Outstanding, Iterable[int]], None]

_main_thread = threading.main_thread().ident


def _find_main_thread() -> None:
    global _main_thread  # noqa: PLW0603 - there is one for each process
    _main_thread = threading.main_thread().ident


os.register_at_fork(after_in_child=_find_main_thread)


class uninterrupted:  # noqa: N801 - used like a function; a generator would take thrice as long
    """Puts off what raises in the main thread at any moment: it could leave a lock held.

    Outside a task that is Ctrl-C; a second one is not put off: a callback may hang. In a task it is
    a stop, by cancel or time limit; if it is put off for long, the worker is killed.
    """

    def __enter__(self) -> uninterrupted:
        self._interrupts: list[Any] = []
        self._known: Any = None
        self._worker: WorkerContext | None = None
        self._is_low = False
        if threading.get_ident() == _main_thread:
            worker = WorkerContext.current
            if worker is not None:
                worker.put_off(True)
                self._worker = worker
                return self
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
        if self._worker is not None:
            self._worker.put_off(False)
        if self._known is not None:
            signal.signal(signal.SIGINT, self._known)
        if self._interrupts:
            self._catch_up()

    def lower(self, is_low: bool) -> None:
        """Let interrupts pass, also one that was put off; or hold them back again."""
        self._is_low = is_low
        if self._worker is not None:
            self._worker.put_off(not is_low)
        if is_low and self._interrupts:
            self._catch_up()

    def _catch_up(self) -> None:
        self._known(*self._interrupts.pop())


# -- two stages ----------------------------------------------------------------------------------


class PendingInterrupt:
    """An interrupt of a wait; keeps nothing alive that was waited for."""

    #: The last one, until there was a second.
    last: ClassVar[PendingInterrupt | None] = None

    def __init__(self, cancel: Cancel, waited: Sequence[Outstanding]) -> None:
        self._cancel = weakref.WeakMethod(cancel)
        self._waited = [weakref.ref(what) for what in waited]
        self.until = time.monotonic() + SPAN
        # In a notebook, what is printed in it appears in the cell that was interrupted.
        self._context = contextvars.copy_context()

    @classmethod
    def take(cls) -> PendingInterrupt | None:
        """Return the one that came less than two seconds ago, if any; and forget it."""
        recent, cls.last = cls.recent(), None
        return recent

    @classmethod
    def recent(cls) -> PendingInterrupt | None:
        """Return the one that came less than two seconds ago, if any."""
        return cls.last if cls.last and time.monotonic() < cls.last.until else None

    def cancel(self) -> list[Outstanding]:
        """Cancel what is not over, and say so; return that."""
        cancel = self._cancel()
        found = [what for ref in self._waited if (what := ref()) is not None and not what.is_over]
        if cancel is None or not found:
            return []
        for what in found:
            cancel(what, range(what.n_items))
        _say(f"Cancelled: {_names(found)}. What is done is kept.")
        return found

    def cancel_elsewhere(self) -> None:
        """Cancel in a thread: the signal may have interrupted code that holds a lock."""
        threading.Thread(
            target=self._context.run, args=(self.cancel,), name="nbstreamq-cancel", daemon=True
        ).start()


_waits: set[CodeType] = set()


def interruptible(wait: F) -> F:
    """Mark a function that calls `interrupted` when it is: no handler need see to that."""
    _waits.add(wait.__code__)
    return wait


def interrupted(
    interrupt: KeyboardInterrupt, cancel: Cancel, waited: Sequence[Outstanding]
) -> None:
    """Take note that a wait was interrupted, and say how to cancel what it was for.

    If that was the second interrupt, what the first one was about is cancelled.
    """
    interrupt.__traceback__ = None  # it does not matter where in the wait it came
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        return  # it was not Ctrl-C
    first = PendingInterrupt.take()
    cancelled = first.cancel() if first else []
    if left := [what for what in waited if not what.is_over and what not in cancelled]:
        PendingInterrupt.last = PendingInterrupt(cancel, left)
        signal.signal(signal.SIGINT, handler_after(known))
        how = f"To cancel: interrupt again within {SPAN:g} s, or call cancel()"
        _say(f"Goes on: {_names(left)}. {how}.")


def handler_after(usual: Any) -> Any:
    """Return SIGINT's handler from now on, where `usual` is in place.

    When a cell ends, Jupyter puts back the one from before it: it must be told of ours.
    """
    if isinstance(usual, InterruptHandler):
        usual = usual.usual
    return InterruptHandler(usual) if PendingInterrupt.recent() else usual


class InterruptHandler:
    """SIGINT's handler after a first interrupt: a second one may come when nothing waits."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    def __call__(self, number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True  # IPython leaves such frames out
        if not PendingInterrupt.recent():
            if signal.getsignal(signal.SIGINT) is self:
                signal.signal(signal.SIGINT, self.usual)
        elif not _is_waiting(frame) and (first := PendingInterrupt.take()):
            first.cancel_elsewhere()
        if callable(self.usual):  # it may be SIG_IGN, as in a kernel that is idle
            self.usual(number, frame)


def _is_waiting(frame: FrameType | None) -> bool:
    """Return whether a wait is interrupted, and not what it does when it is."""
    while frame is not None and frame.f_code is not interrupted.__code__:
        if frame.f_code in _waits:
            return True
        frame = frame.f_back
    return False


def _describe(what: Outstanding) -> str:
    n_done = sum(what.state(item) is State.DONE for item in range(what.n_items))
    return f"{what.title or what.name} ({n_done:,} of {what.n_items:,} done)"


def _names(waited: Sequence[Outstanding]) -> str:
    n_more = len(waited) - N_NAMED
    return ", ".join(map(_describe, waited[:N_NAMED])) + (
        f" and {n_more:,} more" if n_more > 0 else ""
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - who is interrupted waits for a word


#: Runs other tasks until a wait of the running task is over; takes the wait, its timeout, and lanes
#: whose tasks may run, too.
Help: TypeAlias = Callable[[Callable[[float], bool], float | None, Collection[str]], None]


class HelpedWaiters(list[Any]):
    """The waiters of a future inside a task.

    `concurrent.futures.wait` and `as_completed` add theirs to each future, and wait for its event:
    it gets an event that helps.
    """

    def __init__(self, help_until: Help, lane: str) -> None:
        super().__init__()
        self._help_until = help_until
        self._lane = lane

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _HelpingEvent):
            # All futures are locked: no thread waits for the old event, or has set it.
            waiter.event = _HelpingEvent(self._help_until)
        waiter.event.lanes.add(self._lane)
        super().append(waiter)


class _HelpingEvent(threading.Event):
    def __init__(self, help_until: Help) -> None:
        super().__init__()
        self._help_until = help_until
        self.lanes: set[str] = set()

    def wait(self, timeout: float | None = None) -> bool:
        begun = time.monotonic()
        self._help_until(super().wait, timeout, self.lanes)
        left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
        return super().wait(left)
