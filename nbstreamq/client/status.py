"""What is known of a queue, as plain data that prints readably: status, health, dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..errors import JobNotFound, NbstreamqError, ServerRefused
from ..home import PYTHON
from ..secret import Address
from ..sizes import plural
from ..wire.item_ranges import items
from ..wire.keys import LANES, is_named
from ..wire.messages import State, Task
from ..wire.records import DeadEntry
from ..wire.replies import MAX_TIME, printable
from ..wire.settlement import KEPT_BYTES
from ..wire.store import REPLAYED, Store
from ..worker_context import WorkerContext
from .environments import examine_environments
from .error_notes import Payload
from .future import TaskFuture, stored_function
from .job import Job
from .session import Session
from .workers import LOOK_PATIENCE


@dataclass(frozen=True, kw_only=True)
class LaneStatus:
    """Number of messages of a lane at one moment.

    A chunk of a map is one message, and so is each of its slices. `over` counts the messages that
    have been settled since the lane was made.
    """

    lane: str
    waiting: int
    running: int
    delayed: int
    over: int = 0


@dataclass(frozen=True, kw_only=True)
class LimitStatus:
    """A limit at one moment; see `TaskQueue.limit`.

    Attributes
    ----------
    limit
        Its name.
    concurrent, rate
        How many calls it allows at the same time, and how many starts in a second; None: any
        number.
    running, waiting
        How many calls are in a section that it guards, and how many wait for one.
    """

    limit: str
    concurrent: int | None
    rate: float | None
    running: int
    waiting: int


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A worker at one moment.

    Attributes
    ----------
    id
        Id of the worker process.
    host, pid, python
        Machine, process id, and minor version of Python.
    state
        ``idle`` or ``busy``, at most a second ago. ``waiting``: its task waits for other tasks, or
        plain calls for its coroutines, and another worker stands in for it; `TaskQueue.size` counts
        the two as one.
    lanes
        Lanes that it serves, most urgent first.
    limit
        Name of the limit that its call waits for, see `TaskQueue.limit`; empty if it waits for
        none.
    memory_bytes, cpu
        Memory, and share of one processor core, at most a second ago; 0 if unknown.
    peak_bytes
        The most memory that it had resident since it started; 0 if unknown.
    unit
        What ``nbstreamq worker --unit`` was started with; empty if it was started without.
    """

    id: str
    host: str
    pid: int
    python: str
    state: str
    lanes: tuple[str, ...]
    memory_bytes: int = 0
    cpu: float = 0.0
    peak_bytes: int = 0
    unit: str = ""
    limit: str = ""

    @property
    def activity(self) -> str:
        """The state, or which limit it waits for."""
        return f"waits for limit {self.limit}" if self.limit else self.state

    def __str__(self) -> str:
        return f"worker {self.id}: {self.activity}, pid {self.pid} on {self.host}"


class Log(str):
    """Lines of a log, which print as they are."""

    __slots__ = ()

    def __repr__(self) -> str:
        return self.rstrip("\n") or "the local workers have logged nothing"


