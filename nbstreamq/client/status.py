"""What is known of a queue, as plain data that prints readably."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

from ..errors import ServerRefused
from ..protocol.keys import LANES
from ..protocol.store import Store

__all__ = [
    "JobList",
    "JobStatus",
    "LaneStatus",
    "QueueStatus",
    "WorkerList",
    "WorkerStatus",
    "job_statuses",
    "jobs_of",
    "queue_status",
]


@dataclass(frozen=True, kw_only=True)
class LaneStatus:
    """Numbers of stream entries of a lane: a chunk of a map is one, each of its slices another.

    `over` counts those that are neither waiting nor running any more, since the lane was made.
    """

    lane: str
    waiting: int
    running: int
    delayed: int
    over: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """A worker process.

    Attributes
    ----------
    id, host, pid, python
        Its name; where it runs.
    state
        ``idle`` or ``busy``, as of the last second.
    lanes
        What it serves, most urgent first.
    memory_bytes, cpu
        What it uses, as of the last second: memory, and the share of one processor. 0 if that is
        not known.
    """

    id: str
    host: str
    pid: int
    python: str
    state: str
    lanes: tuple[str, ...]
    memory_bytes: int = 0
    cpu: float = 0.0

    def __str__(self) -> str:
        return f"worker {self.id}: {self.state}, pid {self.pid} on {self.host}"


class WorkerList(list[WorkerStatus]):
    """Workers, a line each."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "no workers"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A named job at one moment.

    Attributes
    ----------
    name, queue, function
        Its name; that of its queue; that of its function.
    done, failed, cancelled
        Numbers of calls that have ended in each way.
    submitted
        Number of calls in all, so far.
    complete
        Whether no more calls come.
    made
        When it was made, in seconds since the epoch.
    expires
        In how many seconds it is forgotten; None: it is kept.
    size_bytes
        What the server needs for it; None if it does not tell.
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
        Its name; the server's address, without its password.
    lanes
        Those that are served, or hold something.
    workers
        All workers, of all machines.
    open_jobs
        Jobs of this client that are not over.
    trouble
        What is wrong with the connection; empty if nothing is.
    refused
        Kind of message -> how many came without this queue's signature, or a second time, in
        the last week. They were not unpickled, and are kept: see `TaskQueue.dead`.
    warnings
        What endangers or holds up tasks, and what to do about it: on the server, because workers
        die young, or because a named job has no workers left.
    """

    queue: str
    server: str
    lanes: tuple[LaneStatus, ...]
    workers: tuple[WorkerStatus, ...]
    open_jobs: int
    trouble: str
    refused: Mapping[str, int] = field(default_factory=dict)
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
        lines = [f"queue {self.queue!r} on {self.server}: {len(self.workers)} workers"]
        lines += [
            f"  lane {v.lane}: {v.waiting} waiting, {v.running} running, {v.delayed} delayed"
            for v in self.lanes
            if v.waiting or v.running or v.delayed
        ]
        lines += [f"  {worker}" for worker in self.workers]
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
        refused=store.refused(),
        warnings=(*warnings, *store.troubles(), *store.server_facts().problems()),
    )
