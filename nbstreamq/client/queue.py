"""`TaskQueue`: where calls go in."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

from ..arguments import (
    MAX_RETRIES,
    MAX_WORKERS,
    check_bytes,
    check_callable,
    check_count,
    check_count_or_auto,
    check_flag,
    check_iterable,
    check_job_name,
    check_lane,
    check_queue_name,
    check_seconds,
    check_secret,
    check_seed,
    check_store,
    check_timeout,
)
from ..errors import NbstreamqError, QueueClosed, ServerUnreachable
from ..home import here, own_queue
from ..launch.local import LocalWorkers
from ..launch.server import ensure_server, is_embedded
from ..objects.functions import name_of
from ..objects.large_values import Tell, UrlBackend, ValueBackend, check_fsspec
from ..objects.mapped_files import SessionFolder
from ..objects.pickling import dump, dump_plain_call
from ..objects.references import Ref, TaskOnly, collecting_futures
from ..secret import Address, Secret
from ..settings import Settings, n_cores
from ..tracebacks import concise, shortened
from ..wire.connection import Client, check_client, check_url, open_client, same_server, url_of
from ..wire.keys import DAY, nested_lane
from ..wire.messages import Options
from ..wire.signing import Signer
from ..wire.store import Store
from ..wire.trust import choose_secret
from ..worker_context import host
from .everywhere import everywhere
from .future import CallFuture, TaskFuture
from .job import Job
from .session import LOOK_PATIENCE, Session
from .status import (
    DeadLetters,
    JobList,
    QueueStatus,
    WorkerList,
    dead_letters,
    job_statuses,
    jobs_of,
    queue_status,
    warn_of_risks,
)
from .submit import (
    InputFeeder,
    opening,
    pace_of,
    recall,
    send_chunks,
    submit_when_done,
)
from .waiting import stranded, uninterrupted

#: Bytes that a worker may use at least: a bit more than one that has run nothing.
MIN_MEMORY = 32 * 2**20
#: Longest delay of a call, in seconds: the server keeps functions for a week.
MAX_DELAY = 6 * DAY
#: Longest pause before a first retry, in seconds: pauses grow to a day.
MAX_BACKOFF = DAY


class MapArguments(NamedTuple):
    """The arguments of a map that say how it is done."""

    timeout: float | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    name: str | None
    replace: bool
    seed: int | Sequence[int] | None


def check_map(fn: Any, iterables: tuple[Any, ...], how: MapArguments) -> MapArguments:
    """Return `how` a map is done, in the form that it uses.

    Raises
    ------
    TypeError, ValueError
        An argument can't be used; nothing was taken of the iterables.
    """
    check_callable("fn", fn)
    for number, one in enumerate(iterables, 1):
        check_iterable(f"iterable {number} of map()", one)
    chunksize = check_count_or_auto("chunksize", how.chunksize, least=1)
    buffersize, name = how.buffersize, how.name
    if buffersize is not None:
        buffersize = check_count("buffersize", buffersize, least=1, instead="None")
    if name is not None:
        name = check_job_name("name", name)
    if name is not None and buffersize is not None:
        raise ValueError("name and buffersize: a job that is kept keeps all its inputs and results")
    timeout = check_timeout("timeout", how.timeout)
    replace = check_flag("replace", how.replace)
    seed = None if how.seed is None else check_seed("seed", how.seed)
    return MapArguments(timeout, chunksize, buffersize, name, replace, seed)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": lambda key, value: check_count(key, value, most=MAX_RETRIES),
    "backoff": lambda key, value: check_seconds(key, value, most=MAX_BACKOFF),
    "time_limit": lambda key, value: check_seconds(key, value, above=0),
    "memory_limit": lambda key, value: check_bytes(key, value, least=MIN_MEMORY),
    "lane": check_lane,
    "delay": lambda key, value: check_seconds(key, value, most=MAX_DELAY),
    "cache": check_flag,
}


def check_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None, in the form that messages carry."""
    return {key: _CHECKS[key](key, value) for key, value in given.items() if value is not None}