class WorkerList(list[WorkerStatus]):
    """Workers, a line each.

    Attributes
    ----------
    awaited
        As `QueueStatus.awaited`.
    """

    def __init__(self, workers: Iterable[WorkerStatus], awaited: Iterable[str] = ()) -> None:
        super().__init__(workers)
        self.awaited = tuple(awaited)

    def __repr__(self) -> str:
        return "\n".join([*(map(str, self) if self else ["no workers"]), *self.awaited])


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A named job at one moment.

    Attributes
    ----------
    name, queue, function
        Names of the job, of its queue and of its function.
    done, failed, cancelled
        Number of calls that have ended in each way.
    submitted
        Number of calls submitted so far.
    complete
        Whether all calls are submitted.
    made
        When the job was made, in seconds since the epoch.
    expires
        Seconds until the server deletes the job; None: it is kept.
    size_bytes
        Memory that the job needs on the server; None if the server does not tell.
    """

    name: str
    queue: str
    function: str
    done: int
    failed: int
    cancelled: int
    submitted: int
    complete: bool
    made: float
    expires: float | None
    size_bytes: int | None

    @property
    def state(self) -> str:
        """``open``, or how it ended: ``done``, ``failed`` or ``cancelled``."""
        if not self.complete or self.done + self.failed + self.cancelled < self.submitted:
            return "open"
        if self.failed:
            return "failed"
        return "cancelled" if self.cancelled else "done"


class JobList(list[JobStatus]):
    """Named jobs, a line each."""

    def __repr__(self) -> str:
        lines = [
            f"{job.name}  {job.state}: {job.done} of {job.submitted} done, {job.failed} failed,"
            f" {job.cancelled} cancelled  {job.function}()  queue {job.queue!r}"
            for job in self
        ]
        return "\n".join(lines) or "no named jobs"


def job_statuses(store: Store) -> JobList:
    """Return the named jobs, the newest first."""
    known = store.job_names().items()
    found = [record for name, job in known if (record := store.readable_record(job, name))]
    return JobList(
        JobStatus(
            name=record.name,
            queue=store.keys.queue,
            function=record.about["function"],
            done=record.n_done,
            failed=record.n_failed,
            cancelled=record.n_cancelled,
            submitted=record.n_items,
            complete=record.total is not None,
            made=record.made,
            expires=record.expires,
            size_bytes=store.job_bytes(record.id),
        )
        for record in sorted(found, key=lambda record: -record.made)
    )


def jobs_of(stores: Iterable[Store]) -> JobList:
    """Return the named jobs of several queues, which are closed, the newest first."""
    found = JobList()
    for store in stores:
        with closing(store), suppress(ServerRefused):  # others may have written anything there
            found += job_statuses(store)
    return JobList(sorted(found, key=lambda job: -job.made))


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """A queue at one moment.

    Attributes
    ----------
    queue, server
        Name of the queue, and address of the server without its password.
    lanes
        Lanes that workers serve or that hold something.
    workers
        All workers, on all machines.
    open_jobs
        Number of open jobs of this client.
    trouble
        What is wrong with the connection; empty if nothing is.
    limits
        What `TaskQueue.limit` has made.
    refused
        Kind of message -> number of messages without a valid signature, and of copies, in the last
        week. They were not unpickled; `TaskQueue.dead` lists them.
    awaited
        A line for each place, such as Slurm, whose workers for this client are not all there yet.
    warnings
        What endangers or delays calls, and what to do about it: problems of the server, workers
        that die young, or a named job without workers.
    """

    queue: str
    server: str
    lanes: tuple[LaneStatus, ...]
    workers: tuple[WorkerStatus, ...]
    open_jobs: int
    trouble: str
    limits: tuple[LimitStatus, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    awaited: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def refusals(self) -> str:
        """How many messages were refused, in words; empty if none was."""
        if not self.refused:
            return ""
        found = sorted(self.refused.items())
        counts = ", ".join(f"{n:,} {kind}{'' if n == 1 else 's'}" for kind, n in found)
        return f"refused as unsigned, or as sent twice: {counts}. See q.dead()."

    def __str__(self) -> str:
        lines = [f"queue {self.queue!r} on {self.server}: {plural(len(self.workers), 'worker')}"]
        lines += [
            f"  lane {v.lane}: {v.waiting} waiting, {v.running} running, {v.delayed} delayed"
            for v in self.lanes
            if v.waiting or v.running or v.delayed
        ]
        lines += [
            f"  limit {limit.limit}: {limit.running} running, {limit.waiting} waiting"
            for limit in self.limits
            if limit.running or limit.waiting
        ]
        lines += [f"  {worker}" for worker in self.workers]
        lines += [f"  {text}" for text in self.awaited]
        if self.trouble:
            lines.append(f"  trouble: {self.trouble}")
        lines += [f"  warning: {text}" for text in self.warnings]
        if self.refusals:
            lines.append(f"  {self.refusals}")
        return "\n".join(lines)

    __repr__ = __str__


def queue_status(
    store: Store, server: str, open_jobs: int, trouble: str, warnings: Sequence[str] = ()
) -> QueueStatus:
    """Ask the server about the queue of `store`; `warnings` come before its own."""
    workers = tuple(
        WorkerStatus(
            id=name,
            host=d.get("host", ""),
            pid=d.get("pid", 0),
            python=d.get("python", ""),
            state=d.get("state", "starting"),
            lanes=tuple(d.get("lanes", ())),
            memory_bytes=d.get("memory", 0),
            cpu=d.get("cpu", 0.0),
            peak_bytes=d.get("peak", 0),
            unit=d.get("unit", ""),
            limit=d.get("limit", ""),
        )
        for name, d in sorted(store.workers().items())
    )
    known = dict.fromkeys([*LANES, *(lane for w in workers for lane in w.lanes)])
    return QueueStatus(
        queue=store.keys.queue,
        server=server,
        lanes=tuple(LaneStatus(**counts) for counts in store.lanes(known)),
        workers=workers,
        open_jobs=open_jobs,
        trouble=trouble,
        limits=tuple(LimitStatus(**about) for about in store.limits()),
        refused=store.refused(),
        warnings=(*warnings, *store.troubles(), *store.server_facts().problems()),
    )


#: Seconds by which clocks may differ: delays end by the server's clock, times are shown by ours.
SKEW = 5.0


def warn_of_risks(session: Session) -> None:
    """Warn of what endangers tasks on the server; inside a task, nobody would read it."""
    if WorkerContext.current is None:
        with suppress(NbstreamqError):
            facts = session.ask_within(0.0, Store.server_facts)
            for problem in facts.problems():
                session.warn(problem)


def examine(store: Store, url: Address) -> Iterator[tuple[str, str]]:
    """Yield what is found out about a queue and its server, line by line.

    Yields
    ------
    tuple
        What it is about, and what was found; or ``"problem"``, and what is wrong.

    Raises
    ------
    ServerError
        The server can't be reached, or refuses what clients must be allowed to do.
    SecretMismatch
        The queue was made with another secret.
    """
    store.check_secret(write=False)
    facts = store.server_facts()
    yield "server", f"{facts.product} {facts.version or '(it does not tell)'}, {url}"
    yield "ping", f"{store.ping() * 1000:.2f} ms"
    skew = store.clock_skew()
    yield "clock", _skew_text(skew)
    status = queue_status(store, str(url), 0, "")
    yield "queue", _summary(status)
    for worker in status.workers:
        yield "worker", f"{worker.id}: {worker.state}, Python {worker.python}, on {worker.host}"
    for line in examine_environments(store):
        yield "packages", line
    for problem in _problems(status, skew):
        yield "problem", problem


def no_worker(queue: str, url: Address) -> str:
    """Return what to do about a queue without workers on a server of its own."""
    return (
        f"nothing can run: queue {queue!r} has no workers. Start some: `nbstreamq worker {url}"
        f" --queue {queue}`."
    )


def _skew_text(skew: float) -> str:
    if abs(skew) < 0.001:
        return "agrees with this machine's"
    return f"{abs(skew):.3f} s {'ahead of' if skew > 0 else 'behind'} this machine's"


def _summary(status: QueueStatus) -> str:
    waiting = sum(v.waiting + v.delayed for v in status.lanes)
    running = sum(v.running for v in status.lanes)
    return (
        f"{status.queue!r}: {plural(len(status.workers), 'worker')}, {plural(waiting, 'message')}"
        f" waiting, {running:,} running"
    )


def _problems(status: QueueStatus, skew: float) -> Iterator[str]:
    yield from status.warnings
    if status.refusals:
        yield status.refusals
    if abs(skew) > SKEW:
        yield (
            f"the server's clock and this machine's differ by {abs(skew):.0f} s: delays and times"
            " will look wrong. Have both set by NTP."
        )
    pythons = {w.python for w in status.workers} - {""}
    if pythons and PYTHON not in pythons:
        yield (
            f"workers run Python {', '.join(sorted(pythons))}, this is Python {PYTHON}: functions"
            f" sent from here can't run there. Start workers with Python {PYTHON}."
        )


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that was refused, or calls that failed for good.

    Attributes
    ----------
    id
        Id of the entry on the server.
    when
        When it was set aside, by the server's clock.
    kind
        ``refused``: the message had no valid signature, or was a copy. ``failed``: the last attempt
        raised an exception, exceeded a limit, or lost its worker.
    why
        What happened: the error, shortened. If several items failed together, the most frequent
        errors; `Job.errors` has all of them.
    lane, task
        Lane of the message, and id of the task, as in `TaskFuture.id`; empty if unknown. For a
        refused message, this is only what it claims.
    name, job, items
        Name of the function, id of the job, and the items; empty if the message is not signed.
    attempts
        Number of attempts, including lost workers; 0 if unknown.
    can_retry
        Whether `retry` works: the message is complete and signed with this queue's secret.
    """

    id: str
    when: datetime
    kind: str
    why: str
    lane: str
    task: str
    name: str
    job: str
    items: tuple[int, ...]
    attempts: int
    can_retry: bool
    _session: Session = field(repr=False, compare=False)

    def retry(self) -> TaskFuture[Any] | list[TaskFuture[Any]]:
        """Run the calls again, with all their attempts, and remove this entry.

        Calls of a named job become part of that job again, for all its clients. Any other call
        becomes a new job of this client; its old future stays failed.

        Returns
        -------
        TaskFuture or list
            The future of the new run; a list of futures if the entry has several items.

        Raises
        ------
        NbstreamqError
            The entry can't be tried again, see `can_retry`, or another client has just done it.
        JobNotFound
            The named job was deleted or replaced, or has expired.
        """
        session, entry_id = self._session, self.id.encode()
        found = session.ask(Store.dead_entry, entry_id)
        if found is None:
            raise NbstreamqError(
                f"Entry {self.id} ({self.task or self.kind}) is no longer in the dead stream: it"
                " was tried again, or is older than a week."
            )
        if (obstacle := _obstacle(found)) or found.task is None:
            raise NbstreamqError(f"Entry {self.id} can't be tried again: {self.why} {obstacle}")
        futures = (
            _again_in_job(session, found, found.task)
            if is_named(self.job)
            else _anew(session, found.task, found.lane)
        )
        with suppress(NbstreamqError):  # it is sent; at worst it is still listed
            session.ask(Store.forget_dead, [found])
        return futures if len(futures) > 1 else futures[0]

    @property
    def task_text(self) -> str:
        """The task's id, and how many more of its job there are."""
        return self.task + (f" and {len(self.items) - 1:,} more" if len(self.items) > 1 else "")

    def __str__(self) -> str:
        where = " ".join(part for part in (self.task_text, self.name, self.lane) if part)
        said = f"{self.when:%Y-%m-%d %H:%M:%S} {self.kind} {where or '(no task)'}: {self.why}"
        return printable(said)


