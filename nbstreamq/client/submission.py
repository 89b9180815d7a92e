"""How calls become messages: chunks of a map, and calls that wait for the results of others."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from ..objects.blobs import size_of
from ..objects.functions import FunctionPickle
from ..objects.payloads import dump
from ..objects.references import Dependent
from ..protocol.messages import Options, Task
from ..protocol.spans import Span, size
from .calls import MAX_CALLS, SMALL_BYTES, Call, CallLedger, CallPace, Kind
from .chunks import Pace, chunks
from .future import TaskFuture
from .interrupts import uninterrupted
from .ledger import Ledger
from .payload import Payload
from .sender import Entry
from .session import Session

__all__ = [
    "Feed",
    "call_of",
    "give_up",
    "open_call",
    "opening",
    "pace_of",
    "send_chunks",
    "submit",
    "submit_when_done",
    "task_of",
]

#: Number of workers that chunks are cut for, when it is not known how many there are.
ASSUMED_WORKERS = 8


def task_of(
    ledger: Ledger, function: FunctionPickle, payload: Payload, options: Options, span: Span = ()
) -> Task:
    """Return the message that calls `function` on the items of `payload`; or on `span` of them."""
    ledger.held = function
    return payload.task(ledger.job, function, options, span)


def open_call(session: Session, kind: Kind, data: bytes, *, alone: bool) -> tuple[CallLedger, int]:
    """Return the ledger of a new call, and its number there: not the first, if it is like the last.

    Parameters
    ----------
    data
        Its arguments.
    alone
        It shall not share its ledger.
    """
    # What a parcel refers to must not live as long as other calls.
    alone |= len(data) > SMALL_BYTES or {type(data), type(kind.function.data)} != {bytes}
    last = session.calls
    if last is not None and not alone and len(last) < MAX_CALLS and last.kind.is_like(kind):
        item = session.join(last, data)
        if item is not None:
            return last, item
    digest, pace = session.pace
    if digest != kind.function.digest:
        session.pace = kind.function.digest, (pace := CallPace())
    ledger = session.new_ledger(kind.fn, kind.function.name, kind.lane, CallLedger)
    ledger.kind, ledger.pace = kind, pace
    item = ledger.add_call(data)
    session.register(ledger)  # not before: one without an item counts as over
    session.calls = None if alone else ledger
    return ledger, item


def submit(
    session: Session, ledger: Ledger, task: Task, delay: float, *, at_once: bool = False
) -> None:
    """Send calls, by themselves if `at_once`; they are failed if the server refuses them."""
    n_bytes = len(task.args) + 300
    calls = range(task.n + task.span[0].start, task.n + task.span[-1].stop)
    fields = session.encode_task(task)
    session.send(Entry(ledger.lane, delay, fields, n_bytes, ledger, calls, at_once))


def pace_of(
    session: Session,
    iterables: tuple[Iterable[Any], ...],
    *,
    chunksize: int | str,
    buffersize: int | None,
) -> Pace:
    """Return how the items of a map are to be cut; the arguments are those of `TaskQueue.map`."""
    n_workers = session.workers.n_workers or ASSUMED_WORKERS
    if isinstance(chunksize, int):
        return Pace.fixed(min(chunksize, buffersize or chunksize), n_workers)
    if buffersize is not None:
        return Pace.fixed(max(1, buffersize // (4 * n_workers)), n_workers)
    sizes = [len(i) for i in iterables if isinstance(i, Sized)]
    is_known = len(sizes) == len(iterables)
    return Pace(min(sizes, default=0) if is_known else None, n_workers)


@contextmanager
def opening(session: Session, fn: Callable[..., Any], name: str, lane: str) -> Iterator[Ledger]:
    """Yield the ledger of a new job; if what follows fails, or is interrupted, nobody has it."""
    ledger = None
    try:
        with uninterrupted():
            ledger = session.new_ledger(fn, name, lane, Ledger)
            ledger.growing = True
            session.register(ledger)
        yield ledger
    except BaseException:
        if ledger is not None:
            give_up(session, ledger, range(len(ledger)))
        raise


def give_up(session: Session, ledger: Ledger, items: Iterable[int]) -> None:
    """Cancel what was submitted of a job that nobody will have."""
    session.cancel(ledger, items)
    session.stop_growing(ledger)


def call_of(iterables: tuple[Iterable[Any], ...]) -> tuple[str, Iterable[Any]]:
    """Return how the items of a map are called, as in `Task`, and the items."""
    if len(iterables) == 1:
        return "map", iterables[0]
    return "starmap", zip(*iterables, strict=False)


def send_chunks(
    session: Session,
    ledger: Ledger,
    function: FunctionPickle,
    iterables: tuple[Iterable[Any], ...],
    pace: Pace,
) -> Iterator[int]:
    """Submit chunk after chunk, as this is iterated; yield how many items each has."""
    call, source = call_of(iterables)
    options = ledger.options
    try:
        for piece in chunks(source, pace):
            session.check_open()
            what = f"an item of {function.name}()"
            generators: list[Any] = []
            first, keeper = len(ledger), session.large.keeper
            data = dump(piece, what, keeper, first=first, generators=generators)
            if generators:
                session.repeats.items(function.name, generators, len(piece))
            payload = Payload(len(ledger), len(piece), call, data)
            with uninterrupted():
                ledger.add(payload)
            task = task_of(ledger, function, payload, options)
            submit(session, ledger, task, options.delay, at_once=pace.at_once)
            for news in ledger.reports(-1):
                if news.kind == "finished":
                    pace.took(news.seconds, size(news.span))
            pace.sent(len(piece), size_of(data))
            yield len(piece)
    except BaseException:
        session.cancel(ledger, range(len(ledger)))
        raise
    finally:
        session.stop_growing(ledger)


class Feed:
    """Submits more items as results are taken, never more than `buffersize` ahead."""

    def __init__(
        self, session: Session, ledger: Ledger, sends: Iterator[int], buffersize: int
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._sends = sends
        self._buffersize = buffersize
        self._exhausted = False
        #: Several threads may take results. Reentrant: the inputs may do so, too.
        self._lock = threading.RLock()

    def __call__(self, n_taken: int = 0) -> None:
        """Submit what there is room for, when `n_taken` results were taken.

        Raises
        ------
        QueueClosed
            No result is left, and more inputs can't be submitted.
        """
        with self._lock:
            if not self._exhausted and n_taken > len(self._ledger):
                self._session.check_open()
            while self._ledger.growing and len(self._ledger) - n_taken < self._buffersize:
                self._exhausted = next(self._sends, None) is None


def submit_when_done(session: Session, call: Call, needed: list[TaskFuture[Any]]) -> None:
    """Submit a call once the results that it needs are there; fail it if one of them fails."""
    missing, lock = set(range(len(needed))), threading.Lock()

    def one_is_done(index: int, future: TaskFuture[Any]) -> None:
        with lock:  # two may be done at once, in two threads
            missing.remove(index)
            is_last = not missing
        if call.ledger.has_ended(call.item):
            return
        try:
            error = future.exception()
            if error is None and is_last:
                keeper = session.large.keeper
                results = [dump(f.result(), f"the result of {f.id}", keeper) for f in needed]
                args = dump(Dependent(call.args, results), "arguments", keeper)
                call.ledger.held = args
                session.send(call._replace(args=args))
        except BaseException as failure:  # noqa: BLE001 - it is the dependent call that fails
            error = failure
        if error is not None:
            call.fail(error)

    for index, future in enumerate(needed):
        future.add_done_callback(functools.partial(one_is_done, index))