class Opened(NamedTuple):
    """A session, its queue's name and server, whether that is embedded, and other queues there."""

    session: Session
    name: str
    url: Address
    embedded: bool
    open_other: Callable[[str], Store]


def open_session(
    name: str | None,
    url: Address | None,
    client: Client | None,
    workers: int | Literal["auto"],
    secret: Secret | None,
    *,
    insecure: bool,
    store: Address | None,
) -> Opened:
    """Return a new session of a queue; the arguments are those of `TaskQueue`."""
    workers = check_count_or_auto("workers", workers, most=MAX_WORKERS)
    insecure = check_flag("insecure", insecure)
    if secret is not None:
        secret = check_secret("secret", secret)
    if store is not None:
        store = check_store("store", store)
    settings = Settings.from_environment()
    if store is not None:
        settings = replace(settings, store=store)
    if settings.store is not None:
        check_fsspec("NBSTREAMQ_STORE" if store is None else "store", settings.store)
    address, worker, home = _address(url, client, settings), host(), here()
    if url is None and client is None and worker is not None:  # a task stays on its own server
        address, secret = worker.url, secret or worker.secret
        name = worker.queue if name is None else name
    embedded = address is None
    if name is None:
        name = own_queue() if embedded else "default"
    secret = choose_secret(settings, address, secret=secret, insecure=insecure)
    found = address or Address(ensure_server(settings))
    signer = Signer(secret, name)
    server = client or open_client(found)
    queue = Store(server, name, signer)
    try:
        queue.check_secret()
    except ServerUnreachable:
        if not embedded:
            raise
        ensure_server(settings)  # it ended just after it was found
        queue.check_secret()
    queue.renew()
    default = n_cores() if embedded else None
    session = home.calls + secrets.token_hex(4)
    opened = Session(
        queue,
        LocalWorkers(found, name, secret, home=home, session=session, settings=settings),
        default if workers == "auto" else workers,
        revive=functools.partial(ensure_server, settings) if embedded else None,
        session=session,
        home=home,
        server="" if embedded else "URL" if found.has_password() else str(found),
        place=_place(settings, found, session, signer),
    )
    if not embedded:
        warn_of_risks(opened)
    return Opened(
        opened, name, found, embedded, lambda other: Store(server, other, Signer(secret, other))
    )


def _address(url: Address | None, client: Client | None, settings: Settings) -> Address | None:
    """Return the URL of the server; None: the embedded one."""
    if client is not None:
        if url is not None:
            raise ValueError("Give TaskQueue a url or a client, not both.")
        check_client("client", client)
        return check_url("client", url_of(client))
    if url is not None:
        return check_url("url", url)
    return None if settings.url is None else check_url("NBSTREAMQ_URL", settings.url)


def _place(
    settings: Settings, url: Address, session: str, signer: Signer
) -> Callable[[Tell], ValueBackend] | None:
    """Return what opens the place of a session's large values; None: they go to the server."""
    if settings.store is not None:
        store = settings.store
        return lambda soon: UrlBackend(store, session, signer, soon)
    if is_embedded(url, settings):
        return lambda _: SessionFolder(session, settings)
    return None


P = ParamSpec("P")
T = TypeVar("T")


