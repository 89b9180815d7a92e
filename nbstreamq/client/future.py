"""`TaskFuture`: the result of one call, once it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from ..arguments import check_flag, check_timeout
from ..errors import FunctionMissing, NbstreamqError
from ..objects import random_numbers
from ..objects.functions import load_function
from ..objects.pickling import load
from ..objects.references import dependency, dependency_number, resolving
from ..tracebacks import shortened
from ..wire.messages import State
from ..worker_context import host
from .ledger import Ledger, invoke_callbacks
from .session import Session
from .waiting import HelpedWaiters


def stored_function(session: Session, digest: str, what: str) -> Callable[..., Any]:
    """Return what fetches a function from the server and calls it here, whenever it is called.

    Parameters
    ----------
    what
        The function in words, for the error when the server does not hold it any more.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        data = session.ask(lambda store: store.get_function(digest))
        if data is None:
            raise FunctionMissing(f"The server no longer holds the function {what}.")
        return load_function(data)(*args, **kwargs)

    return call


def replay(ledger: Ledger, item: int) -> Any:
    """Run an item of a job here, and return what it returns.

    Raises
    ------
    NbstreamqError
        Its arguments were dropped, because the items around it are done.
    """
    payload = ledger.payload(item)
    if payload is None:
        raise NbstreamqError(
            f"Task {ledger.job}-{item} can't be replayed: its arguments were dropped when the items"
            " around it were done. Call the function with them instead."
        )

    with resolving(lambda _digest, data, _handles: load(data)):
        args, kwargs = payload.arguments(item)
    if ledger.options.seed is None:
        return ledger.fn(*args, **kwargs)
    with random_numbers.own_state():
        random_numbers.begin(ledger.options.seed, item)
        return ledger.fn(*args, **kwargs)


T = TypeVar("T")


class _Listeners:
    """A list that is made when somebody asks for it: most futures never need one.

    Two empty lists would be a third of what a waiting call needs here.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: TaskFuture[Any] | None, owner: type) -> Any:
        if future is None:
            return self
        return future._make_list(self._name)  # noqa: SLF001 - a part of it


class TaskFuture(Future[T], Generic[T]):
    """A call on a worker; a `concurrent.futures.Future` that can also be called and awaited.

    As an argument of `TaskQueue.submit` it stands for its result.

    Examples
    --------
    >>> future = q.submit(pow, 2, 10)  # doctest: +SKIP
    >>> future(), future.status  # doctest: +SKIP
    (1024, <State.DONE: 'done'>)
    """

    _has_listeners = False
    _waiters = _Listeners()
    _done_callbacks = _Listeners()

    def __init__(self, session: Session, ledger: Ledger, index: int) -> None:
        # As `Future.__init__` does, but with one condition for all: another would take longer than
        # the rest, and nobody waits for it; see `_wait`.
        self._condition = session.condition
        self._state = "PENDING"
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._session = session
        self._ledger = ledger
        self._index = index

    # -- the result ----------------------------------------------------------------------------

    def __call__(self, block: bool = True, timeout: float | None = None) -> T:
        """Return the result.

        Parameters
        ----------
        block
            False: do not wait for it.
        timeout
            Seconds to wait; None waits for ever, what is negative not at all.

        Raises
        ------
        TimeoutError
            It is not there yet; the task goes on.
        """
        __tracebackhide__ = True
        timeout = check_timeout("timeout", timeout)
        return self.result(timeout if check_flag("block", block) else 0)

    def result(self, timeout: float | None = None) -> T:
        """Return the result, as `concurrent.futures.Future.result` does; a task helps meanwhile."""
        __tracebackhide__ = True  # IPython leaves such frames out: they tell nobody anything
        self._wait(timeout)
        error = super().exception(0)
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that the call raised, None if it raised none."""
        __tracebackhide__ = True
        self._wait(timeout)
        return super().exception(0)

    def _make_list(self, name: str) -> list[Any]:
        """Make the list of that name, once and for all: from now on it is found first."""
        with self._condition:
            self._has_listeners = True
            helped = name == "_waiters" and host() is not None
            made = HelpedWaiters(self._session, self._ledger.lane) if helped else []
            found: list[Any] = self.__dict__.setdefault(name, made)
            return found

    def set_result(self, result: T) -> None:
        """Have this result, as `concurrent.futures.Future.set_result` does; not for users."""
        with self._condition:  # who asks for the lists holds it, too
            if self._state == "PENDING" and not self._has_listeners:
                self._result, self._state = result, "FINISHED"
                self._condition.notify_all()
                return
        super().set_result(result)

    def _invoke_callbacks(self) -> None:
        invoke_callbacks(self)

    def _wait(self, timeout: float | None) -> None:
        __tracebackhide__ = True
        if timeout is not None:
            try:
                timeout = check_timeout("timeout", timeout)
            except (TypeError, ValueError) as error:
                raise shortened(error)  # noqa: B904 - it is the same error
        session, ledger, item = self._session, self._ledger, self._index
        if not self.done() and not session.wait_until(ledger, self.done, timeout, item=item):
            text = f"Task {self.id} ({self._ledger.name}) has no result after {timeout:g} s."
            raise shortened(TimeoutError(text))

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Cancel the call, waiting or running; False if it is over already."""
        if self.done():
            return self.cancelled()
        self._session.cancel(self._ledger, [self._index])
        return self.cancelled()

    def running(self) -> bool:
        """Return whether a worker runs the call now, as far as is known: news takes 0.1 s."""
        return self.status is State.RUNNING

    def replay(self) -> T:
        """Run the same call here, in this process: for a debugger, for instance.

        Raises
        ------
        NbstreamqError
            Its arguments were not kept: it is an item of a map() that is done.
        """
        return replay(self._ledger, self._index)  # type: ignore[no-any-return]

    # -- what is known of it -------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of the task, as in errors and logs."""
        return f"{self._ledger.job}-{self._index}"

    @property
    def status(self) -> State:
        """What has become of it."""
        return self._ledger.state(self._index)

    @property
    def worker(self) -> str | None:
        """The worker that ran it last."""
        report = self._ledger.report(self._index)
        return report.worker if report else None

    @property
    def attempts(self) -> int:
        """How often it was begun, as far as is known."""
        report = self._ledger.report(self._index)
        return report.attempt if report else 0

    @property
    def logs(self) -> str:
        """What it printed so far, to standard output and standard error."""
        return self._ledger.output.text(self._index)

    @property
    def progress(self) -> tuple[int, int | None] | None:
        """(items done, items in all) as `track` reports them; None if it does not."""
        return self._ledger.output.progress(self._index)

    @property
    def timing(self) -> dict[str, float]:
        """``started`` (seconds since the epoch) and ``seconds`` of the run that decided it.

        Items of a chunk share those of the chunk.
        """
        report = self._ledger.report(self._index)
        return {"started": report.started, "seconds": report.seconds} if report else {}

    def __repr__(self) -> str:
        return f"<TaskFuture {self.id} {self._ledger.name}: {self.status}>"

    def __reduce__(self) -> Any:
        return dependency, (dependency_number(self),)
