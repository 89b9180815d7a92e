"""`TaskFuture`: the result of one call, once it is there.

A single call is a `CallFuture`, which holds everything that is known of it. An item of a map is an
`ItemFuture`, which looks things up in the table of its job.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from ..arguments import check_flag, check_timeout
from ..errors import FunctionMissing, NbstreamqError, SignatureError
from ..locks import Condition
from ..objects import random_numbers
from ..objects.functions import load_function
from ..objects.pickling import dump, load
from ..objects.references import Dependent, dependency, dependency_number, resolving
from ..objects.results import dump_outcomes
from ..tracebacks import raise_of_task, shorten
from ..wire.item_ranges import ONE, ItemRanges
from ..wire.messages import Event, Options, State
from ..wire.store import Store
from ..worker_context import WorkerContext
from .callbacks import invoke_callbacks
from .calls import Call
from .error_notes import Payload, RunInfo, annotate
from .sender import Command
from .session import Session
from .table import JobTable, Outstanding
from .waiting import HelpedWaiters


def stored_function(session: Session, digest: str, what: str) -> Callable[..., Any]:
    """Return what fetches a function from the server and calls it here, whenever it is called.

    Parameters
    ----------
    what
        The function in words, for the error when the server does not hold it any more.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        data = session.ask(Store.get_function, digest)
        if data is None:
            raise FunctionMissing(f"The server no longer holds the function {what}.")
        return load_function(data)(*args, **kwargs)

    return call


def replay(fn: Callable[..., Any], payload: Payload, item: int, options: Options) -> Any:
    """Run an item here, and return what it returns."""

    def value_of(_digest: str, data: bytes, _addresses: object) -> Any:
        return load(data)

    with resolving(value_of):
        args, kwargs = payload.arguments(item, value_of)
    if options.seed is None:
        return fn(*args, **kwargs)
    with random_numbers.own_state():
        random_numbers.begin(options.seed, item)
        return fn(*args, **kwargs)


T = TypeVar("T")