class DeadLetters(list[DeadLetter]):
    """A list of `DeadLetter`, the newest last, that prints readably."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was refused, and nothing failed for good"


def dead_letters(session: Session) -> DeadLetters:
    """Return what was refused by a queue, or failed for good in it, the newest last."""
    found = session.ask_within(LOOK_PATIENCE, Store.dead)
    return DeadLetters(_letter(entry, session) for entry in found)


def _letter(entry: DeadEntry, session: Session) -> DeadLetter:
    milliseconds, task = int(entry.entry_id.partition(b"-")[0]), entry.task
    return DeadLetter(
        id=entry.entry_id.decode(),
        when=datetime.fromtimestamp(min(milliseconds / 1000, MAX_TIME), UTC),
        kind="failed" if entry.has_failed else "refused",
        why=entry.reason,
        lane=entry.lane or entry.source,
        task=entry.claim,
        name=task.name if task else "",
        job=task.job if task else "",
        items=entry.items,
        attempts=task.attempt + task.losses if task else 0,
        can_retry=not _obstacle(entry),
        _session=session,
    )


def _obstacle(entry: DeadEntry) -> str:
    """Return why an entry can't be tried again; empty if it can."""
    task = entry.task
    if task is None:
        return "Only a task that carries this queue's signature can. Submit the call again."
    if entry.reason == REPLAYED:
        return "It was run. Submit the call again."
    if entry.lane.startswith("@"):
        return "It was meant for one worker, and its lane goes with that."
    if not task.args and not is_named(task.job):
        return (
            f"Its arguments are larger than the {KEPT_BYTES // 1024} KiB that are kept. Use"
            " job.retry_failed(), where the job is, or submit the call again."
        )
    return ""


