"""What a server and its queues report, as text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..wire.messages import State
from ..wire.records import ServerFacts
from ..wire.store import Store
from .status import JobStatus, QueueStatus, job_statuses, queue_status


class Family(NamedTuple):
    """One metric: its name, its type, what it says, and (labels, value) for each series."""

    name: str
    kind: str
    about: str
    series: list[tuple[dict[str, str], float]]

    def __str__(self) -> str:
        head = f"# HELP {self.name} {self.about}\n# TYPE {self.name} {self.kind}\n"
        return head + "".join(_line(self.name, *one) for one in self.series)


def _line(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}\n" if pairs else f"{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def metrics_text(stores: Sequence[Store], facts: ServerFacts) -> str:
    """Return the metrics of some queues, and of their server, in Prometheus' text format.

    Workers report to the server with each heartbeat, so nothing but the server is asked.
    """
    found = [queue_status(store, "", 0, "") for store in stores]
    jobs = [job for store in stores for job in job_statuses(store)]
    letters = [({"queue": store.keys.queue}, float(len(store.dead()))) for store in stores]
    dead = Family("nbstreamq_dead_letters", "gauge", "Refused and failed messages kept.", letters)
    families = (*_of_server(facts), *_of_queues(found), *_of_workers(found), dead, *_of_jobs(jobs))
    return "".join(str(family) for family in families if family.series)


def _of_server(facts: ServerFacts) -> Iterator[Family]:
    sizes = {
        "used": ("Memory that the server uses.", facts.used_bytes),
        "limit": ("Memory that the server may use; 0: no limit.", facts.limit_bytes),
    }
    for what, (about, n_bytes) in sizes.items():
        series = [] if n_bytes is None else [(dict[str, str](), float(n_bytes))]
        yield Family(f"nbstreamq_server_memory_{what}_bytes", "gauge", about, series)


def _of_queues(found: Iterable[QueueStatus]) -> Iterator[Family]:
    lanes = [
        ({"queue": s.queue, "lane": lane.lane}, lane)
        for s in found
        for lane in s.lanes
        if lane.lane == "default" or lane.over or lane.waiting or lane.running or lane.delayed
    ]
    messages = [
        ({**labels, "state": state}, float(getattr(lane, state)))
        for labels, lane in lanes
        for state in ("waiting", "running", "delayed")
    ]
    about = "Messages of a lane by state; a chunk of a map is one."
    yield Family("nbstreamq_messages", "gauge", about, messages)
    settled = [(labels, float(lane.over)) for labels, lane in lanes]
    yield Family("nbstreamq_messages_settled_total", "counter", "Messages settled.", settled)
    refused = [
        ({"queue": s.queue, "kind": kind}, float(n)) for s in found for kind, n in s.refused.items()
    ]
    limited = [
        ({"queue": s.queue, "limit": limit.limit, "state": state}, float(getattr(limit, state)))
        for s in found
        for limit in s.limits
        for state in ("waiting", "running")
    ]
    about = "Calls in sections that a limit guards, and calls that wait for one."
    yield Family("nbstreamq_limit_calls", "gauge", about, limited)
    about = "Messages refused as unsigned or as copies."
    yield Family("nbstreamq_messages_refused_total", "counter", about, refused)


def _of_workers(found: Iterable[QueueStatus]) -> Iterator[Family]:
    numbers = [
        ({"queue": s.queue, "state": state}, float(sum(w.state == state for w in s.workers)))
        for s in found
        for state in ("starting", "idle", "busy", "waiting")
    ]
    yield Family("nbstreamq_workers", "gauge", "Workers by state.", numbers)
    workers = [
        ({"queue": s.queue, "worker": w.id, "host": w.host}, w) for s in found for w in s.workers
    ]
    memory = [(labels, float(worker.memory_bytes)) for labels, worker in workers]
    yield Family("nbstreamq_worker_memory_bytes", "gauge", "Memory of a worker.", memory)
    cpu = [(labels, worker.cpu) for labels, worker in workers]
    yield Family("nbstreamq_worker_cpu_ratio", "gauge", "Processor cores that it uses.", cpu)


def _of_jobs(jobs: Iterable[JobStatus]) -> Iterator[Family]:
    items = [
        ({"queue": job.queue, "job": job.name, "state": str(state)}, float(n))
        for job in jobs
        for state, n in (
            ("open", job.submitted - job.done - job.failed - job.cancelled),
            (State.DONE, job.done),
            (State.FAILED, job.failed),
            (State.CANCELLED, job.cancelled),
        )
    ]
    yield Family("nbstreamq_job_items", "gauge", "Calls of a named job by state.", items)