class _Listeners:
    """A list that is made when it is first used: most futures never need one.

    Two empty lists would be a third of what a waiting call needs here.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: TaskFuture[Any] | None, owner: type) -> Any:
        if future is None:
            return self
        return future._make_list(self._name)  # noqa: SLF001 - a part of it


class TaskFuture(Future[T], Generic[T]):
    """The result of one call, once it is there.

    It is a `concurrent.futures.Future` that you can also call and await. As an argument of
    `TaskQueue.submit` it stands for its result.

    Examples
    --------
    >>> future = q.submit(pow, 2, 10)
    >>> future()
    1024
    >>> str(future.status), future.attempts
    ('done', 1)
    """

    _has_listeners = False
    _waiters = _Listeners()
    _done_callbacks = _Listeners()
    _session: Session

    def _prepare(self, session: Session) -> None:
        """Do what `Future.__init__` does."""
        # One condition for all: to make one for each would take longer than the rest, and no
        # thread waits for it; see `_wait`.
        self._condition = session.condition
        self._state = "PENDING"
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._session = session

    # -- the result ----------------------------------------------------------------------------

    def __call__(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the result; wait for it if `block` is true.

        Parameters
        ----------
        block
            False: do not wait.
        timeout
            Seconds to wait. None: no limit. Zero or less: do not wait.

        Raises
        ------
        TimeoutError
            The result is not there yet. The call goes on.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future()
        1
        >>> future(block=False)
        1
        """
        __tracebackhide__ = True
        try:
            timeout = check_timeout("timeout", timeout) if check_flag("block", block) else 0
            return self.result(timeout)
        except BaseException as error:
            shorten(error)
            raise

    def done(self) -> bool:
        """Return whether the call is over: done, failed or cancelled.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future.result(), future.done()
        (1, True)
        """
        return self._state != "PENDING"

    def result(self, timeout: float | None = None) -> T:
        """Return the result; raise the call's exception if it failed.

        Inside a task, the worker runs other tasks while this waits.

        Parameters
        ----------
        timeout
            Seconds to wait. None: no limit. Zero or less: do not wait.

        Raises
        ------
        TimeoutError
            The result is not there yet. The call goes on.
        CancelledError
            The call was cancelled.
        WorkerLost
            The call's worker died at its last allowed attempt.

        Examples
        --------
        >>> q.submit(pow, 2, 10).result(timeout=60)
        1024
        """
        __tracebackhide__ = True  # IPython leaves such frames out
        try:
            if self._state != "FINISHED" or timeout is not None:
                self._wait(timeout)
            if self._exception is not None:
                raise_of_task(self._exception)
        except BaseException as error:
            shorten(error)
            raise
        return self._result  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that the call raised, or None if it raised none.

        Parameters
        ----------
        timeout
            Seconds to wait for the end of the call. None: no limit. Zero or less: do not wait.

        Raises
        ------
        TimeoutError
            The call is not over yet. It goes on.
        CancelledError
            The call was cancelled.

        Examples
        --------
        >>> q.submit(int, "x").exception()
        ValueError("invalid literal for int() with base 10: 'x'")
        """
        __tracebackhide__ = True
        try:
            self._wait(timeout)
        except BaseException as error:
            shorten(error)
            raise
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        """Wait until the call is over, and raise if it was cancelled."""
        if timeout is not None:
            timeout = check_timeout("timeout", timeout)
        if self._state == "PENDING" and not self._session.wait_until(
            self._owner, self.done, timeout
        ):
            text = f"Task {self.id} ({self._owner.name}) has no result after {timeout:g} s."
            raise TimeoutError(text)
        if self._state != "FINISHED":
            raise CancelledError(f"Task {self.id} ({self._owner.name}) was cancelled.")

    def _make_list(self, name: str) -> list[Any]:
        """Make the list of that name, once and for all: from now on it is found first."""
        with self._condition:
            self._has_listeners = True
            helped = name == "_waiters" and WorkerContext.current is not None
            made = HelpedWaiters(self._session.help_until, self._owner.lane) if helped else []
            found: list[Any] = self.__dict__.setdefault(name, made)
            return found

    def set_result(self, result: T) -> None:
        """Set the result, as `concurrent.futures.Future.set_result` does; not for users."""
        with self._condition:  # making the lists takes it, too
            if self._state == "PENDING" and not self._has_listeners:
                self._result, self._state = result, "FINISHED"
                return
        super().set_result(result)

    def _invoke_callbacks(self) -> None:
        invoke_callbacks(self)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Cancel the call, even if it runs; return False if it is already over.

        A running call is interrupted by an exception. If it still runs a second later, its worker
        is killed and replaced.

        Examples
        --------
        >>> future = q.options(delay=3600).submit(abs, -1)
        >>> future.cancel(), future.cancelled()
        (True, True)
        """
        if self._state == "PENDING":
            self._session.cancel(self._owner, [self._index])
        return self.cancelled()

    def running(self) -> bool:
        """Return whether a worker runs the call now, as of about 0.1 s ago.

        Examples
        --------
        >>> future = q.options(delay=3600).submit(abs, -1)
        >>> future.running(), future.cancel()
        (False, True)
        """
        return self.status is State.RUNNING

    # -- what is known of it -------------------------------------------------------------------

    @property
    def _owner(self) -> Outstanding:
        """What the session knows it by."""
        raise NotImplementedError

    #: Which item of that it is.
    _index = 0

    def _report(self) -> RunInfo | Event | None:
        """Return the last news of it."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        """Id of the task, as in errors and logs."""
        return f"{self._owner.job}-{self._index}"

    @property
    def status(self) -> State:
        """State of the call: waiting, running, done, failed or cancelled.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future.result(), str(future.status)
        (1, 'done')
        """
        return self._owner.state(self._index)

    @property
    def worker(self) -> str | None:
        """Id of the worker that ran the call last; None if no worker has started it.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future.result(), future.worker in [worker.id for worker in q.workers()]
        (1, True)
        """
        report = self._report()
        return report.worker if report else None

    @property
    def attempts(self) -> int:
        """How often a worker has started the call, as far as is known here.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future.result(), future.attempts
        (1, 1)
        """
        report = self._report()
        return report.attempt if report else 0

    @property
    def logs(self) -> str:
        """What the call has printed so far, to standard output and standard error.

        Examples
        --------
        >>> future = q.submit(print, "hello"); future.result()
        [print 0] hello
        >>> future.logs
        'hello\\n'
        """
        raise NotImplementedError

    @property
    def progress(self) -> tuple[int, int | None] | None:
        """(items done, number of items or None), as `track` reports them; None without `track`.

        Examples
        --------
        >>> future = q.submit(lambda: sum(track(range(10))))
        >>> future.result(), future.progress
        (45, (10, 10))
        """
        raise NotImplementedError

    @property
    def timing(self) -> dict[str, float]:
        """``started`` (seconds since the epoch) and ``seconds`` of the call's last run.

        Items of a chunk share those of the chunk. Empty if no run is known.

        Examples
        --------
        >>> future = q.submit(abs, -1)
        >>> future.result(), sorted(future.timing)
        (1, ['seconds', 'started'])
        """
        report = self._report()
        return {"started": report.started, "seconds": report.seconds} if report else {}

    def replay(self) -> T:
        """Run the same call in this process, for instance under a debugger.

        For a coroutine function it returns the coroutine: ``await future.replay()``.

        Raises
        ------
        NbstreamqError
            The arguments were dropped, because the call is an item of a map and the items around it
            are done.

        Examples
        --------
        >>> future = q.submit(pow, 2, 10)
        >>> future.replay()
        1024
        """
        raise NotImplementedError

    def __dir__(self) -> Iterable[str]:
        # Tab shows what users use. The rest is for the session and for executors.
        return [name for name in dir(TaskFuture) if not name.startswith("set_")]

    def __repr__(self) -> str:
        return f"<TaskFuture {self.id} {self._owner.name}: {self.status}>"

    def __reduce__(self) -> Any:
        return dependency, (dependency_number(self),)


class ItemFuture(TaskFuture[T]):
    # An item of a job.
    __doc__ = TaskFuture.__doc__
    # `help` takes an object of which it finds this for one of that class.
    __origin__ = TaskFuture

    def __init__(self, session: Session, table: JobTable, index: int) -> None:
        self._prepare(session)
        self._table = table
        self._index = index

    @property
    def _owner(self) -> JobTable:
        return self._table

    def _report(self) -> RunInfo | None:
        return self._table.report(self._index)

    @property
    def logs(self) -> str:
        return self._table.output.text(self._index)

    @property
    def progress(self) -> tuple[int, int | None] | None:
        return self._table.output.progress(self._index)

    def replay(self) -> T:
        table, item = self._table, self._index
        payload = table.payload(item)
        if payload is None:
            raise NbstreamqError(
                f"Task {self.id} can't be replayed: its arguments were dropped when the items"
                " around it were done. Call the function with them instead."
            )
        return replay(table.fn, payload, item, table.options)  # type: ignore[no-any-return]


#: States of a `concurrent.futures.Future`.
_PENDING, _FINISHED, _CANCELLED = "PENDING", "FINISHED", "CANCELLED_AND_NOTIFIED"


class CallFuture(TaskFuture[T], Call):
    # The future of a single call, which holds everything that is known of that call; `fn` is what
    # is called, `args` are the pickled positional and keyword arguments.
    __doc__ = TaskFuture.__doc__
    __origin__ = TaskFuture

    def __init__(self, session: Session, fn: Callable[..., T], args: bytes) -> None:
        # This is `_prepare`, without the call.
        self._condition = session.condition
        self._state = _PENDING
        self._result = None
        self._exception = None
        self._session = session
        self.fn = fn
        self.args = args

    # -- for the session -----------------------------------------------------------------------

    @property
    def n_open(self) -> int:
        return int(self._state == _PENDING)

    @property
    def is_over(self) -> bool:
        return self._state != _PENDING

    def state(self, item: int = 0) -> State:  # noqa: ARG002 - there is only one
        if self._state == _FINISHED:
            return State.DONE if self._exception is None else State.FAILED
        if self._state != _PENDING:
            return State.CANCELLED
        is_running = self.news is not None and self.news.kind == "started"
        return State.RUNNING if is_running else State.WAITING

    def fail(self, error: BaseException, chosen: Sequence[int] | None = None) -> None:  # noqa: ARG002
        self.finish(None, error)
        self._session.look_again()

    def mark_cancelled(self, chosen: Iterable[int]) -> ItemRanges:
        if not list(chosen) or not self.finish(None, None, state=_CANCELLED):
            return ()
        self._session.look_again()
        return ONE

    def orphan(self, error: NbstreamqError, lock: threading.RLock) -> None:  # noqa: ARG002
        self._changed = None
        self.finish(None, error)

    def wait(self, is_reached: Callable[[], bool], timeout: float | None) -> bool:
        with self._condition:
            if self._changed is None:
                self._changed = Condition(self._session.calls_lock)
            return self._changed.wait_for(is_reached, timeout)

    def finish(
        self,
        value: Any,
        error: BaseException | None,
        news: Event | None = None,
        state: str = _FINISHED,
    ) -> bool:
        """Write how it ended, and tell everyone who waits for that; False if it had ended before.

        The future's own state changes in one go, so that an exception in between changes nothing.
        """
        if news is not None:
            self.news = news
            if error is not None:
                annotate(error, self.index, self.payload(), news, job=self.job, name=self.name)
        with self._condition:
            is_first = self._state == _PENDING
            if is_first:
                # The state comes last: `result` reads without the lock.
                self._result, self._exception, self._state = value, error, state
                if error is not None:
                    self.group.failed.append(self.index)
                if self._has_listeners:
                    self._tell_waiters()
            if self._changed is not None:
                self._changed.notify_all()
        if self._has_listeners:
            invoke_callbacks(self)
        return is_first

    def _tell_waiters(self) -> None:
        """Tell `concurrent.futures.wait` and `as_completed`."""
        for waiter in self._waiters:
            if self._state == _CANCELLED:
                waiter.add_cancelled(self)
            elif self._exception is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)

    def send_when_done(self, needed: Sequence[TaskFuture[Any]]) -> None:
        """Send the call once the results that it needs are there; fail it if one of them fails."""
        missing, lock = set(range(len(needed))), threading.Lock()
        session = self._session

        def one_is_done(index: int, future: TaskFuture[Any]) -> None:
            with lock:  # two may be done at once, in two threads
                missing.remove(index)
                is_last = not missing
            if self.done():
                return
            try:
                error = future.exception()
                if error is None and is_last:
                    store = session.large.value_store
                    results = [dump(f.result(), f"the result of {f.id}", store) for f in needed]
                    self.args = dump(Dependent(self.args, results), "arguments", store)
                    session.send(self)
            except BaseException as failure:  # noqa: BLE001 - it is the dependent call that fails
                error = failure
            if error is not None:
                session.fail(self.group, error, [self.index])

        for index, future in enumerate(needed):
            future.add_done_callback(functools.partial(one_is_done, index))

    def recall(self, arguments: Any) -> bool:
        """Return whether the result is cached; then the future has it.

        If it is not cached, it will be, once the call is done.

        Parameters
        ----------
        arguments
            (args, kwargs).
        """
        from ..objects.stable_hash import stable_hash  # needs cloudpickle, which is slow to import

        names = f"{stable_hash(self.fn)}{stable_hash(arguments)}".encode()
        digest = hashlib.blake2b(names, digest_size=16, person=b"nbq call").hexdigest()
        try:
            body = self._session.ask(Store.get_value, digest)
        except SignatureError:  # counted and set aside; a good one takes its place
            body = None
        if body is None:
            self.add_done_callback(functools.partial(CallFuture._keep_result, digest=digest))
            return False
        news = Event(kind="finished", job=self.job, n=self.index, worker="kept", body=body)
        self._session.take(news)
        return True

    def _keep_result(self, digest: str) -> None:
        if self.cancelled() or self.exception() is not None:
            return
        body = dump_outcomes([self.result()], {}, lambda _: self.id)
        keep = functools.partial(Store.put_value, digest=digest, data=body)
        self._session.send(Command(keep, lambda _: None, len(body)))

    # -- for its user --------------------------------------------------------------------------

    @property
    def _owner(self) -> CallFuture[T]:
        return self

    @property
    def id(self) -> str:
        return f"{self.job}-{self.index}"

    def _report(self) -> Event | None:
        return self.news

    @property
    def logs(self) -> str:
        return self.group.output.text(self.index)

    @property
    def progress(self) -> tuple[int, int | None] | None:
        return self.group.output.progress(self.index)

    def replay(self) -> T:
        return replay(self.fn, self.payload(), self.index, self.group.options)  # type: ignore[no-any-return]
