"""`Job`: the calls of one map, in order, and how failed ones run again."""

from __future__ import annotations

import asyncio
import functools
import importlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast, overload

from ..arguments import check_callable, check_choice, check_count, check_timeout, shown
from ..errors import JobChanged, JobNotFound, NbstreamqError, NotPicklable
from ..home import how_to_start
from ..objects.functions import FunctionPickle
from ..tracebacks import concise, raise_of_task, shorten
from ..wire.item_ranges import ranges_of
from ..wire.messages import Options, State, Task
from ..wire.records import DeadEntry, JobRecord
from ..wire.store import Store
from ..worker_context import WorkerContext
from .error_notes import RunInfo, error_text
from .estimate import Estimate, estimate_of
from .future import ItemFuture, TaskFuture
from .session import Session
from .table import JobTable
from .workers import LOOK_PATIENCE


def frame_of(table: JobTable) -> Any:
    """Return the DataFrame of a job, a row for each item; see `Job.to_frame`."""
    pandas = _pandas()
    reports = _last_reports(table)
    states = [table.state(i) for i in range(len(reports))]
    values = [table.value(i) if s is State.DONE else None for i, s in enumerate(states)]
    errors = table.errors()
    printed = [table.output.text(i) for i in range(len(states))]

    def objects(column: Sequence[Any]) -> Any:
        # Else None would become nan, and arrays of equal length further columns.
        return pandas.Series(column, dtype=object)

    starts = [r.started if r and r.started else None for r in reports]
    seconds = [_seconds(r, s) for r, s in zip(reports, states, strict=True)]
    return pandas.DataFrame(
        {
            "item": range(len(states)),
            "status": pandas.Series([str(s) for s in states], dtype=object),
            "value": _numbers(objects(values)),
            "error": objects(
                [error_text(errors[i]) if i in errors else None for i in range(len(states))]
            ),
            "worker": objects([r.worker if r else None for r in reports]),
            "attempts": pandas.Series([r.attempt if r else 0 for r in reports], dtype=int),
            "started": pandas.to_datetime(pandas.Series(starts, dtype=float), unit="s", utc=True),
            "seconds": pandas.Series(seconds, dtype=float),
            "output": objects(printed),
        }
    )


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise NbstreamqError(
            f"to_frame() needs pandas, which can't be imported here ({error}): pip install pandas"
        ) from None


def _last_reports(table: JobTable) -> list[RunInfo | None]:
    """Return the last news of each item; None if there is no news."""
    news = table.reports(0)
    last: list[RunInfo | None] = [None] * len(table)
    for report in news:
        for run in report.span:
            first, end = report.n + run.start, report.n + run.stop
            last[first:end] = [report] * (end - first)
    return last


def _seconds(report: RunInfo | None, state: State) -> float | None:
    """Return how long it took; None while it is not known."""
    is_known = report is not None and report.started and state in {State.DONE, State.FAILED}
    return report.seconds if report is not None and is_known else None


def _numbers(column: Any) -> Any:
    """Return a column of numbers of one type as such; any other as it is."""
    kinds = set(map(type, column))
    return column.infer_objects() if len(kinds) == 1 and kinds < {int, float, bool} else column


T = TypeVar("T")

#: Seconds that a rerun leaves to workers to drop what was cancelled.
DROP_PATIENCE = 10.0
#: Seconds that an estimate leaves to new workers to tell how much memory they use.
MEMORY_PATIENCE = 2.0
#: Seconds between two looks.
PAUSE = 0.02


