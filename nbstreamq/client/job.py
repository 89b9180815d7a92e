"""`Job`: the calls of one map, in order."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from itertools import chain
from socket import gethostname
from typing import Any, Generic, TypeVar, cast, overload
from weakref import WeakValueDictionary

from ..arguments import check_callable, check_timeout
from ..protocol.states import State
from .delay import survey
from .frame import frame_of
from .future import TaskFuture
from .keeping import delete, keep
from .ledger import Ledger
from .rerun import rerun
from .session import Session

__all__ = ["Job"]

T = TypeVar("T")


class Job(Generic[T]):
    """An ordered collection of calls.

    Iterating yields results in the order of the inputs, each as soon as it and those before it are
    there; a call that failed raises its exception there. ``job[i]`` is the `TaskFuture` of item i.

    Examples
    --------
    >>> job = q.map(pow, [1, 2, 3], [2, 2, 2])  # doctest: +SKIP
    >>> list(job)  # doctest: +SKIP
    [1, 4, 9]
    """

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        *,
        deadline: float | None = None,
        feed: Callable[[int], None] | None = None,
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._deadline = deadline
        #: Submits more inputs, where they are taken as the results are; given the number taken.
        self._feed = feed
        self._next = 0
        self._n_reruns = ledger.n_reruns
        self._lock = threading.Lock()
        self._futures: WeakValueDictionary[int, TaskFuture[T]] = WeakValueDictionary()

    # -- results in order ----------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of calls submitted so far."""
        return len(self._ledger)

    def __iter__(self) -> Iterator[T]:
        if self._feed:
            return self
        return self._results()

    def __next__(self) -> T:
        __tracebackhide__ = True
        if self._feed:
            self._feed(self._next)
        if self._next >= len(self._ledger):
            raise StopIteration
        self._next += 1
        result = self._result(self._next - 1)
        if self._feed:
            self._ledger.release(self._next - 1)
        return result

    def _results(self) -> Iterator[T]:
        return chain.from_iterable(self._parts())

    def _parts(self) -> Iterator[list[T]]:
        """Yield the results in order, as many at a time as are there."""
        __tracebackhide__ = True
        index = 0
        while index < len(self._ledger):
            ready = self._ledger.values_from(index) or [self._result(index)]
            yield ready
            index += len(ready)

    def _result(self, index: int) -> T:
        __tracebackhide__ = True
        ledger = self._ledger
        if not ledger.has_ended(index):
            self._wait(lambda: ledger.has_ended(index), index)
        if ledger.state(index) is State.DONE:
            return cast("T", ledger.value(index))
        return self[index].result(0)

    def _wait(self, is_reached: Callable[[], bool], index: int) -> None:
        __tracebackhide__ = True
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self._session.wait_until(self._ledger, is_reached, left):
            raise TimeoutError(
                f"Item {index} of job {self.id} ({self._ledger.name}) has no result in time;"
                f" {self._ledger.n_over} of {len(self)} are over. The job goes on."
            )

    def result(self, timeout: float | None = None) -> list[T]:
        """Return all results in order; raises the first exception in that order, once all are over.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits for ever, what is negative not at all.

        Raises
        ------
        TimeoutError
            Not all calls are over yet; they go on.
        """
        __tracebackhide__ = True
        self.wait(timeout)
        return list(self._results())

    def wait(self, timeout: float | None = None) -> None:
        """Return when all calls are over, whatever became of them; TimeoutError if not in time."""
        __tracebackhide__ = True
        timeout = check_timeout("timeout", timeout)
        if not self._session.wait_until(self._ledger, self._ledger.check_over, timeout):
            raise TimeoutError(
                f"Job {self.id} ({self._ledger.name}) goes on: {self._ledger.n_over} of"
                f" {len(self)} are over after {timeout:g} s."
            )

    # -- one by one ----------------------------------------------------------------------------

    @overload
    def __getitem__(self, index: int) -> TaskFuture[T]: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture[T]]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[T] | list[TaskFuture[T]]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self._future(i) for i in places]
        return self._future(places)

    def _future(self, index: int) -> TaskFuture[T]:
        with self._lock:
            if self._n_reruns != self._ledger.n_reruns:
                # Those that failed stay so; their items have new futures.
                self._n_reruns = self._ledger.n_reruns
                kept = {i: f for i, f in self._futures.items() if not _has_failed(f)}
                self._futures = WeakValueDictionary(kept)
            future = self._futures.get(index)
            if future is None:
                future = self._futures[index] = TaskFuture(self._session, self._ledger, index)
                self._ledger.attach(index, future)
            return future

    def as_completed(self, timeout: float | None = None) -> Iterator[TaskFuture[T]]:
        """Yield the futures in the order in which they end.

        Raises
        ------
        TimeoutError
            The next one has not ended within `timeout` seconds from this call.
        """
        timeout = check_timeout("timeout", timeout)
        return self._in_turn(None if timeout is None else time.monotonic() + timeout)

    def _in_turn(self, deadline: float | None) -> Iterator[TaskFuture[T]]:
        """Yield the futures in the order in which they end."""
        __tracebackhide__ = True
        ledger, n_seen = self._ledger, 0
        ended = ledger.ended()
        seen: set[int] = set()  # an item that is run again ends again
        while n_seen < len(ended) or not ledger.is_over:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._session.wait_until(
                ledger, functools.partial(ledger.has_more_ended, n_seen), left
            ):
                raise TimeoutError(f"Job {self.id}: {len(self) - ledger.n_over} calls are not over")
            for span in ended[n_seen:]:
                n_seen += 1
                for index in span:
                    if index not in seen and ledger.has_ended(index):
                        seen.add(index)
                        yield self._future(index)

    # -- asyncio -------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, list[T]]:
        return asyncio.to_thread(self.result).__await__()

    async def __aiter__(self) -> AsyncIterator[T]:
        for index in range(len(self)):
            yield await self._future(index)

    # -- the job as a whole --------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of the job, as in errors and logs."""
        return self._ledger.job

    @property
    def name(self) -> str:
        """The name it was given, else that of the function."""
        return self._ledger.title or self._ledger.name

    @property
    def ledger(self) -> Ledger:
        """All that is known of the calls: for views."""
        return self._ledger

    def survey(self) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the workers there are, and why none may run the calls; empty if one may."""
        return survey(self._session, self._ledger)

    @property
    def errors(self) -> dict[int, BaseException]:
        """Index -> exception of the calls that have failed so far."""
        return self._ledger.errors()

    @property
    def logs(self) -> dict[int, str]:
        """Index -> what the call printed so far, of those that printed."""
        texts = {i: self._ledger.output.text(i) for i in range(len(self))}
        return {i: text for i, text in texts.items() if text}

    def counts(self) -> dict[State, int]:
        """Return how many calls are waiting, running, done, failed and cancelled."""
        return self._ledger.counts()

    def to_frame(self) -> Any:
        """Return a pandas DataFrame of what is known now, a row for each call; waits for nothing.

        Returns
        -------
        pandas.DataFrame
            ``item``: index in the job. ``status``: `State` as text. ``value``: the result; None
            unless it is done, and where it was taken from a job with a `buffersize`. ``error``:
            text of the exception, or None; the exceptions themselves are in `errors`. ``worker``
            and ``attempts``: who ran it last, and how often it was begun. ``started`` (UTC) and
            ``seconds``: of the run that decided it; items of a chunk share those of the chunk.
            ``output``: what it printed.

        Raises
        ------
        NbstreamqError
            pandas is not installed.
        """
        return frame_of(self._ledger)

    def done(self) -> bool:
        """Return whether all calls are over."""
        return self._ledger.is_over

    def retry_failed(self, fn: Callable[..., Any] | None = None) -> Job[T]:
        """Run the calls that failed once more: the same job, the same order.

        Parameters
        ----------
        fn
            A mended function, called with the same arguments; None: the same one.

        Returns
        -------
        Job
            This one. Futures of calls that had failed stay as they are; ``job[i]`` is a new one.

        Raises
        ------
        NbstreamqError
            The arguments of a call are not kept any more.

        Examples
        --------
        >>> job.retry_failed(mended).result()  # doctest: +SKIP
        """
        if fn is not None:
            check_callable("fn", fn, instead="None")
        rerun(self._session, self._ledger, {State.FAILED}, fn)
        return self

    def add_worker(self) -> None:
        """Start one more local worker than there is, whichever kernel started those."""
        workers, _ = self.survey()
        self._session.scale(1 + sum(d.get("host") == gethostname() for d in workers.values()))

    def keep(self) -> None:
        """Keep this named job until it is deleted; others are forgotten after a week of rest."""
        keep(self._session, self._ledger)

    def delete(self) -> None:
        """Forget this named job and its results, everywhere; what is not done is cancelled."""
        delete(self._session, self._ledger)

    def cancel(self) -> bool:
        """Cancel all calls that are not over; return whether there were any."""
        if self.done():
            return False
        self._session.cancel(self._ledger, range(len(self)))
        return True

    def add_done_callback(self, fn: Callable[[Job[T]], object]) -> None:
        """Call ``fn(job)`` when all calls are over; at once if they are."""
        check_callable("fn", fn)
        self._ledger.when_over(lambda: fn(self))

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.counts().items() if n)
        return f"<Job {self.id} {self._ledger.name}: {counts or 'empty'}>"


def _has_failed(future: TaskFuture[Any]) -> bool:
    return future.cancelled() or (future.done() and future.exception() is not None)
