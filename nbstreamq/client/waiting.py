"""Waits: Ctrl-C in two stages, waits inside a task, and why a wait may never end."""

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
from typing import Any, ClassVar, Protocol, TypeVar

from ..errors import NbstreamqError, ServerUnreachable
from ..launch.local import LocalWorkers
from ..tracebacks import warn
from ..wire.keys import home_of
from ..wire.messages import State
from ..wire.store import Store
from ..worker_context import WorkerContext, host
from .ledger import NamedLedger, Outstanding

# `signal` makes an enum member of each signal and handler, which takes ten times as long.


#: Seconds after an interrupt in which another one cancels. Longer takes a new one for the second.
SPAN = 2.0
#: Most jobs that are named in what is said.
N_NAMED = 3

F = TypeVar("F", bound=Callable[..., Any])

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


class Canceller(Protocol):
    """Who can cancel items of a job."""

    def cancel(self, what: Outstanding, chosen: Iterable[int]) -> None: ...


class PendingInterrupt:
    """An interrupt of a wait; keeps nothing alive that was waited for."""

    #: The last one, until there was a second.
    last: ClassVar[PendingInterrupt | None] = None

    def __init__(self, canceller: Canceller, waited: Sequence[Outstanding]) -> None:
        self._canceller = weakref.ref(canceller)
        self._waited = [weakref.ref(what) for what in waited]
        self.until = time.monotonic() + SPAN
        # In a notebook, what is printed in it appears in the cell that was interrupted.
        self._context = contextvars.copy_context()

    @classmethod
    def take(cls) -> PendingInterrupt | None:
        """Return the one that came less than two seconds ago, if any; there is none then."""
        recent, cls.last = cls.recent(), None
        return recent

    @classmethod
    def recent(cls) -> PendingInterrupt | None:
        """Return the one that came less than two seconds ago, if any."""
        return cls.last if cls.last and time.monotonic() < cls.last.until else None

    def cancel(self) -> list[Outstanding]:
        """Cancel what is not over, and say so; return that."""
        canceller = self._canceller()
        found = [what for ref in self._waited if (what := ref()) is not None and not what.is_over]
        if canceller is None or not found:
            return []
        for what in found:
            canceller.cancel(what, range(what.n_items))
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
    interrupt: KeyboardInterrupt, canceller: Canceller, waited: Sequence[Outstanding]
) -> None:
    """Take note that a wait was interrupted, and say how to cancel what it was for.

    If that was the second interrupt, what the first one was about is cancelled.
    """
    interrupt.__traceback__ = None  # where in the wait it came tells nobody anything
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        return  # it was not Ctrl-C
    first = PendingInterrupt.take()
    cancelled = first.cancel() if first else []
    if left := [what for what in waited if not what.is_over and what not in cancelled]:
        PendingInterrupt.last = PendingInterrupt(canceller, left)
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


class Client(Protocol):
    """Who has submitted what is waited for."""

    def open(self) -> list[Outstanding]: ...
    def cancel(self, what: Outstanding, chosen: Iterable[int]) -> None: ...


def help_until(
    client: Client, wait: Callable[[float], bool], timeout: float | None, lanes: Collection[str]
) -> None:
    """Run other tasks while this one waits; cancel what it submitted if it is stopped."""
    worker = host()
    if worker is None:
        return
    try:
        worker.help_until(wait, timeout, lanes)
    except BaseException:
        task = worker.task()
        for what in client.open():
            if what.outer is task and not what.title:
                client.cancel(what, range(what.n_items))
        raise


class HelpedWaiters(list[Any]):
    """The waiters of a future inside a task.

    `concurrent.futures.wait` and `as_completed` add theirs to each future, and wait for its event:
    it gets one that helps.
    """

    def __init__(self, client: Client, lane: str) -> None:
        super().__init__()
        self._client = client
        self._lane = lane

    def append(self, waiter: Any) -> None:
        if not isinstance(waiter.event, _HelpingEvent):
            # All futures are locked: nobody waits for the old one yet, nor has set it.
            waiter.event = _HelpingEvent(self._client)
        waiter.event.lanes.add(self._lane)
        super().append(waiter)


class _HelpingEvent(threading.Event):
    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.lanes: set[str] = set()

    def wait(self, timeout: float | None = None) -> bool:
        begun = time.monotonic()
        help_until(self._client, super().wait, timeout, self.lanes)
        left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
        return super().wait(left)


