"""How the items of a map become messages."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Any, NamedTuple

from ..errors import JobNotFound, NbstreamqError
from ..objects.functions import FunctionPickle
from ..objects.large_values import size_of
from ..objects.pickling import dump, load
from ..wire.item_ranges import size
from ..wire.records import Chunk
from ..wire.store import Store
from .error_notes import Payload
from .sender import Command
from .session import Session
from .table import JobTable
from .waiting import uninterrupted

#: Chunks for each worker, if all were of the usual size. More let results come in order, since each
#: worker has a chunk in work; fewer cost fewer messages.
CHUNKS_PER_WORKER = 10
#: How many chunks for each worker have one item, so that the first results come soon; and by what
#: the next ones are larger, up to the usual size. More single ones cost more messages.
N_SINGLE, GROWTH = 2, 32
#: What part of a worker's share of the rest a chunk is, towards the end; and how much smaller than
#: usual the last may be. More let workers end closer together, and cost more messages.
TAIL, SHRINK = 2, 8
#: Seconds of work that are worth a message: so much is in a chunk, as far as is known, and towards
#: the end a quarter of it. Longer costs less for each item, and balances later.
WORTH = 0.002
#: Seconds in which the first chunks, one for each worker, are sent one by one: a worker may ask for
#: several at a time. Longer delays what comes behind them where the server is far away.
HURRY = 0.005
#: Where the number of items is not known: so many chunks for each worker, then larger ones.
DOUBLE_AFTER = 6
#: Number of workers that chunks are cut for, when it is not known how many there are.
ASSUMED_WORKERS = 8
#: Most items, and bytes, in a chunk. Larger ones are copied more often than they need be.
MAX_ITEMS, MAX_BYTES = 10_000, 2**18
#: How many chunks of coroutines a worker runs at the same time, at least, if it may run so many.
#: More let results come sooner; fewer cost fewer messages.
CONCURRENT_CHUNKS = 4
#: Seconds that an item may wait for others to fill its chunk, where the items come slowly.
MAX_WAIT = 0.02
#: Iterators whose items never come slowly.
_PROMPT: tuple[type, ...] = (type(iter([])), type(iter(())), type(iter(range(0))))


class ChunkSizer:
    """Decides how large the next chunk is.

    Parameters
    ----------
    n
        Number of items, where it is known.
    n_workers
        For how many workers.
    most
        Most items in a chunk.
    """

    def __init__(self, n: int | None, n_workers: int, most: int = MAX_ITEMS) -> None:
        self._n_workers = max(1, n_workers)
        self._fixed = False
        self._hurry = time.monotonic() + HURRY
        self._limit = self._most = most
        self._worth = 0
        self._left = n
        self._n_sent = 0
        self._usual = 1 if n is None else -(-n // (CHUNKS_PER_WORKER * self._n_workers))
        #: The usual size, as far as chunks have grown.
        self._grown = self.size = 1

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        n_workers: int,
        concurrency: int | None = None,
        *,
        chunksize: int | str,
        buffersize: int | None,
    ) -> ChunkSizer:
        """Return how the items of a map are to be cut.

        Parameters
        ----------
        n_workers
            0 if it is not known.
        concurrency
            How many items a worker runs at the same time, if they are coroutines. Each of these
            places counts as a worker.
        chunksize, buffersize
            As for `TaskQueue.map`.
        """
        n_workers = (n_workers or ASSUMED_WORKERS) * (concurrency or 1)
        # An item has a result when its whole chunk is over, and one of them may wait for long.
        most = max(1, concurrency // CONCURRENT_CHUNKS) if concurrency else MAX_ITEMS
        if isinstance(chunksize, int):
            size = min(chunksize, buffersize or chunksize, concurrency or chunksize)
            return cls.fixed(size, n_workers)
        if buffersize is not None:
            return cls.fixed(min(most, max(1, buffersize // (4 * n_workers))), n_workers)
        return cls(inputs.n, n_workers, most)

    @classmethod
    def fixed(cls, size: int, n_workers: int) -> ChunkSizer:
        """Return a sizer that never changes."""
        sizer = cls(1, n_workers)
        sizer.size, sizer._fixed = size, True
        return sizer

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
        self._most = min(self._limit, max(1, n_items * MAX_BYTES // max(1, n_bytes)))
        if self._left is None:
            if self._n_sent % (DOUBLE_AFTER * self._n_workers) == 0:
                self._usual *= 2
            size = max(self._usual, self._worth)
        else:
            self._left = max(0, self._left - n_items)
            size = self._guided(self._left // self._n_workers)
        self.size = max(1, min(size, self._most))

    def _guided(self, share: int) -> int:
        """Return the size of the next chunk, where `share` is left for each worker."""
        if self._n_sent >= N_SINGLE * self._n_workers and self._n_sent % self._n_workers == 0:
            self._grown = min(self._usual, GROWTH * self._grown)
        usual = self._grown
        size = min(usual, max(share // TAIL, self._usual // SHRINK))
        return max(size, min(self._worth, max(share // 2, self._worth // 4)))


def chunks(items: Iterable[Any], sizer: ChunkSizer) -> Iterator[list[Any]]:
    """Yield lists of successive items, of the size that `sizer` says at each time."""
    iterator = iter(items)
    if isinstance(iterator, _PROMPT):
        while chunk := list(islice(iterator, sizer.size)):
            yield chunk
        return
    chunk = []
    begun = time.monotonic()
    for item in iterator:
        chunk.append(item)
        if len(chunk) >= sizer.size or time.monotonic() > begun + MAX_WAIT:
            yield chunk
            chunk, begun = [], time.monotonic()
    if chunk:
        yield chunk


class Inputs(NamedTuple):
    """What a map calls its function with.

    Attributes
    ----------
    call
        How the function is called with an item, as in `Task`.
    items
        An item for each call.
    n
        How many there are; None if it is not known.
    """

    call: str
    items: Iterable[Any]
    n: int | None

    @classmethod
    def zipped(cls, iterables: tuple[Iterable[Any], ...]) -> Inputs:
        """Return the inputs of a call for each item of the shortest of `iterables`."""
        sizes = [len(i) for i in iterables if isinstance(i, Sized)]
        n = min(sizes, default=0) if len(sizes) == len(iterables) else None
        if len(iterables) == 1:
            return cls("map", iterables[0], n)
        return cls("starmap", zip(*iterables, strict=False), n)

    @classmethod
    def starred(cls, items: Iterable[Iterable[Any]]) -> Inputs:
        """Return the inputs of a call for each item, which has all arguments."""
        return cls("starmap", items, len(items) if isinstance(items, Sized) else None)


class InputFeeder:
    """Submits the items of a map, chunk after chunk.

    Parameters
    ----------
    table
        The map's.
    items
        What is still to be submitted.
    sizer
        Says how large the chunks are.
    buffersize
        How many items may be submitted whose results are not taken; None: all.
    first
        Number of the first of `items` in the job.
    """

    def __init__(
        self,
        session: Session,
        table: JobTable,
        function: FunctionPickle,
        items: Iterable[Any],
        *,
        sizer: ChunkSizer,
        buffersize: int | None,
        first: int = 0,
    ) -> None:
        self._session = session
        self._table = table
        self._function = table.function = function
        self._chunks = chunks(items, sizer)
        self._sizer = sizer
        self._buffersize = sys.maxsize if buffersize is None else buffersize
        #: The end of what was submitted here: events of another client may have lengthened the
        #: table of a named job.
        self._end = first
        self._has_begun = self._has_ended = False
        #: Several threads may take results. Reentrant: the inputs may do so, too.
        self._lock = threading.RLock()

    def __call__(self, n_taken: int = 0) -> None:
        """Submit what there is room for, when `n_taken` results were taken.

        If that fails or is interrupted, the job is cancelled. A job with a name goes on, without an
        end: the same call again submits the rest.

        Raises
        ------
        QueueClosed
            No result is left, and more inputs can't be submitted.
        """
        with self._lock:
            try:
                self._feed(n_taken)
            except BaseException:
                self._has_ended = True
                if not self._table.title:
                    self._session.cancel(self._table, range(len(self._table)))
                    self._session.stop_growing(self._table)
                raise

    def _feed(self, n_taken: int) -> None:
        table = self._table
        if not self._has_begun:
            self._has_begun = True
            if not table.title:
                with uninterrupted():
                    table.growing = True
                    self._session.register(table)
        if n_taken > len(table) and not self._has_ended:
            self._session.check_open()
        while table.growing and not self._has_ended and self._end - n_taken < self._buffersize:
            if chunk := next(self._chunks, None):
                self._submit(chunk)
            else:
                self._has_ended = True
                self._say_the_end()

    def _submit(self, chunk: list[Any]) -> None:
        session, table, options = self._session, self._table, self._table.options
        session.check_open()
        generators: list[Any] = []
        # What is kept must not refer to values that go with this session.
        value_store = None if table.title else session.large.value_store
        what = f"an item of {table.name}()"
        data = dump(chunk, what, value_store, first=self._end, generators=generators)
        if generators:
            session.repeats.items(table.name, generators, len(chunk))
        payload = Payload(self._end, len(chunk), table.call, data)
        self._end += len(chunk)
        if table.title:
            self._append(payload, chunk)
        else:
            with uninterrupted():
                table.add(payload)
            task = payload.task(table.job, self._function, options)
            session.submit(table, task, options.delay, immediate=self._sizer.immediate)
        for news in table.reports(-1):
            if news.kind == "finished":
                self._sizer.took(news.seconds, size(news.span))
        self._sizer.sent(len(chunk), size_of(data))

    def _append(self, chunk: Payload, items: list[Any]) -> None:
        """Add a chunk to a named job on the server, which keeps its inputs, and submit it."""
        from ..objects.stable_hash import inputs_hash  # needs cloudpickle, which is slow to import

        session, table, function = self._session, self._table, self._function
        digest, lane, options = inputs_hash(items), table.lane, table.options
        table.add(chunk._replace(args=b""))

        def carry_out(store: Store) -> None:
            part, mark = chunk, digest
            while not store.append_chunk(
                table.job,
                Chunk(part.n, part.n_items, mark),
                part.args,
                lane=lane,
                delay=options.delay,
                task=store.encode_task(part.task(table.job, function, options)),
            ):
                # Another client was first, or this is the second time; or it can't be there at all.
                record = store.job_record(table.job)
                if record is None:
                    raise JobNotFound(f"Job {table.title!r} was deleted while it was submitted.")
                n_there = record.n_items - part.n
                if n_there < 0:
                    raise NbstreamqError(f"What comes before item {part.n} was refused.")
                if n_there >= part.n_items:
                    return
                rest = load(part.args)[n_there:]  # the other client has cut the items in other ways
                part = Payload(record.n_items, len(rest), table.call, dump(rest, "items"))
                mark = inputs_hash(rest)

        # If it is refused, the whole table fails: the next call goes on where the server ends.
        fail = functools.partial(session.fail, table)
        session.send(Command(carry_out, fail, 2 * len(chunk.args) + 500))

    def _say_the_end(self) -> None:
        table, n_items = self._table, self._end
        if table.title:  # an event says so to all clients
            close = functools.partial(Store.close_job, job=table.job, n_items=n_items)
            self._session.send(Command(close, lambda _: None))
        else:
            self._session.stop_growing(table)
