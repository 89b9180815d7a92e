"""joblib's backend ``"nbstreamq"``: the calls of a `joblib.Parallel` run on the workers of a queue.

::

    Parallel ──batch──> QueueBackend.submit ──call──> queue ──> worker: Batch.run
"""

from __future__ import annotations

import functools
import hashlib
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    parallel_config,
)

from ..arguments import check_job_name
from ..errors import NbstreamqError, SignatureError
from ..objects.functions import name_of
from ..objects.pickling import dump, load
from ..objects.stable_hash import stable_hash
from ..tracebacks import trace_of, warn
from ..wire.messages import Options
from ..wire.store import Store
from ..worker_context import WorkerContext
from .progress import Loop, LoopProgress
from .queue import TaskQueue, queue_in_task

#: Arguments of functions of scikit-learn that change what they report, and not what they return.
_REPORTING = frozenset(
    {"callback_ctx", "caller", "candidate_progress", "split_progress", "verbose"}
)

_queue: TaskQueue | None = None


def default_queue() -> TaskQueue:
    """Return the queue of backends that were given none: this process has one for all of them.

    Inside a task it is the queue of that task.
    """
    global _queue  # noqa: PLW0603 - there is one for each process
    worker = WorkerContext.current
    if worker is not None:
        return queue_in_task(worker.queue, None, Options())
    if _queue is None or _queue.closed:
        _queue = TaskQueue()
    return _queue


class QueueBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # no types there
    """Runs the batches of a `joblib.Parallel` as calls of a queue.

    In the kernel, joblib gets each result in a callback, and dispatches the next batch there. In a
    worker, it has to wait for each result in turn and without callbacks: while the main thread
    waits, the worker runs other tasks, so nested loops need no second worker.

    Parameters
    ----------
    queue
        Where the calls go. None: `default_queue`, which is made when it is first needed.
    name
        Keep the result of each call for a week under this name, and do not run a call again whose
        result is there. None: keep nothing.
    nesting_level, inner_max_num_threads
        As joblib passes them.
    """

    #: Seconds that a batch should take. Shorter costs more messages; longer leaves workers idle at
    #: the end.
    MIN_IDEAL_BATCH_DURATION = 0.05
    MAX_IDEAL_BATCH_DURATION = 0.5
    default_n_jobs = -1
    supports_inner_max_num_threads = True
    supports_timeout = True

    def __init__(
        self,
        *,
        queue: TaskQueue | None = None,
        name: str | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.supports_retrieve_callback = WorkerContext.current is None
        self._given = queue
        self._name = None if name is None else check_job_name("name", name)
        #: Batches that are not over, and what joblib wants to be called when they are.
        self._open: dict[Future[Any], Any] = {}
        #: Of the loop that runs; made with its first batch.
        self._progress: LoopProgress | None = None
        self._began = 0.0

    @property
    def _queue(self) -> TaskQueue:
        return self._given or default_queue()

    def __reduce__(self) -> Any:
        return _nested_backend, (self.nesting_level,)

    # -- what joblib asks before it begins -----------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls may run at the same time: below zero counts from all workers.

        That is 2 at least, because joblib would run the calls of a single one in this process.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        return n_jobs if n_jobs > 0 else max(self._queue.size + 1 + n_jobs, 2)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begin a `Parallel`; return `effective_n_jobs`.

        joblib passes options on how processes are to map arrays. Here they mean nothing: large
        values are stored once for all calls.
        """
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        return n_jobs

    def get_nested_backend(self) -> tuple[QueueBackend, int]:
        """Return the backend inside the calls: there a loop is parallel only if it has `n_jobs`."""
        return QueueBackend(nesting_level=(self.nesting_level or 0) + 1), 1

    def start_call(self) -> None:
        """Begin a loop, of which a `Parallel` may have several."""
        self._began = time.time()

    def stop_call(self) -> None:
        """End a loop."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.end()

    def terminate(self) -> None:
        """End a `Parallel`: the next one learns by itself how long its calls take."""
        self.reset_batch_stats()

    # -- calls ---------------------------------------------------------------------------------

    def submit(self, func: Any, callback: Callable[[Any], object]) -> Future[Any]:
        """Submit a batch of calls; `callback` gets the future once they are over."""
        calls = [(fn, tuple(args), dict(kwargs)) for fn, args, kwargs in func.items]
        nested, n_jobs = self.get_nested_backend()
        batch = Batch(calls, nested, n_jobs, self.inner_max_num_threads, self._name)
        future = self._queue.submit(runner(name_of(calls[0][0])), batch)
        self._open[future] = callback
        if self.supports_retrieve_callback:
            if self._progress is None and self._queue._shows_progress:  # noqa: SLF001 - ours
                loop = Loop(name=name_of(calls[0][0]), count=self._count, began=self._began)
                self._progress = LoopProgress(self._queue._session, loop)
            future.add_done_callback(self._end)
        return future

    def _count(self) -> tuple[int, int, int | None]:
        """Return how many calls of the loop are over, were made, and will be made in all."""
        parallel = self.parallel
        total, n_made = getattr(parallel, "n_tasks", None), parallel.n_dispatched_tasks
        if total is None and parallel._original_iterator is None:  # noqa: SLF001 - as above
            total = n_made
        return parallel.n_completed_tasks, n_made, total

    def _end(self, future: Future[Any]) -> None:
        callback = self._open.pop(future, None)
        if callback is not None:  # None: the Parallel was aborted
            callback(future)
        if (progress := self._progress) is not None:
            progress.draw()

    def retrieve_result_callback(self, out: Future[Any]) -> list[Any]:
        """Return the results of a batch that is over."""
        error = None if out.cancelled() else out.exception()
        if error is not None and error.__cause__ is None:
            # joblib removes the traceback of an error that it gets in a callback.
            error.__cause__ = WorkerTraceback(trace_of(error))
        return out.result()  # type: ignore[no-any-return]

    def retrieve_result(self, out: Future[Any], timeout: float | None = None) -> list[Any]:
        """Wait for the results of a batch inside a task, and dispatch the next one.

        A callback would run in another thread, where it is not known which task dispatches.
        """
        results: list[Any] = out.result(timeout)
        self._end(out)
        return results

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002 - it is always
        """Cancel the calls of each `Parallel` that is aborting, also those that run."""
        for future, callback in list(self._open.items()):
            if callback.parallel._aborting:  # noqa: SLF001 - joblib has no other word for it
                self._open.pop(future, None)
                future.cancel()


def _nested_backend(nesting_level: int) -> QueueBackend:
    """Return the backend that a batch finds in its worker."""
    return QueueBackend(nesting_level=nesting_level)


class WorkerTraceback(Exception):  # noqa: N818 - it is shown as the cause of an error
    """The traceback of an error in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# -- in the worker -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1000)
def runner(name: str) -> Callable[[Batch], list[Any]]:
    """Return what runs a batch in a worker; views and errors show it as `name`."""

    def run(batch: Batch) -> list[Any]:
        return batch.run()

    run.__qualname__ = name
    return run


@dataclass(frozen=True)
class Batch:
    """Some calls of a `Parallel`, which one worker makes one after the other.

    Attributes
    ----------
    calls
        Function, positional and keyword arguments of each.
    nested, n_jobs
        The backend of loops inside the calls, and their number of jobs if they do not say it.
    n_threads
        How many threads numerical libraries may use; None: as many as in other tasks.
    name
        The name to keep results under; None: they are not kept.
    """

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    nested: QueueBackend
    n_jobs: int
    n_threads: int | None
    name: str | None

    def __repr__(self) -> str:
        return f"{len(self.calls)} calls of joblib"

    def run(self) -> list[Any]:
        """Return the results of the calls."""
        call = _call if self.name is None else functools.partial(_call_unless_kept, self.name)
        with _thread_limit(self.n_threads), parallel_config(self.nested, n_jobs=self.n_jobs):
            return [call(*one) for one in self.calls]


def _thread_limit(n_threads: int | None) -> AbstractContextManager[object]:
    if n_threads is None:
        return nullcontext()
    import threadpoolctl

    return threadpoolctl.threadpool_limits(n_threads)  # type: ignore[no-any-return]


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _call_unless_kept(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return the result that is kept of this call; make the call if there is none."""
    session = default_queue()._session
    key = f"{name}{stable_hash(_what_counts(fn, args, kwargs))}".encode()
    digest = hashlib.blake2b(key, digest_size=16, person=b"nbq joblib").hexdigest()
    try:
        kept = session.ask(Store.get_value, digest)
    except SignatureError:  # It is counted, and a good one takes its place.
        kept = None
    if kept is not None:
        return load(kept)
    value = fn(*args, **kwargs)
    try:
        data = dump(value, f"the result of {name_of(fn)}()")
        session.ask(Store.put_value, digest, data)
    except NbstreamqError as error:
        warn(f"A result of {name_of(fn)}() is not kept under the name {name!r}: {error}")
    return value


def _what_counts(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the result of a call depends on.

    scikit-learn wraps each function in an object with its settings and the warnings filters of the
    moment, and passes arguments that say who calls, and how far that is.
    """
    wrapped = getattr(fn, "__wrapped__", None)
    if wrapped is None or isinstance(fn, types.FunctionType):
        return fn, args, kwargs
    if str(getattr(wrapped, "__module__", "")).startswith("sklearn."):
        kwargs = {key: value for key, value in kwargs.items() if key not in _REPORTING}
    return (wrapped, getattr(fn, "config", None)), args, kwargs