class _Queue(Protocol):
    """The part of `TaskQueue` that is needed here."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...

    @property
    def map(self) -> Callable[..., Any]: ...

    @property
    def options(self) -> Callable[..., Any]: ...


class TaskFunction(Generic[P, T]):
    """A function of a queue: calling it submits it.

    Attributes
    ----------
    fn
        The function itself.
    """

    def __init__(self, queue: _Queue, fn: Callable[P, T]) -> None:
        self._queue = queue
        self.fn = fn
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Submit a call."""
        return self._queue.submit(self.fn, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], **options: Any) -> Job[T]:
        """As `TaskQueue.map`, with this function."""
        job: Job[T] = self._queue.map(self.fn, *iterables, **options)
        return job

    def options(self, **options: Any) -> TaskFunction[P, T]:
        """As `TaskQueue.options`, for this function."""
        return TaskFunction(self._queue.options(**options), self.fn)

    def __repr__(self) -> str:
        return f"<task {name_of(self.fn)} of {self._queue!r}>"


class TaskQueue(Executor, TaskOnly):
    """A named queue of calls on a Redis or Valkey server, and the workers that run them.

    It is a `concurrent.futures.Executor`: whatever takes one takes a queue.

    Parameters
    ----------
    name
        Queues of the same name on the same server are the same queue, also for other kernels. None:
        inside a task, the queue that the task came from; with a url or a client, ``default``; with
        the embedded server, a queue that belongs to this notebook, else this script, else the
        working folder, and is the same again after a restart: ``analysis.ipynb-1f3a9c20``. At most
        200 bytes of printable characters, no white space and no braces, and no ``-`` at its start.
    url
        ``redis://``, ``rediss://``, ``unix://``, ``valkey://``, ``redis+sentinel://`` or
        ``redis+cluster://`` address. None: ``$NBSTREAMQ_URL``, else a server that nbstreamq starts
        for this user, on this machine only.
    client
        A ready redis-py client, instead of `url`.
    workers
        Number of local workers that start at the first call, 0 to 10,000. ``"auto"``: as many as
        there are cores with the embedded server, none with a url or a client. They have the working
        folder that this process has now, and its interpreter, `sys.path`, environment, warnings
        filters, log levels and recursion limit as these are when they start; what changes later,
        such as by `os.chdir`, does not reach them.
    secret
        Signs all messages; clients and workers need the same. Of several, ``new,old``, the first
        signs and all are accepted. None: ``$NBSTREAMQ_SECRET``, else a key file of this machine.
    insecure
        Whether that key file will do for a server that other machines can reach.
    store
        fsspec URL where large values lie (``s3://...``), as ``$NBSTREAMQ_STORE`` for all workers.
        None: files in memory with the embedded server, the server with a url or a client.

    Raises
    ------
    SecretMissing, SecretMismatch
        None was given for a server on the network, and nothing was sent; the queue has another.
    ServerError
        There is no server, or it can't be reached.

    Examples
    --------
    >>> with TaskQueue("sums") as q:  # doctest: +SKIP
    ...     list(q.map(lambda x: x + 1, range(3)))
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
    ) -> None:
        # First, so that no traceback shows them: see `Secret`.
        url = None if url is None else Address(url)
        secret = None if secret is None else Secret(secret)
        store = None if store is None else Address(store)
        if name is not None:
            name = check_queue_name("name", name)
        self.name, self._url = name or "", url or self._url
        opened = open_session(name, url, client, workers, secret, insecure=insecure, store=store)
        self._session, self.name, self._url, self._embedded, self._open_other = opened
        self._options = Options()

    # -- calls ---------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Call ``fn(*args, **kwargs)`` on a worker; its result comes into the future.

        Parameters
        ----------
        fn
            Any function, also one of a notebook; pickled by value if a worker can't import it.
        *args, **kwargs
            Its arguments. A `TaskFuture` in them stands for its result, a `Ref` for its value.

        Raises
        ------
        NotPicklable
            The function or an argument can't travel; the message says which part, and why.
        QueueClosed
            After `shutdown`, or in a forked process.
        """
        __tracebackhide__ = True  # IPython leaves such frames out
        session, options, worker = self._session, self._options, host()
        try:
            if not callable(fn):
                check_callable("fn", fn)
            function = session.pickle_function(fn)
            data = dump_plain_call(args, kwargs, session.large.value_store.min_external_bytes)
            needed: list[TaskFuture[Any]] = []
            if data is None:
                data, needed = self._pickle_arguments(function.name, args, kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again
            raise shortened(error)  # noqa: B904 - it is the same error
        call: CallFuture[T] | None = None
        is_plain = not (needed or options.cache or options.delay)
        try:
            with uninterrupted() as shield:
                lane = options.lane or self._lane()
                call = CallFuture(session, fn, data)
                session.add_call(call, function, lane, options, worker, is_plain)
                if not needed and not options.cache:
                    session.send_call(call, shield)
            if needed:
                submit_when_done(session, call, needed)
            elif options.cache and not recall(session, call, (args, kwargs)):
                session.send_call(call)
        except BaseException:
            if call is not None and call.job:
                session.cancel(call, [0])
            raise
        return call

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

    @concise
    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | Literal["auto"] = "auto",
        buffersize: int | None = None,
        name: str | None = None,
        replace: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> Job[T]:
        """Call `fn` on every item in the workers; results come in input order.

        Each call returns an iterator of its own, which yields each result once; see `Job`.

        Parameters
        ----------
        fn
            Called once for each item. An object that several calls return may be one here, too.
        *iterables
            Zipped, as the built-in `map` does; the shortest ends it. None: the job is empty.
        timeout
            Seconds from this call to a result, when results are iterated; None waits for ever.
        chunksize
            Items in one message. Workers give back what they don't get done in a tenth of a
            second, so ``"auto"`` serves short and long calls, and mixtures.
        buffersize
            Most items whose results the iteration has not yielded yet. It takes the inputs along,
            so they may be endless, and keeps no result. None: no bound.
        name
            Keeps the job on the server: the same call in another kernel finds it, and runs only
            what is missing, failed or was cancelled. At most 80 bytes, without white space, dots,
            colons and braces.
        replace
            Forget a job that has the name already, and begin anew.
        seed
            An integer that is not negative, or a list of such. Each item then has random numbers
            of its own, which are the same for any number of workers, any chunks and each retry:
            `nbstreamq.rng()` returns its generator, and `random` and `numpy.random` are seeded
            while it runs. None: random numbers differ each time.

        Raises
        ------
        NotPicklable
            The function or an item can't travel; nothing more is submitted, the rest is cancelled.
        JobChanged
            The job of that name has another function, other inputs or another seed.
        """
        how = MapArguments(timeout, chunksize, buffersize, name, replace, seed)
        return self._map(fn, iterables, check_map(fn, iterables, how))

    def _map(
        self, fn: Callable[..., T], iterables: tuple[Iterable[Any], ...], how: MapArguments
    ) -> Job[T]:
        timeout, chunksize, buffersize, name, replace, seed = how
        options = self._options if seed is None else dataclasses.replace(self._options, seed=seed)
        deadline = None if timeout is None else time.monotonic() + timeout
        session = self._session
        function = session.pickle_function(fn, durable=name is not None)
        pace = pace_of(session, iterables, chunksize=chunksize, buffersize=buffersize)
        if name is not None:
            from .named import JobSpec, map_named  # needs cloudpickle: slow to import

            what = JobSpec(name, self._lane(), options, deadline)
            return map_named(session, fn, function, iterables, what, pace=pace, anew=replace)
        with opening(session, fn, function.name, self._lane()) as ledger:
            ledger.options = options
            sends = send_chunks(session, ledger, function, iterables, pace)
            feed = InputFeeder(session, ledger, sends, buffersize or sys.maxsize)
            feed()
        return Job(session, ledger, deadline=deadline, feed=feed if buffersize else None)

    @overload
    def task(self, fn: Callable[P, T], /) -> TaskFunction[P, T]: ...
    @overload
    def task(self, /, **options: Any) -> Callable[[Callable[P, T]], TaskFunction[P, T]]: ...
    @concise
    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Decorate a function: calling it submits it, and returns a `TaskFuture`.

        Parameters
        ----------
        **options
            As for `options`: ``@q.task(retries=3)``.
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
        memory_limit: int | None = None,
        lane: str | None = None,
        delay: float | None = None,
        cache: bool | None = None,
    ) -> TaskQueue:
        """Return this queue with other defaults; what is not given stays.

        Parameters
        ----------
        retries
            How often a call that raises is run again.
        backoff
            Seconds before the first retry, at most a day; doubled for each further one, up to a
            day.
        time_limit
            Seconds that one call may take, above 0 and at most a year; then `TimeLimitExceeded` is
            raised in it, and a second later its worker is killed and replaced.
        memory_limit
            Bytes that the worker process may use while the call runs; beyond them it is killed and
            replaced, and the call fails with `MemoryLimitExceeded`. On Linux only. At least 32 MiB,
            which a worker needs for itself.
        lane
            ``"high"``, ``"default"``, ``"low"``, or a tag that only some workers serve
            (``nbstreamq worker --lane gpu``): at most 80 bytes, no white space.
        delay
            Seconds before a call may start, at most six days: the server keeps functions for a
            week.
        cache
            Keep the results of `submit` for a week: the same call is not run again, by whoever.

        Raises
        ------
        TypeError, ValueError
            A value is of another kind, or out of range. Counts are integers, also NumPy's; seconds
            and bytes any finite real number.
        """
        given: dict[str, Any] = {
            "retries": retries,
            "backoff": backoff,
            "time_limit": time_limit,
            "memory_limit": memory_limit,
            "lane": lane,
            "delay": delay,
            "cache": cache,
        }
        changes = check_options(given)
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._options = dataclasses.replace(self._options, **changes)
        return view

    @concise
    def put(self, obj: Any) -> Ref:
        """Store a value once; the `Ref` stands for it in the arguments of calls.

        Workers keep it, so that a call that gets it again does not fetch it again. It is freed with
        the `Ref` and the last call that has it among its arguments, or when the queue is shut down.
        """
        self._session.check_open()
        return self._session.large.put(obj)

    @concise
    def everywhere(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Job[T]:
        """Call ``fn(*args, **kwargs)`` once on every worker, and on each that joins later.

        On every worker that may run this kernel's calls, before any task that is submitted after
        this; of more than 1000 such calls, late workers make the last 1000. The job holds the
        results of the workers there are now; it is empty if there is none.

        A global that `fn` sets is there for later calls on the same worker, as with a pool's
        initializer, unless the notebook defines the same name: then calls see the notebook's.

        Examples
        --------
        A database connection for each worker:

        >>> def connect(path):
        ...     global db
        ...     db = sqlite3.connect(path)
        >>> q.everywhere(connect, "cities.db")  # doctest: +SKIP
        >>> def population(name):
        ...     return db.execute("select n from cities where name = ?", (name,)).fetchone()
        >>> q.map(population, names)  # doctest: +SKIP
        """
        check_callable("fn", fn)
        return everywhere(self._session, fn, args, kwargs, lane=self._lane())

    @concise
    def attach(self, name: str) -> Job[Any]:
        """Return the named job of this queue, as it is now, whichever kernel made it.

        Another notebook finds it if both give their queue the same name, or the same url: without
        a name, the embedded server's queues belong to their notebooks; see `jobs`.
        Each call returns a job of its own, whose iteration begins at the first result.

        Examples
        --------
        >>> job = q.attach("sweep")  # doctest: +SKIP
        >>> job.retry_failed(mended).result()  # doctest: +SKIP

        Raises
        ------
        JobNotFound
            There is none of that name.
        """
        from .named import attach

        return attach(self._session, check_job_name("name", name), self._where_is)

    def _where_is(self, name: str) -> list[str]:
        """Return how to attach the jobs of that name that other queues have."""
        url = "" if self._embedded else ", url=..."
        return [
            f"TaskQueue({job.queue!r}{url}).attach({name!r})"
            for job in self.jobs(all=True)
            if job.name == name
        ]

    # -- workers -------------------------------------------------------------------------------

    @concise
    def run(self, nworkers: int | None = None) -> None:
        """Start or stop local workers of this kernel, until there are `nworkers`.

        Parameters
        ----------
        nworkers
            None: as many as there are cores.
        """
        if nworkers is None:
            n = n_cores()
        else:
            n = check_count("nworkers", nworkers, most=MAX_WORKERS, instead="None")
        self._session.scale(n)

    def workers(self) -> WorkerList:
        """Return all workers of the queue, on all machines."""
        return WorkerList(self.status().workers)

    @concise
    def status(self) -> QueueStatus:
        """Return what is known of the queue now."""
        session, url = self._session, str(self._url)
        n_open, trouble = len(session.outstanding), str(session.trouble or "")
        found = session.ask(
            lambda store: queue_status(store, url, n_open, trouble, stranded(session, store)),
            patience=LOOK_PATIENCE,
        )
        return cast("QueueStatus", found)

    @concise
    def dead(self) -> DeadLetters:
        """Return what was refused, or failed for good, in the last week: some 1000, newest last."""
        return dead_letters(self._session)

    @concise
    def jobs(self, *, all: bool = False) -> JobList:  # noqa: A002 - the word that people look for
        """Return the named jobs of the queue, the newest first, no matter who made them.

        Parameters
        ----------
        all
            Those of all queues on the server that have this queue's secret, with the name of their
            queue: a notebook that was renamed finds its old jobs so. Of a cluster, the queues on
            this queue's node only.

        Examples
        --------
        >>> q.jobs(all=True)  # doctest: +SKIP
        sweep  done: 9 of 9 done, 0 failed, 0 cancelled  fit()  queue 'old-name.ipynb-1f3a9c20'
        >>> TaskQueue("old-name.ipynb-1f3a9c20").attach("sweep")  # doctest: +SKIP
        """
        session = self._session
        if not check_flag("all", all):
            return cast("JobList", session.ask(job_statuses, patience=LOOK_PATIENCE))
        names = session.ask(lambda store: store.queue_names("jobs"), patience=LOOK_PATIENCE)
        return jobs_of(map(self._open_other, names))

    @property
    def session(self) -> Session:
        """What all views of this queue share: for magics."""
        return self._session

    @property
    def closed(self) -> bool:
        """Whether it was shut down, or belongs to the process that this one was forked from."""
        try:
            self._session.check_open()
        except QueueClosed:
            return True
        return False

    @concise
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; this kernel's workers stop with the last queue that uses them.

        Those of other kernels stay.

        Parameters
        ----------
        wait
            Return when all calls are over and the workers have stopped. False: return at once;
            they go on until then.
        cancel_futures
            Cancel the calls that do not run yet.
        """
        wait = check_flag("wait", wait)
        self._session.close(wait=wait, cancel=check_flag("cancel_futures", cancel_futures))

    def __repr__(self) -> str:
        return f"<TaskQueue {self.name!r} on {self._url}>"

    def reduce_for_task(self) -> Any:
        # Never the url itself: it may hold a password.
        address = None if self._embedded else str(self._url)
        return queue_in_task, (self.name, address, self._options)

    def _lane(self) -> str:
        worker = host()
        return self._options.lane or (nested_lane(worker.depth()) if worker else "default")


_in_task: dict[tuple[str, str | None], TaskQueue] = {}


def queue_in_task(name: str, address: str | None, options: Options) -> TaskQueue:
    """Return the queue that a task captured: this worker's own, or the one at `address`."""
    key = (name, address)
    queue = _in_task.get(key)
    if queue is None:
        worker = host()
        mine = worker is not None and (address is None or same_server(address, worker.url))
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