def _again_in_job(session: Session, entry: DeadEntry, task: Task) -> list[TaskFuture[Any]]:
    """Put items of a named job into their lane again, as part of it."""
    from .named import NamedJob  # needs cloudpickle: slow to import

    # The entry belongs to a job of this queue: do not look in others.
    job = NamedJob(session, task.job.rpartition(":")[0]).attach(lambda _: [])
    chosen = entry.items
    if job.id != task.job:
        raise JobNotFound(f"Job {task.job!r} was replaced by another one of its name.")
    if entry.has_failed:
        job._rerun({State.FAILED}, only=chosen)
    else:  # it never was in a worker's hands
        session.submit(job._table, task, 0.0)
    return [job[item] for item in chosen]


def _anew(session: Session, task: Task, lane: str) -> list[TaskFuture[Any]]:
    """Submit the items of `task` again, as a job of this session."""
    session.check_open()
    session.workers.start()

    fn = stored_function(session, task.fn, task.name)
    table = session.new_table(fn, task.name, lane)
    # The arguments stay as they are, so items keep their place; those before it are not part of it.
    table.add(Payload(0, task.span[-1].stop, task.call, task.args))
    session.register(table)
    chosen = list(items(task.span))
    table.mark_cancelled(sorted(set(range(len(table))) - set(chosen)))
    futures = Job[Any](session, table)[:]
    session.submit(table, task.with_changes(job=table.job, n=0, attempt=1, losses=0), 0.0)
    return [futures[item] for item in chosen]
