"""How calls become messages: chunks of a map, calls that wait for others, cached calls."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ..errors import SignatureError
from ..objects.functions import FunctionPickle
from ..objects.large_values import size_of
from ..objects.pickling import dump
from ..objects.references import Dependent
from ..objects.results import dump_outcomes
from ..wire.item_ranges import ItemRanges, size
from ..wire.messages import Event, Options, Task
from .channel import Command
from .error_notes import Payload
from .future import CallFuture, TaskFuture
from .session import Session
from .table import JobTable
from .waiting import uninterrupted

#: Chunks for each worker, if all were as large as the first. More balance the first moments better.
CHUNKS_PER_WORKER = 6
#: What part of a worker's share of the rest a chunk is, towards the end; and how much smaller than
#: the first the last may be. More let workers end closer together, and cost more messages.
TAIL, SHRINK = 2, 8
#: Seconds of work that are worth a message: so much is in a chunk, as far as is known, and towards
#: the end a quarter of it. Longer costs less for each item, and balances later.
WORTH = 0.002
#: Seconds in which the first chunks, one for each worker, are sent one by one: a worker may ask for
#: several at a time. Longer delays what comes behind them where the server is far away.
HURRY = 0.005
#: Most items, and bytes, in a chunk. Larger ones are copied more often than they need be.
MAX_ITEMS, MAX_BYTES = 10_000, 2**18
#: Seconds that an item may wait for others to fill its chunk, where the items come slowly.
MAX_WAIT = 0.02


class Pace:
    """Decides how large the next chunk is.

    Parameters
    ----------
    n
        Number of items, where it is known.
    n_workers
        For how many workers.
    """

    def __init__(self, n: int | None, n_workers: int) -> None:
        self._n_workers = max(1, n_workers)
        self._fixed = False
        self._hurry = time.monotonic() + HURRY
        self._most = MAX_ITEMS
        self._worth = 0
        self._left = n
        #: While their number is not known, chunks of twice the size come after so many.
        self._step = CHUNKS_PER_WORKER * self._n_workers
        self._n_sent = 0
        self._first = 1 if n is None else -(-n // self._step)
        self.size = min(self._first, MAX_ITEMS)

    @classmethod
    def fixed(cls, size: int, n_workers: int) -> Pace:
        """Return a pace that never changes."""
        pace = cls(1, n_workers)
        pace.size, pace._fixed = size, True
        return pace

    @property
    def immediate(self) -> bool:
        """Whether the next chunk is to be sent by itself: there may be a worker that has none."""
        in_time = not self._n_sent or time.monotonic() < self._hurry
        return in_time and self._n_sent < self._n_workers

    def took(self, seconds: float, n_items: int) -> None:
        """Learn how long some items took."""
        self._worth = int(WORTH * n_items / max(seconds, 1e-9))

    def sent(self, n_items: int, n_bytes: int) -> None:
        """Learn from a chunk that was sent."""
        self._n_sent += 1
        if self._fixed:
            return
        self._most = min(MAX_ITEMS, max(1, n_items * MAX_BYTES // max(1, n_bytes)))
        if self._left is None:
            if self._n_sent % self._step == 0:
                self._first *= 2
            size = max(self._first, self._worth)
        else:
            self._left = max(0, self._left - n_items)
            size = self._guided(self._left // self._n_workers)
        self.size = max(1, min(size, self._most))

    def _guided(self, share: int) -> int:
        """Return the size of the next chunk, where `share` is left for each worker."""
        size = min(self._first, max(share // TAIL, self._first // SHRINK))
        return max(size, min(self._worth, max(share // 2, self._worth // 4)))


def chunks(items: Iterable[Any], pace: Pace) -> Iterator[list[Any]]:
    """Yield lists of successive items, of the size that `pace` says at each time."""
    iterator = iter(items)
    if isinstance(items, list | tuple | range):
        while chunk := list(islice(iterator, pace.size)):
            yield chunk
        return
    chunk = []
    begun = time.monotonic()
    for item in iterator:
        chunk.append(item)
        if len(chunk) >= pace.size or time.monotonic() > begun + MAX_WAIT:
            yield chunk
            chunk, begun = [], time.monotonic()
    if chunk:
        yield chunk


#: Number of workers that chunks are cut for, when it is not known how many there are.
ASSUMED_WORKERS = 8


def task_of(
    table: JobTable,
    function: FunctionPickle,
    payload: Payload,
    options: Options,
    span: ItemRanges = (),
) -> Task:
    """Return the message that calls `function` on the items of `payload`; or on `span` of them."""
    table.function = function
    return payload.task(table.job, function, options, span)


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
def opening(session: Session, fn: Callable[..., Any], name: str, lane: str) -> Iterator[JobTable]:
    """Yield the table of a new job; if what follows fails, or is interrupted, it is cancelled."""
    table = None
    try:
        with uninterrupted():
            table = session.new_table(fn, name, lane)
            table.growing = True
            session.register(table)
        yield table
    except BaseException:
        if table is not None:
            give_up(session, table, range(len(table)))
        raise


def give_up(session: Session, table: JobTable, items: Iterable[int]) -> None:
    """Cancel what was submitted of a job whose submission failed."""
    session.cancel(table, items)
    session.stop_growing(table)


def call_of(iterables: tuple[Iterable[Any], ...]) -> tuple[str, Iterable[Any]]:
    """Return how the items of a map are called, as in `Task`, and the items."""
    if len(iterables) == 1:
        return "map", iterables[0]
    return "starmap", zip(*iterables, strict=False)


def send_chunks(
    session: Session,
    table: JobTable,
    function: FunctionPickle,
    iterables: tuple[Iterable[Any], ...],
    pace: Pace,
) -> Iterator[int]:
    """Submit chunk after chunk, as this is iterated; yield how many items each has."""
    call, source = call_of(iterables)
    options = table.options
    try:
        for piece in chunks(source, pace):
            session.check_open()
            what = f"an item of {function.name}()"
            generators: list[Any] = []
            first, value_store = len(table), session.large.value_store
            data = dump(piece, what, value_store, first=first, generators=generators)
            if generators:
                session.repeats.items(function.name, generators, len(piece))
            payload = Payload(len(table), len(piece), call, data)
            with uninterrupted():
                table.add(payload)
            task = task_of(table, function, payload, options)
            session.submit(table, task, options.delay, immediate=pace.immediate)
            for news in table.reports(-1):
                if news.kind == "finished":
                    pace.took(news.seconds, size(news.span))
            pace.sent(len(piece), size_of(data))
            yield len(piece)
    except BaseException:
        session.cancel(table, range(len(table)))
        raise
    finally:
        session.stop_growing(table)


class InputFeeder:
    """Submits more items as results are taken, never more than `buffersize` ahead."""

    def __init__(
        self, session: Session, table: JobTable, sends: Iterator[int], buffersize: int
    ) -> None:
        self._session = session
        self._table = table
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
            if not self._exhausted and n_taken > len(self._table):
                self._session.check_open()
            while self._table.growing and len(self._table) - n_taken < self._buffersize:
                self._exhausted = next(self._sends, None) is None


def submit_when_done(
    session: Session, call: CallFuture[Any], needed: list[TaskFuture[Any]]
) -> None:
    """Submit a call once the results that it needs are there; fail it if one of them fails."""
    missing, lock = set(range(len(needed))), threading.Lock()

    def one_is_done(index: int, future: TaskFuture[Any]) -> None:
        with lock:  # two may be done at once, in two threads
            missing.remove(index)
            is_last = not missing
        if call.done():
            return
        try:
            error = future.exception()
            if error is None and is_last:
                value_store = session.large.value_store
                results = [dump(f.result(), f"the result of {f.id}", value_store) for f in needed]
                call.args = dump(Dependent(call.args, results), "arguments", value_store)
                session.send_call(call)
        except BaseException as failure:  # noqa: BLE001 - it is the dependent call that fails
            error = failure
        if error is not None:
            session.fail(call.group, error, [call.index])

    for index, future in enumerate(needed):
        future.add_done_callback(functools.partial(one_is_done, index))


def recall(session: Session, call: CallFuture[Any], arguments: Any) -> bool:
    """Return whether the call's result is cached; then the future has it.

    If it is not cached, it will be, once the call is done.

    Parameters
    ----------
    arguments
        (args, kwargs).
    """
    from ..objects.stable_hash import stable_hash  # needs cloudpickle, which is slow to import

    names = f"{stable_hash(call.fn)}{stable_hash(arguments)}".encode()
    digest = hashlib.blake2b(names, digest_size=16, person=b"nbq call").hexdigest()
    try:
        body = session.ask(lambda store: store.get_value(digest))
    except SignatureError:  # counted and set aside; a good one takes its place
        body = None
    if body is None:
        call.add_done_callback(lambda done: _remember(session, digest, done))
        return False
    session.take(Event(kind="finished", job=call.job, n=call.index, worker="kept", body=body))
    return True


def _remember(session: Session, digest: str, future: Any) -> None:
    if future.cancelled() or future.exception() is not None:
        return
    body = dump_outcomes([future.result()], {}, lambda _: future.id)
    session.send(Command(lambda store: store.put_value(digest, body), lambda _: None, len(body)))
