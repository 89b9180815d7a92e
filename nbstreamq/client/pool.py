"""A queue with the methods of `multiprocessing.Pool`, for code that was written for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from ..tracebacks import concise
from .future import TaskFuture
from .job import Job

T = TypeVar("T")
#: Called with a result.
Callback = Callable[[Any], object]
ErrorCallback = Callable[[BaseException], object]


class PoolResult(Generic[T]):
    """What the asynchronous methods of a `Pool` return.

    Parameters
    ----------
    work
        The call or the job whose result it is.
    callback, error_callback
        Called with the result, or with the exception, once it is there.
    """

    def __init__(
        self,
        work: TaskFuture[T] | Job[Any],
        callback: Callback | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> None:
        self._work = work
        self._callback, self._error_callback = callback, error_callback
        if callback or error_callback:
            work.add_done_callback(self._call_back)

    def _call_back(self, _work: object) -> None:
        try:
            result = self._work.result()
        except Exception as error:  # noqa: BLE001 - whatever the call raised
            if self._error_callback:
                self._error_callback(error)
        else:
            if self._callback:
                self._callback(result)

    @concise
    def get(self, timeout: float | None = None) -> T:
        """Return the result, or raise the exception of the call.

        Raises
        ------
        multiprocessing.TimeoutError
            The result is not there after `timeout` seconds. The call goes on.
        """
        try:
            return self._work.result(timeout)  # type: ignore[return-value]  # a list, of a job
        except TimeoutError:
            self._check_in_time(timeout)
            raise  # the call raised it

    def _check_in_time(self, timeout: float | None) -> None:
        if not self.ready():
            import multiprocessing  # slow to import

            text = f"No result after {timeout} s. The call goes on."
            raise multiprocessing.TimeoutError(text) from None

    @concise
    def wait(self, timeout: float | None = None) -> None:
        """Return when the result is there, or after `timeout` seconds."""
        try:
            self._work.result(timeout)
        except Exception:  # noqa: BLE001 - `get` raises it
            return

    def ready(self) -> bool:
        """Return whether the call is over."""
        return self._work.done()

    @concise
    def successful(self) -> bool:
        """Return whether the call raised no exception.

        Raises
        ------
        ValueError
            The call is not over.
        """
        self._check_over()
        try:
            self._work.result()
        except Exception:  # noqa: BLE001 - `get` raises it
            return False
        return True

    def _check_over(self) -> None:
        if not self.ready():
            raise ValueError("The call is not over: wait() for it first.")


class Pool:
    """The methods of `multiprocessing.Pool` on a queue.

    The pool has no workers of its own. Its methods differ from those of the queue: `map` waits and
    returns a list, and leaving a ``with`` block cancels what is not over.

    Parameters
    ----------
    queue
        The `TaskQueue` that the calls go to.

    Examples
    --------
    >>> with q.pool() as pool:
    ...     result = pool.apply_async(pow, (2, 10))
    ...     result.get(), list(pool.imap(abs, [-1, -2]))
    (1024, [1, 2])
    """

    # `TaskQueue` imports this module: it is not named as a type here.
    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._is_closed = False
        #: Calls and jobs that are not over.
        self._open: set[TaskFuture[Any] | Job[Any]] = set()

    @property
    def size(self) -> int:
        """Number of workers; see `TaskQueue.size`."""
        size: int = self._queue.size
        return size

    # -- one call ------------------------------------------------------------------------------

    @concise
    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> T:
        """Return ``func(*args, **kwds)``, called on a worker."""
        return self.apply_async(func, args, kwds).get()

    @concise
    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> PoolResult[T]:
        """Call ``func(*args, **kwds)`` on a worker, and return at once."""
        self._check_open()
        future: TaskFuture[T] = self._queue.submit(func, *args, **(kwds or {}))
        self._watch(future)
        return PoolResult(future, callback, error_callback)

    # -- a call for each item ------------------------------------------------------------------

    @concise
    def map(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[T]:
        """Return the list of ``func(item)`` for each item.

        Parameters
        ----------
        chunksize
            Number of items in one message. None: as many as suit.
        """
        return self.map_async(func, iterable, chunksize).get()

    @concise
    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> PoolResult[list[T]]:
        """Do as `map`, and return at once."""
        return PoolResult(self._map("map", func, iterable, chunksize), callback, error_callback)

    @concise
    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """Return the list of ``func(*item)`` for each item."""
        return self.starmap_async(func, iterable, chunksize).get()

    @concise
    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: ErrorCallback | None = None,
    ) -> PoolResult[list[T]]:
        """Do as `starmap`, and return at once."""
        return PoolResult(self._map("starmap", func, iterable, chunksize), callback, error_callback)

    @concise
    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> Iterator[T]:
        """Return an iterator over ``func(item)`` for each item, in their order."""
        return self._map("map", func, iterable, chunksize)

    @concise
    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> Iterator[T]:
        """Return an iterator over ``func(item)`` for each item, in the order in which they end."""
        job = self._map("map", func, iterable, chunksize)
        return map(TaskFuture.result, job.as_completed())

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls. The queue still does."""
        self._is_closed = True

    def terminate(self) -> None:
        """Take no more calls, and cancel those that are not over."""
        self.close()
        for work in list(self._open):
            work.cancel()

    @concise
    def join(self) -> None:
        """Return when all calls are over.

        Raises
        ------
        ValueError
            The pool is neither closed nor terminated.
        """
        self._check_closed()
        for work in list(self._open):
            PoolResult(work).wait()

    @concise
    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.terminate()

    def _map(
        self,
        method: str,
        func: Callable[..., T],
        iterable: Iterable[Any],
        chunksize: int | None,
    ) -> Job[T]:
        self._check_open()
        submit = getattr(self._queue, method)
        job: Job[T] = submit(func, iterable, chunksize="auto" if chunksize is None else chunksize)
        self._watch(job)
        return job

    def _watch(self, work: TaskFuture[Any] | Job[Any]) -> None:
        self._open.add(work)
        work.add_done_callback(self._open.discard)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("The pool is closed: q.pool() returns another one.")

    def _check_closed(self) -> None:
        if not self._is_closed:
            raise ValueError("The pool is still open: call close() or terminate() first.")
