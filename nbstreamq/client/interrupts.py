"""Interrupts: put off where they must not come at any moment; Ctrl-C in a wait, in two stages.

The first one ends the wait and leaves the job as it is. The second one, within two seconds, cancels
what the first one's wait was for; by then another wait may be running, other code, or nothing.
"""

from __future__ import annotations

# `signal` makes an enum member of each signal and handler, which takes ten times as long.
import _signal as signal  # type: ignore[import-not-found]
import contextvars
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from ..current import Host, host
from ..protocol.states import State
from .ledger import Ledger

__all__ = ["Waited", "handler_after", "interrupted", "interruptible", "uninterrupted"]

#: Seconds after an interrupt in which another one cancels. Longer takes a new one for the second.
SPAN = 2.0
#: Most jobs that are named in what is said.
N_NAMED = 3

F = TypeVar("F", bound=Callable[..., Any])


class uninterrupted:  # noqa: N801 - used like a function; a generator would take thrice as long
    """Puts off what raises in the main thread at any moment: it could leave a lock held.

    Outside a task that is Ctrl-C; a second one is not put off: a callback may hang. In a task it is
    a stop, by cancel or time limit; if it is put off for long, the worker is killed.
    """

    def __enter__(self) -> uninterrupted:
        self._interrupts: list[Any] = []
        self._known: Any = None
        self._worker: Host | None = None
        self._is_low = False
        if threading.current_thread() is threading.main_thread():
            worker = host()
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
        self._catch_up()

    def lower(self, is_low: bool) -> None:
        """Let interrupts pass, also one that was put off; or hold them back again."""
        self._is_low = is_low
        if self._worker is not None:
            self._worker.put_off(not is_low)
        if is_low:
            self._catch_up()

    def _catch_up(self) -> None:
        if self._interrupts:
            self._known(*self._interrupts.pop())


# -- two stages ----------------------------------------------------------------------------------


class Canceller(Protocol):
    """Who can cancel items of a job."""

    def cancel(self, ledger: Ledger, chosen: Iterable[int]) -> None: ...


class Waited(NamedTuple):
    """What a wait was for: a job, or one of the calls that share its ledger."""

    ledger: Ledger
    item: int | None = None

    @property
    def chosen(self) -> list[int]:
        return list(range(len(self.ledger))) if self.item is None else [self.item]

    @property
    def is_over(self) -> bool:
        item = self.item
        return self.ledger.is_over if item is None else self.ledger.has_ended(item)

    def __str__(self) -> str:
        chosen = self.chosen
        n_done = sum(self.ledger.state(item) is State.DONE for item in chosen)
        name = self.ledger.title or self.ledger.name
        return f"{name} ({n_done:,} of {len(chosen):,} done)"


class First:
    """An interrupt of a wait; keeps nothing alive that was waited for."""

    #: The last one, until there was a second.
    last: ClassVar[First | None] = None

    def __init__(self, canceller: Canceller, waited: Sequence[Waited]) -> None:
        self._canceller = weakref.ref(canceller)
        self._waited = [(weakref.ref(one.ledger), one.item) for one in waited]
        self.until = time.monotonic() + SPAN
        # In a notebook, what is printed in it appears in the cell that was interrupted.
        self._context = contextvars.copy_context()

    @classmethod
    def take(cls) -> First | None:
        """Return the one that came less than two seconds ago, if any; there is none then."""
        recent, cls.last = cls.recent(), None
        return recent

    @classmethod
    def recent(cls) -> First | None:
        """Return the one that came less than two seconds ago, if any."""
        return cls.last if cls.last and time.monotonic() < cls.last.until else None

    def cancel(self) -> list[Waited]:
        """Cancel what is not over, and say so; return that."""
        canceller = self._canceller()
        found = [
            Waited(ledger, item) for ref, item in self._waited if (ledger := ref()) is not None
        ]
        found = [one for one in found if not one.is_over]
        if canceller is None or not found:
            return []
        for one in found:
            canceller.cancel(one.ledger, one.chosen)
        _say(f"Cancelled: {_names(found)}. What is done is kept.")
        return found

    def cancel_elsewhere(self) -> None:
        """Cancel in a thread: a signal's handler may have interrupted who holds our locks."""
        threading.Thread(
            target=self._context.run, args=(self.cancel,), name="nbstreamq-cancel", daemon=True
        ).start()


_waits: set[CodeType] = set()


def interruptible(wait: F) -> F:
    """Mark a function that calls `interrupted` when it is: no handler need see to that."""
    _waits.add(wait.__code__)
    return wait


def interrupted(
    interrupt: KeyboardInterrupt, canceller: Canceller, waited: Sequence[Waited]
) -> None:
    """Take note that a wait was interrupted, and say how to cancel what it was for.

    If that was the second interrupt, what the first one was about is cancelled.
    """
    interrupt.__traceback__ = None  # where in the wait it came tells nobody anything
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        return  # it was not Ctrl-C
    first = First.take()
    cancelled = first.cancel() if first else []
    if left := [one for one in waited if not one.is_over and one not in cancelled]:
        First.last = First(canceller, left)
        signal.signal(signal.SIGINT, handler_after(known))
        how = f"To cancel: interrupt again within {SPAN:g} s, or call cancel()"
        _say(f"Goes on: {_names(left)}. {how}.")


def handler_after(usual: Any) -> Any:
    """Return SIGINT's handler from now on, where `usual` is in place.

    When a cell ends, Jupyter puts back the one from before it: it must be told of ours.
    """
    if isinstance(usual, _Second):
        usual = usual.usual
    return _Second(usual) if First.recent() else usual


class _Second:
    """SIGINT's handler after a first interrupt: a second one may come when nothing waits."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not First.recent():
            if signal.getsignal(signal.SIGINT) is self:
                signal.signal(signal.SIGINT, self.usual)
        elif not _is_waiting(frame) and (first := First.take()):
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


def _names(waited: Sequence[Waited]) -> str:
    n_more = len(waited) - N_NAMED
    return ", ".join(map(str, waited[:N_NAMED])) + (f" and {n_more:,} more" if n_more > 0 else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - who is interrupted waits for a word