class Job(Generic[T]):
    """The calls of one map: an iterator over their results, and a collection of their futures.

    Iterating yields results in the order of the inputs, each as soon as it and all earlier ones are
    there. A call that failed raises its exception; the next step goes on with the item after it. As
    with `Executor.map`, each result is yielded once: a second loop continues where the first one
    stopped. `result` returns all results, as often as you call it. ``job[i]`` is the `TaskFuture`
    of item i.

    Examples
    --------
    >>> job = q.map(pow, [1, 2, 3], [2, 2, 2])
    >>> next(job), list(job)
    (1, [4, 9])
    >>> job.result()
    [1, 4, 9]
    >>> job[2].result()
    9
    """

    def __init__(
        self,
        session: Session,
        table: JobTable,
        *,
        deadline: float | None = None,
        feed: Callable[[int], None] | None = None,
    ) -> None:
        self._session = session
        self._table = table
        self._deadline = deadline
        #: Submits more inputs, where they are taken as the results are; given the number taken,
        #: with the one that is about to be.
        self._feed = feed
        #: Results that were fetched together and not yielded yet; and the first item behind them.
        self._ready: Iterator[T] = iter(())
        self._next = 0
        self._closed = False
        self._lock = threading.Lock()

    # -- results in order ----------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of calls submitted so far."""
        return len(self._table)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        __tracebackhide__ = True
        for result in self._ready:
            return result
        try:
            return self._await_next()
        except BaseException as error:
            shorten(error)
            raise

    def _await_next(self) -> T:
        __tracebackhide__ = True
        while True:
            index = self._next
            if self._feed:
                self._feed(index + 1)
            if not self._is_reached(index):
                self._wait(functools.partial(self._is_reached, index), index)
            with self._lock:
                for result in self._ready:  # another thread has fetched some
                    return result
                if self._is_behind_the_end(index):
                    raise StopIteration
                if index == self._next:  # only now: an interrupted wait is repeated
                    return self._take(index)

    def _is_reached(self, index: int) -> bool:
        """Return whether the item is over, or there is none and none will come."""
        table = self._table
        if self._closed:
            return True
        return table.has_ended(index) if index < len(table) else not table.growing

    def _is_known(self, index: int) -> bool:
        return index < len(self._table) or not self._table.growing

    def _is_behind_the_end(self, index: int) -> bool:
        return self._closed or index >= len(self._table)

    def _take(self, index: int) -> T:
        """Return the result of an item that is over, and fetch those behind it that are there."""
        __tracebackhide__ = True
        table = self._table
        if self._feed is None and (results := table.values_from(index)):
            self._next += len(results)
            self._ready = iter(results)
            return next(self._ready)
        self._next += 1
        if table.state(index) is not State.DONE:
            raise_of_task(self._error(index))
        return cast("T", table.release(index) if self._feed else table.value(index))

    def close(self) -> None:
        """End the iteration and cancel all open calls, as the iterator of `Executor.map` does.

        A named job goes on: it belongs to the server, and others may read it.

        Examples
        --------
        >>> import contextlib
        >>> with contextlib.closing(q.map(abs, range(-100, 0))) as distances:
        ...     next(x for x in distances if x < 100)
        99
        """
        with self._lock:
            self._closed, self._ready = True, iter(())
        if not self._table.title:
            self.cancel()

    def _wait(self, is_reached: Callable[[], bool], index: int) -> None:
        __tracebackhide__ = True
        if not self._session.wait_until(self._table, is_reached, self._left):
            raise self._too_late(index)

    @property
    def _left(self) -> float | None:
        """Seconds until results are due."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _too_late(self, index: int) -> TimeoutError:
        text = (
            f"Item {index} of job {self.id} ({self._table.name}) has no result in time;"
            f" {self._table.n_over} of {len(self)} are over. The job goes on."
        )
        return TimeoutError(text)

    @overload
    def result(
        self, timeout: float | None = None, *, errors: Literal["raise"] = "raise"
    ) -> list[T]: ...
    @overload
    def result(
        self, timeout: float | None = None, *, errors: Literal["return"]
    ) -> list[T | BaseException]: ...
    @concise
    def result(
        self, timeout: float | None = None, *, errors: str = "raise"
    ) -> list[T] | list[T | BaseException]:
        """Return the list of all results in input order.

        Parameters
        ----------
        timeout
            Seconds to wait. None: no limit. Zero or less: do not wait.
        errors
            ``"raise"``: if calls failed, raise the exception of the first one in that order, after
            all calls are over. ``"return"``: return the exception of each such call, in the place
            of its result; of a call that was cancelled, a `CancelledError`.

        Raises
        ------
        TimeoutError
            Not all calls are over. They go on.
        NbstreamqError
            The job has a `buffersize`, so its results can only be iterated.

        Examples
        --------
        >>> q.map(abs, [-1, -2]).result()
        [1, 2]
        >>> q.map(lambda x: 60 // x, [0, 1]).result(errors="return")
        [ZeroDivisionError('integer division or modulo by zero'), 60]
        """
        __tracebackhide__ = True
        returns = check_choice("errors", errors, ("raise", "return")) == "return"
        self.wait(timeout)
        if self._feed and self._next:
            raise self._incomplete()
        table, results = self._table, list[Any]()
        while (index := len(results)) < len(table):
            if found := table.values_from(index):
                results += found
            elif returns:
                results.append(self._error(index))
            else:
                raise_of_task(self._error(index))
        return results

    def _error(self, index: int) -> BaseException:
        """Return the exception of a call that is over and has no result."""
        future = self._future(index)
        if future.cancelled():
            return CancelledError(f"Task {future.id} ({self._table.name}) was cancelled.")
        return cast("BaseException", future.exception())

    @concise
    def wait(self, timeout: float | None = None) -> None:
        """Return when all calls are over, whether they succeeded or not.

        Parameters
        ----------
        timeout
            Seconds to wait. None: no limit. Zero or less: do not wait.

        Raises
        ------
        TimeoutError
            Not all calls are over. They go on.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2])
        >>> job.wait(timeout=60)
        >>> job.done()
        True
        """
        __tracebackhide__ = True
        timeout = check_timeout("timeout", timeout)
        if not self._wait_for_all(timeout):
            raise TimeoutError(
                f"Job {self.id} ({self._table.name}) goes on: {self._table.n_over} of"
                f" {len(self)} are over after {timeout:g} s."
            )

    def _wait_for_all(
        self, timeout: float | None, is_given_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until all calls are over, or the wait is given up; return whether it is one."""
        __tracebackhide__ = True
        if self._feed and self._table.growing:
            raise self._incomplete()
        table = self._table
        return self._session.wait_until(table, lambda: table.is_over or is_given_up(), timeout)

    def _incomplete(self) -> NbstreamqError:
        return NbstreamqError(
            f"Job {self.id} ({self._table.name}) has a buffersize: it takes its inputs as its"
            " results are taken, and does not keep those. Iterate it: `for result in job`."
        )

    def _future(self, index: int) -> TaskFuture[T]:
        make = functools.partial(ItemFuture[T], self._session, self._table)
        return cast("TaskFuture[T]", self._table.future(index, make))

    # -- one by one ----------------------------------------------------------------------------

    @overload
    def __getitem__(self, index: int) -> TaskFuture[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture[T]]: ...
    @concise
    def __getitem__(self, index: int | slice) -> TaskFuture[T] | list[TaskFuture[T]]:
        found = self._check_index(index)
        places = found if isinstance(found, range) else [found]
        if self._feed and any(i < self._next for i in places):
            raise self._incomplete()
        futures = [self._future(i) for i in places]
        return futures if isinstance(found, range) else futures[0]

    def _check_index(self, index: Any) -> int | range:
        try:
            found: int | range = range(len(self))[index]
        except IndexError:
            raise IndexError(f"index is {index}: the job has {len(self):,} calls") from None
        except TypeError:
            text = f"index is {shown(index)}: it must be an integer or a slice"
            raise TypeError(text) from None
        return found

    @concise
    def as_completed(self, timeout: float | None = None) -> Iterator[TaskFuture[T]]:
        """Yield the futures in the order in which the calls end.

        Parameters
        ----------
        timeout
            Seconds from this call until the last one must have ended. None: no limit.

        Raises
        ------
        TimeoutError
            The time is over. The calls go on.

        Examples
        --------
        >>> sorted(future.result() for future in q.map(abs, [-1, -2]).as_completed())
        [1, 2]
        """
        timeout = check_timeout("timeout", timeout)
        if self._feed:
            raise self._incomplete()
        return self._in_turn(None if timeout is None else time.monotonic() + timeout)

    def _in_turn(self, deadline: float | None) -> Iterator[TaskFuture[T]]:
        """Yield the futures in the order in which they end."""
        try:
            yield from self._as_they_end(deadline)
        except BaseException as error:
            shorten(error)
            raise

    def _as_they_end(self, deadline: float | None) -> Iterator[TaskFuture[T]]:
        __tracebackhide__ = True
        table, n_seen = self._table, 0
        ended = table.ended()
        seen: set[int] = set()  # an item that is run again ends again
        while n_seen < len(ended) or not table.is_over:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._session.wait_until(
                table, functools.partial(table.has_more_ended, n_seen), left
            ):
                text = f"Job {self.id}: {len(self) - table.n_over} calls are not over"
                raise TimeoutError(text)
            for span in ended[n_seen:]:
                n_seen += 1
                for index in span:
                    if index not in seen and table.has_ended(index):
                        seen.add(index)
                        yield self._future(index)

    # -- asyncio -------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._awaited().__await__()

    async def _awaited(self) -> list[T]:
        __tracebackhide__ = True
        if WorkerContext.current is None:
            await self._wait_in_thread()
        else:  # A loop has few threads, and each of many coroutines may wait for a job.
            over = Future[None]()
            over.set_running_or_notify_cancel()
            self._table.when_over(lambda: over.set_result(None))
            await asyncio.wrap_future(over)
        try:
            return self.result()
        except BaseException as error:
            shorten(error)
            raise

    async def _wait_in_thread(self) -> None:
        """Wait until all calls are over. The thread ends with the await: a loop waits for both."""
        given_up = threading.Event()
        try:
            await asyncio.to_thread(self._wait_for_all, None, given_up.is_set)
        finally:
            given_up.set()

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate in an event loop; ``async for`` and ``for`` share one position."""
        return self

    async def __anext__(self) -> T:
        for result in self._ready:
            return result
        try:
            return await self._await_next_in_loop()
        except BaseException as error:
            shorten(error)
            raise

    async def _await_next_in_loop(self) -> T:
        while True:
            index = self._next
            if self._feed:  # the inputs may take long, and so may a full sender
                await asyncio.to_thread(self._feed, index + 1)
            if not self._is_reached(index):
                await self._reach(index)
            with self._lock:
                for result in self._ready:
                    return result
                if self._is_behind_the_end(index):
                    raise StopAsyncIteration
                if index == self._next:
                    return self._take(index)

    async def _reach(self, index: int) -> None:
        if index >= len(self):  # another client is still submitting this job
            await asyncio.to_thread(self._wait, lambda: self._is_known(index), index)
            return
        over = asyncio.wrap_future(self._future(index))
        over.add_done_callback(_look_at)
        try:
            await asyncio.wait([over], timeout=self._left)
        except asyncio.CancelledError:
            over.cancel()  # as it would be if the future itself was awaited
            raise
        if not over.done():
            raise self._too_late(index)

    # -- the job as a whole --------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Id of the job, as in errors and logs."""
        return self._table.job

    @property
    def name(self) -> str:
        """Name of the job; for a job without one, the name of its function."""
        return self._table.title or self._table.name

    @property
    def errors(self) -> dict[int, BaseException]:
        """Item index -> exception of each call that has failed so far.

        Examples
        --------
        >>> job = q.map(int, ["1", "x"])
        >>> job.wait()
        >>> job.errors
        {1: ValueError("invalid literal for int() with base 10: 'x'")}
        """
        return self._table.errors()

    @property
    def logs(self) -> dict[int, str]:
        """Item index -> printed text of each call that has printed something so far.

        Examples
        --------
        >>> job = q.map(print, ["one"]); job.wait()
        [print 0] one
        >>> job.logs
        {0: 'one\\n'}
        """
        texts = {i: self._table.output.text(i) for i in range(len(self))}
        return {i: text for i, text in texts.items() if text}

    def counts(self) -> dict[State, int]:
        """Return how many calls are waiting, running, done, failed and cancelled.

        Examples
        --------
        >>> job = q.map(int, ["1", "2", "x"])
        >>> job.wait()
        >>> {str(state): n for state, n in job.counts().items() if n}
        {'done': 2, 'failed': 1}
        """
        return self._table.counts()

    @concise
    def estimate(self, n_items: int | None = None) -> Estimate:
        """Return what the items will take on 2, 8 and 64 workers; waits for the first result.

        It assumes that all items are like those that are over. So a few items of a large map tell
        what all of it would cost.

        Parameters
        ----------
        n_items
            Number of items to estimate for. None: those that are not over yet; all of a job that is
            over.

        Returns
        -------
        Estimate
            Seconds for any number of workers, memory of a worker, and bytes of arguments and
            results. Printed, it is a table.

        Raises
        ------
        NbstreamqError
            All items were cancelled before one of them ran.

        Examples
        --------
        >>> def slow(x):
        ...     import time
        ...     time.sleep(0.01)
        >>> estimate = q.map(slow, range(4)).estimate(n_items=8000)
        >>> estimate.n_items, estimate.seconds(8) >= 10
        (8000, True)
        """
        if n_items is not None:
            n_items = check_count("n_items", n_items, least=1, instead="None")
        session, table = self._session, self._table
        session.wait_until(table, lambda: table.n_over > 0 or table.is_over, None)
        deadline = time.monotonic() + MEMORY_PATIENCE
        while True:
            workers = session.ask_within(LOOK_PATIENCE, Store.workers)
            found = estimate_of(table, workers, n_items)
            if found is None or found.worker_bytes or time.monotonic() > deadline:
                break
            time.sleep(PAUSE)
        if found is None:
            raise NbstreamqError(
                f"No item of job {self.id} ({self._table.name}) has run, so nothing is known of how"
                " long one takes. Submit some again."
            )
        return found

    @concise
    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each call, as it is now; does not wait.

        Returns
        -------
        pandas.DataFrame
            ``item``: index in the job. ``status``: state as text. ``value``: the result; None if
            the call is not done, or if its result was read from a job with a `buffersize`.
            ``error``: text of the exception, or None; `errors` has the exceptions themselves.
            ``worker``: the worker that ran it last. ``attempts``: how often it was started.
            ``started`` (UTC) and ``seconds``: of its last run; items of a chunk share those of the
            chunk. ``output``: what it printed.

        Raises
        ------
        NbstreamqError
            pandas is not installed.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2])
        >>> job.wait()
        >>> job.to_frame()[["item", "status", "value"]]
           item status  value
        0     0   done      1
        1     1   done      2
        """
        return frame_of(self._table)

    def done(self) -> bool:
        """Return whether all calls are over.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2])
        >>> job.wait()
        >>> job.done()
        True
        """
        return self._table.is_over

    @concise
    def retry_failed(self, fn: Callable[..., Any] | None = None) -> Job[T]:
        """Run the failed calls again, in the same job and the same order.

        The iteration does not go back to items that it has passed; `result` returns all of them.

        Parameters
        ----------
        fn
            A corrected function, which is called with the same arguments. None: the same function.

        Returns
        -------
        Job
            This job. Futures of failed calls stay failed; ``job[i]`` returns a new one.

        Raises
        ------
        NbstreamqError
            The arguments of a failed call are no longer kept, or it is a named job that has failed
            only here, such as when the server refused a part of it. Nothing runs again.
        JobChanged
            Another client has run the failed calls again; `attach` to see its results.

        Examples
        --------
        >>> job = q.map(lambda x: 60 // x, [0, 1, 2])
        >>> job.wait()
        >>> job.retry_failed(lambda x: 60 // x if x else None).result()
        [None, 60, 30]
        """
        if fn is not None:
            check_callable("fn", fn, instead="None")
        self._rerun({State.FAILED}, fn)
        return self

    def _rerun(
        self,
        states: Collection[State],
        fn: Callable[..., Any] | None = None,
        options: Options | None = None,
        *,
        only: Sequence[int] | None = None,
    ) -> None:
        """Run items again that have ended; `retry_failed`, `TaskQueue.map` and dead letters do.

        They are part of the job's next run: events of earlier runs no longer count for them. Their
        dead letters are dropped.

        Parameters
        ----------
        states
            Which items: those in one of these. FAILED; in a named job also CANCELLED.
        fn
            In place of the job's function; None: the same.
        options
            Of a named job from now on; None: the same.
        only
            Of these items; None: of all.

        Raises
        ------
        NbstreamqError
            An item's arguments are no longer kept, or a named job has failed only here. Nothing was
            submitted.
        JobChanged
            Another client has run items again; `attach` to see them.
        """
        session, table = self._session, self._table
        record = self._record() if table.title else None
        if record is not None:
            table.set_chunks(record.chunks)  # another client may have added some
            options = options or Options.decode(record.about["opts"].encode())
        options, function = options or table.options, None
        deadline = time.monotonic() + DROP_PATIENCE
        while chosen := self._chosen(states, only):
            function = function or self._function(record, fn)
            if fn is not None:
                options = options.of_function(is_async=function.is_async)
            if record is not None:
                record.about.update(lane=table.lane, opts=options.encode().decode())
            tasks = list(table.tasks(chosen, function, options))
            letters = self._letters(chosen)
            if self._send_again(record, chosen, tasks):
                session.ask(Store.forget_dead, letters)
                table.fn = fn or table.fn
                break
            if time.monotonic() > deadline:
                raise NbstreamqError(
                    f"What was cancelled of job {self.name!r} still waits: no worker has come to"
                    f" drop it. Start some ({how_to_start(2)}), and try again."
                )
            time.sleep(PAUSE)

    def _record(self) -> JobRecord:
        """Return what the server keeps of this named job."""
        record = self._session.ask(Store.job_record, self.id)
        if record is None:
            raise JobNotFound(
                f"Job {self.name!r} is not there any more: it was deleted or replaced, or has"
                " expired. q.jobs() lists those there are."
            )
        return record

    def _chosen(self, states: Collection[State], only: Sequence[int] | None) -> list[int]:
        """Return those of the items `only` that are in one of `states` now."""
        table = self._table
        if table.title and self._session.table(table.job) is not table:  # it was over
            self._session.catch_up(table)
            if not table.is_over:  # another client runs items again
                self._session.register(table)
        among = range(len(table)) if only is None else only
        chosen = [i for i in among if table.state(i) in states]
        if table.failure is not None:  # last: another thread may just have failed it
            raise NbstreamqError(
                f"Job {self.name!r} has failed here, but not at the server: {table.failure} To go"
                f" on with it: q.attach({self.name!r}), or the call again that made it."
            ) from table.failure
        return chosen

    def _function(self, record: JobRecord | None, fn: Callable[..., Any] | None) -> FunctionPickle:
        """Return `fn` pickled, or the job's function; a new one is noted in the record."""
        session = self._session
        if record is None:
            return session.pickle_function(fn or self._table.fn)
        about = record.about
        if fn is None:
            session.check_open()
            session.workers.start()
            return FunctionPickle(about["fn"], b"", about["function"])
        from ..objects.stable_hash import part_hashes  # needs cloudpickle, which is slow to import

        function = session.pickle_function(fn, durable=True)
        # Now, since the tasks do not wait for what the sender has before them.
        session.ask(Store.put_function, function.digest, function.data)
        about.update(fn=function.digest, function=function.name)
        if (now := part_hashes(fn)) not in about["identities"]:
            about["identities"].append(now)
        return function

    def _letters(self, chosen: Sequence[int]) -> list[DeadEntry]:
        """Return the job's dead letters that are about nothing else once `chosen` run again."""
        found = self._session.ask(Store.letters_of, self.id)
        left = {i for i in range(len(self)) if self._table.state(i) is State.FAILED} - {*chosen}
        return [entry for entry in found if left.isdisjoint(entry.items)]

    def _send_again(
        self, record: JobRecord | None, chosen: Sequence[int], tasks: Sequence[Task]
    ) -> bool:
        """Submit the tasks of items that run again.

        Return False, and submit nothing, while cancelled ones are still in a lane.
        """
        session, table, run = self._session, self._table, self._table.run + 1
        if record is None:
            table.rerun(chosen, run)
            session.register(table)
            for task in tasks:
                session.submit(table, task, 0.0)
            return True
        answer = 0
        if record.n_reruns == table.run:
            answer = session.ask(
                Store.rerun,
                record,
                ranges_of(chosen),
                [session.encode_task(task) for task in tasks],
                lane=table.lane,
                n_cancelled=sum(table.state(i) is State.CANCELLED for i in chosen),
                token=secrets.token_hex(8),
            )
        if answer == 0:
            raise JobChanged(
                f"Job {self.name!r} was run again by another client. Call q.attach({self.name!r})"
                " again."
            )
        if answer == 1:
            table.rerun(chosen, run)  # unless the event of it was faster
            session.register(table)
        return bool(answer == 1)

    @concise
    def keep(self) -> None:
        """Keep this named job until it is deleted, instead of a week after its last call.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2], name="distances")
        >>> job.keep()
        >>> job.delete()
        """
        self._check_kept()
        self._session.ask(Store.keep_job, self.id)

    @concise
    def delete(self) -> None:
        """Delete this named job and its results for all clients; open calls are cancelled.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2], name="distances")
        >>> job.wait()
        >>> job.delete()
        >>> q.jobs()
        no named jobs
        """
        self._check_kept()
        # First: it makes room on a full server, which could not even note what is cancelled.
        self._session.ask(Store.delete_job, self._table.title, self.id)
        self._session.forget_job(self.id)

    def _check_kept(self) -> None:
        if not self._table.title:
            raise NbstreamqError(
                f"Job {self.id} has no name, so it is not kept. q.map(..., name='...') makes one"
                " that is."
            )
        self._record()

    def cancel(self) -> bool:
        """Cancel all calls that are not over; return whether there were any.

        Running calls are interrupted by an exception, and killed with their worker if they still
        run a second later.

        Examples
        --------
        >>> job = q.options(delay=3600).map(abs, [-1, -2])
        >>> job.cancel(), job.done()
        (True, True)
        """
        if self.done():
            return False
        if self._table.growing and not self._table.title:
            self._session.stop_growing(self._table)
        self._session.cancel(self._table, range(len(self)))
        return True

    @concise
    def add_done_callback(self, fn: Callable[[Job[T]], object]) -> None:
        """Call ``fn(job)`` when all calls are over; at once if they are over now.

        Examples
        --------
        >>> over = []
        >>> job = q.map(abs, [-1, -2])
        >>> job.wait()
        >>> job.add_done_callback(lambda job: over.append(job.name))
        >>> over
        ['abs']
        """
        check_callable("fn", fn)
        self._table.when_over(lambda: fn(self))

    @concise
    def __reduce__(self) -> NoReturn:
        text = (
            "A Job can't be pickled. Send its results, job.result(); a named job is found by"
            " q.attach(name)."
        )
        raise NotPicklable(text)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.counts().items() if n)
        return f"<Job {self.id} {self._table.name}: {counts or 'empty'}>"


def _look_at(over: asyncio.Future[Any]) -> None:
    """Look at an error that is raised elsewhere; otherwise asyncio logs that it was not."""
    if not over.cancelled():
        over.exception()