class _Session(Protocol):
    workers: LocalWorkers
    trouble: ServerUnreachable | None

    @property
    def homes(self) -> tuple[str, str]: ...
    def worker_command(self, folder: str = "", python: str = "python", lane: str = "") -> str: ...
    def warn(self, text: str) -> None: ...
    def ask(self, question: Callable[[Store], Any], *, patience: float | None = None) -> Any: ...
    def check_memory(self) -> None: ...


def explain(session: _Session, ledger: Outstanding) -> None:
    """Warn, once for each reason, if there is a reason why nothing happens."""
    # Workers that are started again have not joined yet.
    if not session.workers.is_restarting and (reason := survey(session, ledger)[1]):
        session.warn(f"waiting for {ledger.name}: {reason}")


def survey(session: _Session, ledger: Outstanding) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the workers there are, and why none may run the calls; empty if one may."""
    if session.trouble:  # another connection may do, where no more of them are let in
        return {}, str(session.trouble)
    try:
        session.check_memory()
        # With another secret, neither this client nor its workers can do anything here.
        session.ask(lambda store: store.check_secret(write=False), patience=0.0)
        workers, queue = session.ask(
            lambda store: (store.workers(), store.keys.queue), patience=0.0
        )
    except NbstreamqError as error:
        return {}, str(error)
    reason = session.workers.trouble or _reason(session, workers, queue, ledger) or ledger.delay()
    return workers, reason or _vanished(session, ledger)


def _has_tasks(store: Store) -> bool:
    own = [f"@{worker}" for worker in store.workers()]
    return store.has_tasks([*store.known_lanes(), *own])


def _vanished(session: _Session, ledger: Outstanding) -> str:
    """Say that nothing of a job is on the server any more, though some of it has no result.

    At the second look only: a result may be on its way.
    """
    try:
        is_there = session.ask(_has_tasks, patience=0.0)
    except NbstreamqError:
        return ""
    n_left, name = ledger.n_open, ledger.title or ledger.name
    before, ledger.n_when_empty = ledger.n_when_empty, -1 if is_there else n_left
    if is_there or before != n_left or ledger.growing or ledger.is_over:
        return ""
    remedy = (
        f"q.map(..., name={name!r}, replace=True) runs it again"
        if ledger.title
        else "cancel() them, and submit them again"
    )
    return (
        f"{n_left:,} calls of {name} have no result, and nothing waits or runs on the server: their"
        f" messages were deleted there. They will never run; {remedy}."
    )


def _reason(
    session: _Session, workers: dict[str, dict[str, Any]], queue: str, ledger: Outstanding
) -> str:
    """Return why nobody runs what waits of `ledger`, and what to do; empty if somebody may.

    Parameters
    ----------
    workers
        Id -> description of the registered workers of `queue`.
    """
    home, lane = home_of(ledger.job), ledger.lane
    ours = [about for about in workers.values() if accepts(about, home)]
    if not ours and isinstance(ledger, NamedLedger):
        return _no_worker_left(session, ledger.title, ledger.job, ledger.about)
    if not ours:
        what = "no workers but those of other kernels" if workers else "no workers"
        return (
            f"queue {queue!r} has {what}. Start some: q.run(4) here, or"
            f" `{session.worker_command()}` anywhere."
        )
    if not any(lane in about.get("lanes", ()) for about in ours):
        command = session.worker_command(lane=lane)
        return f"no worker serves its lane {lane!r}. Start one: {command}"
    return ""


def accepts(description: dict[str, Any], home: str) -> bool:
    """Return whether a worker runs tasks of `home`: those of `nbstreamq worker` run all."""
    homes = description.get("homes", ())
    return not homes or home in homes


def stranded(session: _Session, store: Store) -> list[str]:
    """Return, for each named job that waits for workers there are none of, how to start some."""
    workers = store.workers().values()
    records = (
        store.readable_record(job, name)
        for name, job in store.job_names().items()
        if not any(accepts(about, home_of(job)) for about in workers)
    )
    return [
        _no_worker_left(session, record.name, record.id, record.about)
        for record in records
        if record is not None and record.n_ended < record.n_items
    ]


def _no_worker_left(session: _Session, name: str, job: str, about: dict[str, Any]) -> str:
    folder = about["folder"]
    command = session.worker_command(folder, about["python"])
    here = "q.run(4) here, or " if home_of(job) in session.homes else ""
    return (
        f"job {name!r} waits: no worker with its folder, {folder}, and its Python is left. Start"
        f" some: {here}`{command}`"
    )


class Warner:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warn(text)
