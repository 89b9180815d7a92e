"""`TaskQueue`: where calls go in."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from ..arguments import (
    MAX_RETRIES,
    MAX_WORKERS,
    check_bytes,
    check_callable,
    check_count,
    check_count_or_auto,
    check_env,
    check_flag,
    check_iterable,
    check_job_name,
    check_lane,
    check_limit_name,
    check_queue_name,
    check_rate,
    check_seconds,
    check_seed,
    check_sizes,
    check_timeout,
)
from ..cores import n_cores
from ..errors import NbstreamqError, QueueClosed
from ..limit import Limit
from ..objects.functions import FunctionPickle, name_of
from ..objects.pickling import dump, dump_plain_call
from ..objects.references import Ref, TaskOnly, collecting_futures
from ..secret import Address, Secret
from ..settings import Settings
from ..tracebacks import concise, shorten, warn
from ..wire.addresses import Client, same_server
from ..wire.keys import DAY, nested_lane
from ..wire.messages import Options
from ..wire.store import Store
from ..wire.trust import is_local
from ..worker_context import WorkerContext
from .connect import open_session
from .everywhere import SetUp
from .exit import end_sessions_with_process
from .future import CallFuture, TaskFuture
from .job import Job
from .pool import Pool
from .status import (
    DeadLetters,
    JobList,
    Log,
    QueueStatus,
    WorkerList,
    dead_letters,
    job_statuses,
    jobs_of,
    queue_status,
)
from .submit import ChunkSizer, InputFeeder, Inputs
from .units import Units
from .waiting import uninterrupted
from .workers import LOOK_PATIENCE

end_sessions_with_process()

#: Gets and returns each new future, and each new job without a name. A notebook that runs cells
#: again by itself sets it, to cancel what a cell has submitted before.
on_new: Callable[[Any], Any] | None = None
#: Bytes that a worker may use at least: a bit more than one that has run nothing.
MIN_MEMORY = 32 * 2**20
#: Most coroutines that a worker runs at the same time.
MAX_CONCURRENCY = 10_000
#: Longest delay of a call, in seconds: the server keeps functions for a week.
MAX_DELAY = 6 * DAY
#: Longest pause before a first retry, in seconds: pauses grow to a day.
MAX_BACKOFF = DAY


class MapKeywords(TypedDict, total=False):
    """The keyword arguments of `TaskQueue.map`, for type checkers."""

    timeout: float | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    name: str | None
    replace: bool | Literal["auto"]
    seed: int | Sequence[int] | None


class MapArguments(NamedTuple):
    """The arguments of a map that say how it is done."""

    timeout: float | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    name: str | None
    replace: bool | Literal["auto"]
    seed: int | Sequence[int] | None


def check_map(fn: Any, how: MapArguments) -> MapArguments:
    """Return `how` a map of `fn` is done, in the form that it uses.

    Raises
    ------
    TypeError, ValueError
        An argument can't be used.
    """
    check_callable("fn", fn)
    chunksize = check_count_or_auto("chunksize", how.chunksize, least=1)
    buffersize, name = how.buffersize, how.name
    if buffersize is not None:
        buffersize = check_count("buffersize", buffersize, least=1, instead="None")
    if name is not None:
        name = check_job_name("name", name)
    if name is not None and buffersize is not None:
        raise ValueError("name and buffersize: a job that is kept keeps all its inputs and results")
    timeout = check_timeout("timeout", how.timeout)
    replace: bool | Literal["auto"] = "auto"
    if not isinstance(how.replace, str) or how.replace != "auto":
        replace = check_flag("replace", how.replace)
    seed = None if how.seed is None else check_seed("seed", how.seed)
    return MapArguments(timeout, chunksize, buffersize, name, replace, seed)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": lambda key, value: check_count(key, value, most=MAX_RETRIES),
    "backoff": lambda key, value: check_seconds(key, value, most=MAX_BACKOFF),
    "time_limit": lambda key, value: check_seconds(key, value, above=0),
    "memory_limit": lambda key, value: check_sizes(key, value, least=MIN_MEMORY),
    "lane": check_lane,
    "delay": lambda key, value: check_seconds(key, value, most=MAX_DELAY),
    "cache": check_flag,
    "concurrency": lambda key, value: check_count(key, value, least=1, most=MAX_CONCURRENCY),
}


def check_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None, in the form that messages carry."""
    return {key: _CHECKS[key](key, value) for key, value in given.items() if value is not None}


def options_for(function: FunctionPickle, options: Options) -> Options:
    """Return the options of a call of `function`.

    Raises
    ------
    ValueError
        A coroutine can't have them.
    """
    if function.is_async and options.memory_limit:
        raise ValueError(
            f"memory_limit: {function.name}() is a coroutine function, and its calls share the"
            " memory of a worker with others. Limit a plain function, which runs alone."
        )
    return options.of_function(is_async=function.is_async)


P = ParamSpec("P")
T = TypeVar("T")


class TaskFunction(Generic[P, T]):
    """A function of a queue: calling it submits it.

    Attributes
    ----------
    fn
        The function itself, for a call in this process.
    """

    def __init__(self, queue: TaskQueue, fn: Callable[P, T]) -> None:
        self._queue = queue
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Submit a call, and return its future."""
        __tracebackhide__ = True
        try:
            return self._queue.submit(self.fn, *args, **kwargs)
        except BaseException as error:
            shorten(error)
            raise

    @concise
    def map(self, *iterables: Iterable[Any], **options: Any) -> Job[T]:
        """Call the function on every item, as `TaskQueue.map` does."""
        return self._queue.map(self.fn, *iterables, **options)

    @concise
    def options(self, **options: Any) -> TaskFunction[P, T]:
        """Return the function with other options; see `TaskQueue.options`."""
        return TaskFunction(self._queue.options(**options), self.fn)

    def __repr__(self) -> str:
        return f"<task {name_of(self.fn)} of {self._queue!r}>"


class TaskQueue(Executor, TaskOnly):
    """A queue of function calls on a Redis or Valkey server, and the workers that run them.

    It is a `concurrent.futures.Executor`: everything that takes an executor takes a queue.

    Parameters
    ----------
    name
        Name of the queue. Queues of the same name on the same server are the same queue, also for
        other kernels. At most 200 bytes of printable characters, without white space and braces,
        and without ``-`` at the start. None: inside a task, the queue of that task; with a url or a
        client, ``default``; otherwise a private queue of this notebook, script or working folder,
        which is the same again after a restart, such as ``analysis.ipynb-1f3a9c20``.
    url
        Address of the server: ``redis://``, ``rediss://``, ``unix://``, ``valkey://``,
        ``redis+sentinel://`` or ``redis+cluster://``. None: ``$NBSTREAMQ_URL``, or else the
        embedded server, which nbstreamq starts for this user on this machine. With
        ``ssh://me@login``, it is started on that machine, and goes on when this process ends.
    client
        A redis-py client to use instead of `url`.
    workers
        Number of local workers that start with the first call, 0 to 10,000. ``"auto"``: one for
        each core with the embedded server, none with a url or a client. Workers have the working
        folder in which the queue was made. They have the interpreter, `sys.path`, environment,
        warnings filters, log levels and recursion limit of this process at the time they start.
        Later changes, such as `os.chdir`, do not reach them.
    secret
        Signs all messages. Clients and workers need the same secret. A list ``new,old`` signs with
        the first one and accepts all. None: ``$NBSTREAMQ_SECRET``, or else a key file of this
        machine.
    insecure
        Whether the key file may be used with a server that other machines can reach.
    store
        Where large values are: an fsspec URL such as ``s3://bucket/folder``, or the absolute path
        of a folder that all machines share. Workers on other machines need it in
        ``$NBSTREAMQ_STORE``, and the credentials in the environment or in files, as fsspec's
        package for it finds them. None: that variable; if it is not set, files in memory with the
        embedded server, and the server itself with a url or a client.
    initializer, initargs
        A function that every worker calls with these arguments before it runs any call of this
        queue; the local workers start at once. Calls run even if it fails, and a warning says so.
        It is what `everywhere` does. None: no such call.

    Raises
    ------
    SecretMissing
        Other machines can reach the server, and there is no secret. Nothing was sent.
    SecretMismatch
        The queue has another secret.
    ServerError
        The server does not start, or can't be reached.

    Examples
    --------
    >>> with TaskQueue("sums", workers=2) as queue:
    ...     list(queue.map(lambda x: x + 1, range(3)))
    [1, 2, 3]
    """

    # What a debugger shows of a queue whose constructor failed.
    name = ""
    _url = Address("no server")
    _instead = "A task can use it, as an argument or a global; any other process makes its own."

    @concise
    def __init__(
        self,
        name: str | None = None,
        url: str | Address | None = None,
        *,
        client: Client | None = None,
        workers: int | Literal["auto"] = "auto",
        secret: str | Secret | None = None,
        insecure: bool = False,
        store: str | Address | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        # First, so that no traceback shows them: see `Secret`.
        url = None if url is None else Address(url)
        secret = None if secret is None else Secret(secret)
        store = None if store is None else Address(store)
        if name is not None:
            name = check_queue_name("name", name)
        if initializer is not None:
            check_callable("initializer", initializer)
        check_iterable("initargs", initargs)
        self.name, self._url = name or "", url or self._url
        opened = open_session(name, url, client, workers, secret, insecure=insecure, store=store)
        self._session, self.name, self._url, self._embedded, self._open_other = opened
        self._options = Options()
        self._shows_progress = Settings.from_environment().progress
        if initializer is not None:
            set_up = self.everywhere(initializer, *initargs)
            set_up.add_done_callback(self._warn_of_failure)

    def _warn_of_failure(self, set_up: Job[Any]) -> None:
        for error in list(set_up.errors.values())[:1]:
            what = f"{type(error).__name__}: {error}"
            warn(f"The initializer of queue {self.name!r} failed, and calls run without it: {what}")

    # -- calls ---------------------------------------------------------------------------------

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    def submit(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[Any]:
        """Call ``fn(*args, **kwargs)`` on a worker, and return a future for its result.

        Parameters
        ----------
        fn
            Any function, including one that a notebook defines. If workers can't import it, it is
            pickled by value. A worker runs the coroutines of an ``async def`` function in its event
            loop, several at the same time; see `options`.
        *args, **kwargs
            Arguments of `fn`. A `TaskFuture` among them stands for its result: the call starts when
            that is there. A `Ref` stands for its value.

        Raises
        ------
        NotPicklable
            The function or an argument can't be sent. The message says which part, and why. Nothing
            was submitted.
        QueueClosed
            The queue was shut down, or was made before this process was forked.

        Examples
        --------
        >>> future = q.submit(pow, 2, 10)
        >>> future.result()
        1024
        >>> q.submit(abs, q.submit(min, -3, 4)).result()
        3
        """
        __tracebackhide__ = True  # IPython leaves such frames out
        session, options, worker = self._session, self._options, WorkerContext.current
        try:
            if not callable(fn):
                check_callable("fn", fn)
            function = session.pickle_function(fn)
            is_special = function.is_async or options.concurrency
            options = options_for(function, options) if is_special else options
            data = dump_plain_call(args, kwargs, session.large.value_store.min_external_bytes)
            needed: list[TaskFuture[Any]] = []
            if data is None:
                data, needed = self._pickle_arguments(function.name, args, kwargs)
        except BaseException as error:
            shorten(error)
            raise
        call: CallFuture[Any] | None = None
        is_plain = not (needed or options.cache or options.delay)
        try:
            with uninterrupted() as shield:
                lane = options.lane or ("default" if worker is None else self._lane())
                call = CallFuture(session, fn, data)
                if not self._shows_progress:
                    call.shows_progress = False
                session.add_call(call, function, lane, options, worker, is_plain)
                if not needed and not options.cache:
                    session.send(call, shield)
            if needed:
                call.send_when_done(needed)
            elif options.cache and not call.recall((args, kwargs)):
                session.send(call)
        except BaseException:
            if call is not None and call.job:
                session.cancel(call, [0])
            raise
        return call if on_new is None else on_new(call)

    def _pickle_arguments(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, list[TaskFuture[Any]]]:
        """Return the arguments of a call, pickled, and the futures among them."""
        session, generators = self._session, list[Any]()
        what, store = f"an argument of {name}()", session.large.value_store
        with collecting_futures() as needed:
            data = dump((args, kwargs), what, store, generators=generators)
        if generators:
            session.repeats.argument(name, generators)
        return data, needed

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *iterables: Iterable[Any],
        **how: Unpack[MapKeywords],
    ) -> Job[T]: ...
    @overload
    def map(
        self, fn: Callable[..., T], /, *iterables: Iterable[Any], **how: Unpack[MapKeywords]
    ) -> Job[T]: ...
    @concise
    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        name: str | None = None,
        replace: bool | Literal["auto"] = False,
        seed: int | Sequence[int] | None = None,
    ) -> Job[T]:
        """Call `fn` on every item in the workers, and return a `Job` with results in input order.

        The call returns at once. Each call of `map` returns an iterator of its own, which yields
        each result once; see `Job`.

        Parameters
        ----------
        fn
            Called once for each item. If several calls return the same object, it may be one object
            here, too.
        *iterables
            Arguments of `fn`, zipped as the built-in `map` does. The shortest one sets the number
            of calls. Without any, the job is empty.
        timeout
            Seconds from this call until a result must be there while you iterate. None: no limit.
        chunksize
            Number of items in one message. ``"auto"`` suits short calls, long calls and mixtures:
            workers give back items that they do not finish within a tenth of a second.
        buffersize
            Maximum number of submitted items whose results you have not read yet. Inputs may then
            be infinite, and results are not kept. None: submit all items now.
        name
            Keep the job on the server under this name, even if this kernel dies. The same call in
            another kernel finds it, and runs only what is missing, failed or cancelled. At most 80
            bytes, without white space, dots, colons and braces.
        replace
            What to do with a job of that name that has another function, other inputs or another
            seed. False: raise `JobChanged`. ``"auto"``: delete it and start over. True: start over
            even if nothing has changed.
        seed
            A non-negative integer, or a list of such integers. Each item then has its own random
            numbers, which do not depend on the number of workers, on chunks or on retries.
            `nbstreamq.rng()` returns the item's NumPy generator; `random` and `numpy.random` are
            seeded as well. None: random numbers differ on each run.

        Raises
        ------
        NotPicklable
            The function or an item can't be sent. Items that were submitted before are cancelled.
        JobChanged
            The job of that name has another function, other inputs or another seed. It stays as it
            is.
        TimeoutError
            Raised by the iteration when `timeout` has passed. The calls go on.

        Examples
        --------
        >>> list(q.map(pow, [1, 2, 3], [2, 2, 2]))
        [1, 4, 9]
        >>> job = q.map(lambda x: 60 // x, [0, 1, 2])
        >>> job.wait()
        >>> job.errors
        {0: ZeroDivisionError('integer division or modulo by zero')}
        """
        how = MapArguments(timeout, chunksize, buffersize, name, replace, seed)
        how = check_map(fn, how)
        for number, one in enumerate(iterables, 1):
            check_iterable(f"iterable {number} of map()", one)
        return self._map(fn, Inputs.zipped(iterables), how)

    @overload
    def starmap(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        items: Iterable[Iterable[Any]],
        /,
        **how: Unpack[MapKeywords],
    ) -> Job[T]: ...
    @overload
    def starmap(
        self, fn: Callable[..., T], items: Iterable[Iterable[Any]], /, **how: Unpack[MapKeywords]
    ) -> Job[T]: ...
    @concise
    def starmap(
        self,
        fn: Callable[..., Any],
        items: Iterable[Iterable[Any]],
        /,
        *,
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        name: str | None = None,
        replace: bool | Literal["auto"] = False,
        seed: int | Sequence[int] | None = None,
    ) -> Job[T]:
        """Call ``fn(*item)`` for every item in the workers, as `map` does with zipped items.

        Parameters
        ----------
        fn
            Called once for each item.
        items
            The positional arguments of each call.
        timeout, chunksize, buffersize, name, replace, seed
            As in `map`.

        Examples
        --------
        >>> list(q.starmap(pow, [(2, 5), (3, 2)]))
        [32, 9]
        """
        how = MapArguments(timeout, chunksize, buffersize, name, replace, seed)
        how = check_map(fn, how)
        check_iterable("items", items)
        return self._map(fn, Inputs.starred(items), how)

    def _map(self, fn: Callable[..., T], inputs: Inputs, how: MapArguments) -> Job[T]:
        timeout, chunksize, buffersize, name, replace, seed = how
        options = self._options if seed is None else dataclasses.replace(self._options, seed=seed)
        deadline = None if timeout is None else time.monotonic() + timeout
        session = self._session
        function = session.pickle_function(fn, durable=name is not None)
        options = options_for(function, options)
        n_workers, concurrency = session.workers.n_wanted(), options.concurrency
        sizer = ChunkSizer.of(
            inputs, n_workers, concurrency, chunksize=chunksize, buffersize=buffersize
        )
        lane, (call, items, _) = self._lane(), inputs
        first = 0
        if name is None:
            table = session.new_table(fn, function.name, lane)
            table.call, table.options = call, options
        else:
            from .named import NamedJob  # needs cloudpickle, which is slow to import

            table, items, first = NamedJob(session, name).open(
                fn, function, items, call=call, lane=lane, options=options, replace=replace
            )
        feed = InputFeeder(
            session, table, function, items, sizer=sizer, buffersize=buffersize, first=first
        )
        feed()
        job = Job[T](session, table, deadline=deadline, feed=feed if buffersize else None)
        self._with_progress(job)
        return job if on_new is None else on_new(job)

    def _with_progress(self, job: Job[T]) -> Job[T]:
        """Return `job`, which shows its progress while it is waited for, or does not."""
        job._table.shows_progress = self._shows_progress
        return job

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> TaskFunction[P, T]: ...
    @overload
    def task(self, fn: Callable[P, T], /) -> TaskFunction[P, T]: ...
    @overload
    def task(self, /, **options: Any) -> Callable[[Callable[P, T]], TaskFunction[P, T]]: ...
    @concise
    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Decorate a function, so that calling it submits it and returns a `TaskFuture`.

        Parameters
        ----------
        **options
            Options of `TaskQueue.options`, as in ``@q.task(retries=3)``.

        Examples
        --------
        >>> @q.task
        ... def double(x):
        ...     return 2 * x
        >>> double(21).result()
        42
        """
        queue = self.options(**options)
        if fn is None:
            return lambda function: TaskFunction(queue, function)
        check_callable("fn", fn)
        return TaskFunction(queue, fn)

    @concise
    def options(
        self,
        *,
        retries: int | None = None,
        backoff: float | None = None,
        time_limit: float | None = None,
        memory_limit: int | Sequence[int] | None = None,
        lane: str | None = None,
        delay: float | None = None,
        cache: bool | None = None,
        concurrency: int | None = None,
        progress: bool | None = None,
    ) -> TaskQueue:
        """Return this queue with other defaults; an option that is not given stays as it is.

        Parameters
        ----------
        retries
            How often a call that raises an exception runs again. The default is 0.
        backoff
            Seconds before the first retry, at most a day. The pause doubles with each further
            retry, up to a day. The default is 0.
        time_limit
            Maximum seconds that one call may run, above 0 and at most a year. Then
            `TimeLimitExceeded` is raised in the call. If it still runs a second later, its worker
            is killed and replaced. The default is no limit.
        memory_limit
            Maximum bytes of memory that the worker process may use while the call runs. Beyond that
            the worker is killed and replaced, and the call fails with `MemoryLimitExceeded`. With a
            list such as ``[2e9, 8e9]``, it runs again with the next limit instead, and fails after
            the last one; all later attempts have that, too. At least 32 MiB, which a worker needs
            for itself. On macOS, files that the process maps count, too. The default is no limit.
        lane
            ``"high"``, ``"default"``, ``"low"``, or a tag that only some workers serve, such as
            those of ``nbstreamq worker --lane gpu``. At most 80 bytes, without white space.
        delay
            Seconds before a call may start, at most six days. The default is 0.
        cache
            Cache results of `submit` for a week. The same call from any client reuses them.
        concurrency
            Maximum number of calls of a coroutine function (``async def``) that one worker runs at
            the same time, from 1 to 10,000. The default is 10. Plain functions run one at a time.
        progress
            Whether a wait for results that lasts longer than a second shows how far they are: in a
            notebook, or in a terminal. The default is to show it, unless ``NBSTREAMQ_PROGRESS`` is
            0. Inside tasks, nothing is shown.

        Raises
        ------
        TypeError, ValueError
            A value has the wrong type, or is out of range. Counts are integers; seconds and bytes
            are finite real numbers. NumPy's numbers are allowed.

        Examples
        --------
        >>> careful = q.options(retries=3, time_limit=60)
        >>> careful.submit(abs, -1).result()
        1
        """
        given: dict[str, Any] = {
            "retries": retries,
            "backoff": backoff,
            "time_limit": time_limit,
            "memory_limit": memory_limit,
            "lane": lane,
            "delay": delay,
            "cache": cache,
            "concurrency": concurrency,
        }
        options = dataclasses.replace(self._options, **check_options(given))
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = options
        if progress is not None:
            view._shows_progress = check_flag("progress", progress)
        return view

    @concise
    def limit(
        self, name: str, *, concurrent: int | None = None, rate: float | None = None
    ) -> Limit:
        """Return a limit for sections of calls, on all workers and machines of this queue.

        A call waits at ``with limit:`` until its section may begin; a coroutine at ``async with
        limit:``. Its worker runs nothing else meanwhile, except other coroutines.

        Parameters
        ----------
        name
            Limits of the same name are the same limit. What is said last holds for all calls, also
            for those that wait. At most 80 bytes, without white space and braces.
        concurrent
            How many calls may be in such a section at the same time, 1 or more. None: any number.
        rate
            How many such sections may begin in a second, at least one in a year. They begin at even
            intervals: with 100 / 60, one each 0.6 s. None: any number.

        Raises
        ------
        TypeError, ValueError
            An argument has the wrong type or is out of range, or neither number is given.

        Examples
        --------
        >>> api = q.limit("api", concurrent=5, rate=6000 / 60)
        >>> def fetch(number):
        ...     with api:
        ...         return number * number  # in place of a request
        >>> list(q.map(fetch, range(4)))
        [0, 1, 4, 9]
        """
        name = check_limit_name("name", name)
        if concurrent is not None:
            concurrent = check_count("concurrent", concurrent, least=1, instead="None")
        if rate is not None:
            rate = check_rate("rate", rate)
        if concurrent is None and rate is None:
            raise ValueError(f"limit {name!r} allows everything: give concurrent, rate, or both")
        self._session.check_open()
        self._session.ask(Store.set_limit, name, concurrent, rate)
        return Limit(queue=self.name, name=name, concurrent=concurrent, rate=rate)

    @concise
    def put(self, obj: Any) -> Ref:
        """Store a value once, and return a `Ref` that stands for it in the arguments of calls.

        Workers keep the value, so that later calls do not fetch it again. It is freed when the
        `Ref` and all calls that use it are gone, or when the queue is shut down.

        Raises
        ------
        NotPicklable
            The value can't be sent.
        NoRoom
            Memory and disk are full.

        Examples
        --------
        >>> ref = q.put(list(range(1000)))
        >>> q.submit(sum, ref).result()
        499500
        """
        self._session.check_open()
        return self._session.large.put(obj)

    @concise
    def everywhere(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Job[T]:
        """Call ``fn(*args, **kwargs)`` once on every worker, including those that join later.

        It runs on each worker that may run this kernel's calls, before any task submitted later.
        A coroutine function runs in the event loop that runs the coroutines of later calls.
        New workers replay the last 1000 such calls.

        Later calls on the same worker see the globals that `fn` sets, as with the initializer of a
        pool. If the notebook defines the same name, calls see the notebook's value.

        Returns
        -------
        Job
            The results of the workers that exist now. It is empty if there are none. A worker that
            dies or leaves before it is through has a `WorkerLost` there.

        Raises
        ------
        NotPicklable
            The function or an argument can't be sent.

        Examples
        --------
        A database connection for each worker:

        >>> def connect(path):
        ...     global db
        ...     import sqlite3
        ...     db = sqlite3.connect(path)
        >>> q.everywhere(connect, ":memory:").wait()
        >>> q.submit(lambda: db.execute("select 1 + 1").fetchone()).result()
        (2,)
        """
        check_callable("fn", fn)
        set_up = SetUp(self._session, fn, args, kwargs, lane=self._lane())
        return self._with_progress(set_up.send())

    @concise
    def attach(self, name: str) -> Job[Any]:
        """Return the named job of this queue, as it is now, even if another kernel made it.

        Each call returns a job of its own, whose iteration starts at the first result. Another
        notebook finds the job if both give their queue the same name or the same url. With the
        embedded server, a queue without a name belongs to its notebook; `jobs` with ``all=True``
        lists the jobs of all queues.

        Raises
        ------
        JobNotFound
            This queue has no job of that name. The message says which other queue has one.

        Examples
        --------
        >>> q.map(abs, [-1, -2], name="distances").wait()
        >>> job = q.attach("distances")
        >>> job.result()
        [1, 2]
        >>> job.delete()
        """
        from .named import NamedJob

        job = NamedJob(self._session, check_job_name("name", name)).attach(self._where_is)
        return self._with_progress(job)

    def _where_is(self, name: str) -> list[str]:
        """Return how to attach the jobs of that name that other queues have."""
        url = "" if self._embedded else ", url=..."
        return [
            f"TaskQueue({job.queue!r}{url}).attach({name!r})"
            for job in self.jobs(all=True)
            if job.name == name
        ]

    @concise
    def joblib(self, name: str | None = None) -> Any:
        """Return a backend that runs the calls of `joblib.Parallel` on this queue.

        joblib and all that uses it, such as scikit-learn, take the backend from
        `joblib.parallel_config`. With ``joblib.parallel_config("nbstreamq")`` the calls go to the
        private queue of this notebook or script.

        Parameters
        ----------
        name
            Keep the result of each call on the server for a week. If the same function is called
            with the same arguments under the same name, also by another kernel, the result is taken
            from there. None: keep nothing.

        Examples
        --------
        >>> from joblib import Parallel, delayed, parallel_config
        >>> with parallel_config(q.joblib()):
        ...     Parallel()(delayed(abs)(x) for x in [-1, -2])
        [1, 2]
        """
        from joblib.parallel import BACKENDS  # it has ours, see `registration`

        return BACKENDS["nbstreamq"](queue=self, name=name)

    def pool(self) -> Pool:
        """Return this queue as a pool: an object with the methods of `multiprocessing.Pool`.

        Closing or terminating the pool leaves the queue as it is.

        Examples
        --------
        >>> with q.pool() as pool:
        ...     pool.map(abs, [-1, -2])
        [1, 2]
        """
        return Pool(self)

    # -- workers -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of workers that may run calls, with those that the first call starts.

        Examples
        --------
        >>> q.size
        2
        """
        return self._session.workers.n_expected()

    @property
    def _max_workers(self) -> int:
        """The same by the name that others look for in an executor of the standard library."""
        return self.size

    @overload
    def run(
        self,
        nworkers: int | None = None,
        *,
        max_tasks_per_worker: int | None = None,
        max_memory: int | None = None,
        env: Literal["sync"] | None = None,
    ) -> None: ...
    @overload
    def run(self, nworkers: int, on: Any, **options: Any) -> Units: ...
    @concise
    def run(
        self,
        nworkers: int | None = None,
        on: Any = None,
        *,
        max_tasks_per_worker: int | None = None,
        max_memory: int | None = None,
        env: Literal["sync"] | None = None,
        **options: Any,
    ) -> Units | None:
        """Start or stop workers of this kernel, until there are `nworkers`.

        Parameters
        ----------
        nworkers
            Number of workers, 0 to 10,000. None: one for each core.
        on
            Where: ``"ssh://me@host"`` for a machine that ssh leads to without a password. It needs
            this version of Python and of nbstreamq, and nothing else; the server may be the
            embedded one. ``"slurm"`` for jobs of Slurm, ``"ray"`` for actors
            of Ray, a `distributed.Client` for the workers of a Dask cluster. None: on this machine.
        max_tasks_per_worker
            Replace a worker after so many calls, between two calls. Above 100, it ends the slice of
            a map first, which may be more calls. None: never.
        max_memory
            Replace a worker that uses more bytes after a call, at least 32 MiB. None: never.
        env
            ``"sync"``: over ssh and in Slurm, uv installs the packages of this Python where the
            workers start, once for each machine, and they use these. Local workers have them
            anyway. None: workers use what is installed there.
        **options
            Of that place. For ssh: ``python="/path/to/python"``, ``folder="work"``,
            ``prologue=["module load cuda"]``, ``drain=30``. For Slurm the same, and
            ``partition="long"``, ``walltime="1h"``, ``directives=["--gres=gpu:1"]``,
            ``workers_per_job=1``, ``idle_timeout=300``. For Ray: ``workers_per_actor=1``,
            ``num_cpus=1``, ``resources={"gpu_box": 1}``. For Dask: ``workers_per_unit=2``. For
            both: ``idle_timeout=1200``, ``drain=30``.

        Returns
        -------
        Units
            The workers in that place: it lists, scales and stops them, and shows what is started
            there. Nothing for local workers.

        Raises
        ------
        NbstreamqError
            The place refuses to start them; the message says why.

        Examples
        --------
        >>> q.run(2)
        """
        wear = _wear(max_tasks_per_worker, max_memory)
        if env is not None:
            options["env"] = check_env("env", env)
        workers = self._session.workers
        if on is not None:
            most = MAX_WORKERS
            n = check_count("nworkers", 1 if nworkers is None else nworkers, most=most)
            self._session.check_open()
            return workers.scale_units(n, on, wear, options)
        if unknown := options.keys() - {"env"}:  # Local workers have this Python's packages.
            raise TypeError(f"{min(unknown)} is an option of a place: say on=... as well")
        if nworkers is None:
            n = n_cores()
        else:
            n = check_count("nworkers", nworkers, most=MAX_WORKERS, instead="None")
        self._session.check_open()
        workers.scale(n, wear)
        return None

    def workers(self) -> WorkerList:
        """Return all workers of the queue, on all machines.

        Examples
        --------
        >>> len(q.workers())
        2
        """
        status = self.status()
        return WorkerList(status.workers, status.awaited)

    @concise
    def status(self) -> QueueStatus:
        """Return what is known of the queue now: workers, lanes, open jobs and problems.

        Raises
        ------
        ServerUnreachable
            The server did not answer within 5 seconds.

        Examples
        --------
        >>> len(q.status().workers)
        2
        """
        session, url = self._session, str(self._url)
        n_open, trouble = len(session.outstanding), str(session.trouble or "")

        def look(store: Store) -> QueueStatus:
            return queue_status(store, url, n_open, trouble, session.workers.troubles(store))

        found = session.ask_within(LOOK_PATIENCE, look)
        return dataclasses.replace(found, awaited=tuple(session.workers.awaited()))

    @concise
    def logs(self) -> Log:
        """Return what this kernel's local workers and their supervisor have logged, newest last.

        It says when a worker started, ended or died, and what nbstreamq could not do. It is at most
        20,000 characters. Workers that ``nbstreamq worker`` started log to its standard error,
        where you started it. What calls print is in `TaskFuture.logs` and `Job.logs`.

        What this process logs goes to the loggers below ``nbstreamq``, as usual in Python. Their
        levels at the time when the workers start hold there, too.

        Examples
        --------
        >>> q.submit(abs, -1).result()
        1
        >>> "has started" in q.logs()
        True
        """
        return Log(self._session.workers.local.read_log())

    @concise
    def dead(self) -> DeadLetters:
        """Return the messages that were refused, and the calls that failed for good, newest last.

        They are kept for a week, about 1000 at most.

        Examples
        --------
        >>> future = q.submit(int, "x")
        >>> future.exception()
        ValueError("invalid literal for int() with base 10: 'x'")
        >>> q.dead()[-1].task == future.id
        True
        """
        return dead_letters(self._session)

    @concise
    def jobs(self, *, all: bool = False) -> JobList:  # noqa: A002 - the word that people look for
        """Return the named jobs of the queue, newest first, including those of other kernels.

        Parameters
        ----------
        all
            Return the named jobs of all queues on the server that have this queue's secret. After
            you rename a notebook, you find its old jobs this way. On a cluster, only queues on this
            queue's node are listed.

        Examples
        --------
        >>> job = q.map(abs, [-1, -2], name="distances")
        >>> job.wait()
        >>> [status.name for status in q.jobs()]
        ['distances']
        >>> job.delete()
        """
        session = self._session
        if not check_flag("all", all):
            return session.ask_within(LOOK_PATIENCE, job_statuses)
        names = session.ask_within(LOOK_PATIENCE, Store.queue_names, "jobs")
        return jobs_of(map(self._open_other, names))

    @property
    def closed(self) -> bool:
        """Whether the queue was shut down, or was made before this process was forked."""
        try:
            self._session.check_open()
        except QueueClosed:
            return True
        return False

    @concise
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; stop local workers that no other queue of this kernel uses.

        Workers of other kernels, and of ``nbstreamq worker``, stay. Named jobs go on.

        Parameters
        ----------
        wait
            True: return when all calls are over and the workers have stopped. False: return at
            once; open calls still run, and the workers stop after them.
        cancel_futures
            Cancel the calls that are not running yet.

        Examples
        --------
        >>> queue = TaskQueue("short", workers=1)
        >>> future = queue.submit(abs, -1)
        >>> queue.shutdown()
        >>> future.result()
        1
        """
        wait = check_flag("wait", wait)
        self._session.close(wait=wait, cancel=check_flag("cancel_futures", cancel_futures))

    def __repr__(self) -> str:
        return f"<TaskQueue {self.name!r} on {self._url}>"

    def _reduce_for_task(self) -> Any:
        # Never the url itself: it may hold a password.
        address = None if self._embedded else str(self._url)
        return queue_in_task, (self.name, address, self._options)

    def _lane(self) -> str:
        worker = WorkerContext.current
        return self._options.lane or (nested_lane(worker.depth()) if worker else "default")


def _wear(max_tasks_per_worker: int | None, max_memory: int | None) -> tuple[int, int]:
    """Return when workers are replaced, see `LocalWorkers.scale`."""
    n, size = max_tasks_per_worker, max_memory
    return (
        0 if n is None else check_count("max_tasks_per_worker", n, least=1, instead="None"),
        0 if size is None else check_bytes("max_memory", size, least=MIN_MEMORY),
    )


_in_task: dict[tuple[str, str | None], TaskQueue] = {}


def _is_mine(address: str, url: Address) -> bool:
    """Return whether a client's `address` leads to the server of this worker."""
    from ..launch.ssh import is_forwarded  # with subprocess, it takes a while to import

    # What only the client's machine can reach is forwarded to a worker elsewhere.
    return same_server(address, url) or (is_forwarded(url) and is_local(address))


def queue_in_task(name: str, address: str | None, options: Options) -> TaskQueue:
    """Return the queue that a task captured: this worker's own, or the one at `address`."""
    key = (name, address)
    queue = _in_task.get(key)
    if queue is None:
        worker = WorkerContext.current
        mine = worker is not None and (address is None or _is_mine(address, worker.url))
        if worker is not None and mine:
            queue = TaskQueue(name, worker.url, secret=worker.secret, workers=0)
        elif address is None or "***" in address:
            raise NbstreamqError(
                f"Queue {name!r} at {address or 'the embedded server'} can't be reached from here:"
                " make a TaskQueue inside the task, with its url."
            )
        else:
            queue = TaskQueue(name, address, workers=0)
        _in_task[key] = queue
    return queue.options(**options.changed())
