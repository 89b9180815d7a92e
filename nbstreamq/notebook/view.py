"""A job as plain data: what widget, HTML and text show. Draws nothing, knows no IPython."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from typing import Any, TypeVar

from ..client.job import Job
from ..client.ledger import RunInfo
from ..wire.item_ranges import size

#: Columns of the strip that shows who was busy when. More are finer, and slower to draw.
N_COLUMNS = 100
#: Seconds that one column stands for, at first; doubled whenever the job outgrows the strip.
FIRST_COLUMN = 0.05
#: Seconds over which the rate is measured.
RATE_WINDOW = 5.0
#: Seconds between two questions about the workers.
SURVEY = 1.0
#: Most errors, printing items, progress reports and workers shown.
N_ERRORS, N_PRINTING, N_PROGRESS, N_WORKERS = 5, 20, 8, 32
#: Characters shown of one traceback, and of one item's output: its end.
MAX_TRACEBACK, MAX_OUTPUT = 8000, 2000


def worker_labels(workers: Iterable[str]) -> dict[str, str]:
    """Return id -> name for people: ``worker 2``; with the machine only if there are several.

    A saved notebook shall not name a machine to strangers for nothing.
    """
    parts = {worker: worker.partition("#") for worker in workers}
    several = len({machine for machine, _, _ in parts.values()}) > 1
    return {w: w if several else f"worker {number}" for w, (_, _, number) in parts.items()}


#: The first and the last of some items; empty if there are none.
Ends = tuple[int, ...]
T = TypeVar("T")


def outermost(*parts: Ends) -> Ends:
    """Return the first and the last of all items that lie in some parts."""
    known = [part for part in parts if part]
    return (min(a for a, _ in known), max(b for _, b in known)) if known else ()


def _pairs(row: list[T]) -> Iterator[tuple[T, T]]:
    return zip(row[::2], row[1::2], strict=True)


class WorkerTimeline:
    """Who was busy when: a row for each worker, a column for each stretch of time.

    A column holds the seconds that the worker was busy in it, the first and the last of the items
    it was busy with, and how many it lost, or had to leave for another try.
    """

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self.seconds = FIRST_COLUMN
        self._busy: dict[str, list[float]] = {}
        self._trouble: dict[str, list[float]] = {}
        self._items: dict[str, int] = {}
        self._ran: dict[str, list[Ends]] = {}
        #: What a worker said last when it was at an item that takes a while.
        self._running: dict[str, RunInfo] = {}

    def add(self, report: RunInfo, now: float) -> None:
        """Take in what a worker did."""
        self._fit(now)
        busy = self._busy.setdefault(report.worker, [0.0] * N_COLUMNS)
        trouble = self._trouble.setdefault(report.worker, [0.0] * N_COLUMNS)
        ran = self._ran.setdefault(report.worker, [()] * N_COLUMNS)
        if report.kind == "started":
            self._running[report.worker] = report
        elif report.kind in ("retried", "lost"):
            self._running.pop(report.worker, None)
            trouble[self._column(now)] += 1
        elif report.kind == "finished":
            end, running = report.started + report.seconds, self._running.get(report.worker)
            if running and end >= running.started:
                del self._running[report.worker]
            self._items[report.worker] = self._items.get(report.worker, 0) + size(report.span)
            self._fill(busy, ran, report, end)

    def forget(self, is_over: Callable[[int], bool]) -> None:
        """Of items that were stopped there is no report: they run no more."""
        found = self._running.items()
        self._running = {w: r for w, r in found if not is_over(r.n + r.span[0].start)}

    def rows(self, now: float) -> list[dict[str, Any]]:
        """Return what is known of each worker; of the busiest, if there are many.

        ``busy``, ``ran`` and ``trouble`` are the share of time, the first and the last item, and
        the number of troubles in each column, ``seconds``, ``n_items`` and ``n_trouble`` the sums.
        """
        self._fit(now)
        busy = {name: row.copy() for name, row in self._busy.items()}
        ran = {name: row.copy() for name, row in self._ran.items()}
        for name, report in self._running.items():
            self._fill(busy[name], ran[name], report, now)
        names = sorted(busy, key=lambda name: -sum(busy[name]))[:N_WORKERS]
        labels = worker_labels(names)
        return [
            {
                "worker": labels[name],
                "busy": [round(min(1.0, s / self.seconds), 2) for s in busy[name]],
                "ran": [list(ends) for ends in ran[name]],
                "trouble": self._trouble[name],
                "seconds": round(sum(busy[name]), 2),
                "n_items": self._items.get(name, 0),
                "n_trouble": int(sum(self._trouble[name])),
            }
            for name in sorted(names)
        ]

    def n_used(self, now: float) -> int:
        """Return how many columns have begun."""
        return self._column(now) + 1

    def _column(self, at: float) -> int:
        return min(N_COLUMNS - 1, max(0, int((at - self._begun) / self.seconds)))

    def _fill(self, busy: list[float], ran: list[Ends], report: RunInfo, end: float) -> None:
        items = report.n + report.span[0].start, report.n + report.span[-1].stop - 1
        for k in range(self._column(report.started), self._column(end) + 1):
            first = self._begun + k * self.seconds
            busy[k] += max(0.0, min(end, first + self.seconds) - max(report.started, first))
            ran[k] = outermost(ran[k], items)

    def _fit(self, now: float) -> None:
        """Widen the columns until `now` is in one of them."""
        pad = [0.0] * (N_COLUMNS // 2)
        while now > self._begun + self.seconds * N_COLUMNS:
            self.seconds *= 2
            for table in (self._busy, self._trouble):
                for name, row in table.items():
                    table[name] = [*map(sum, _pairs(row)), *pad]
            for name, ran in self._ran.items():
                self._ran[name] = [*starmap(outermost, _pairs(ran)), *[()] * len(pad)]


class JobView:
    """Looks at a job again and again, and says what there is to show.

    Parameters
    ----------
    job
        Any job.
    clock
        Returns the seconds since the epoch.
    """

    def __init__(self, job: Job[Any], clock: Callable[[], float] = time.time) -> None:
        self._job = job
        self._clock = clock
        self._begun = clock()
        self._ended: float | None = None
        self._strip = WorkerTimeline(self._begun)
        self._n_reports = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._surveyed = 0.0
        self._workers: dict[str, dict[str, Any]] = {}
        self._obstacle = ""

    def snapshot(self) -> dict[str, Any]:
        """Return what there is to show now, as JSON takes it; asks the server once a second."""
        job, now = self._job, self._clock()
        is_over = job.done()
        if is_over and self._ended is None:
            self._ended = now if self._samples else self._last_end(now)
            self._workers = {}
        until = self._ended or now
        self._take_reports(until)
        self._strip.forget(job.ledger.has_ended)
        if not is_over and now - self._surveyed >= SURVEY:
            self._surveyed = now
            self._workers, self._obstacle = job.survey()
        counts = {str(state): n for state, n in job.counts().items()}
        n_run = counts["done"] + counts["failed"]
        rate = self._rate(until, n_run)
        n_left = len(job) - n_run - counts["cancelled"]
        return {
            "id": job.id,
            "name": job.name,
            "state": _state(is_over, counts),
            "n": len(job),
            "counts": counts,
            "elapsed": round(until - self._begun, 2),
            "rate": round(rate, 2),
            "remaining": round(n_left / rate, 1) if rate and n_left else None,
            "n_busy": sum(d.get("state") == "busy" for d in self._workers.values()),
            "n_workers": len(self._workers),
            "obstacle": "" if is_over or counts["running"] else self._obstacle,
            "strip": self._strip.rows(until),
            "column_seconds": self._strip.seconds,
            "n_columns": self._strip.n_used(until),
            "errors": _errors(job.ledger.errors(N_ERRORS)),
            "n_errors": counts["failed"],
            "output": _output(job),
            "progress": _progress(job),
        }

    def _last_end(self, now: float) -> float:
        """Return when a job ended that was over before anybody looked, such as one attached to."""
        ends = (r.started + r.seconds for r in self._job.ledger.reports(0) if r.kind == "finished")
        return min(now, max(ends, default=now))

    def _take_reports(self, now: float) -> None:
        for report in self._job.ledger.reports(self._n_reports):
            self._n_reports += 1
            if report.started and report.started < self._begun:
                # It was shown later than it was begun.
                self._begun = report.started
                self._strip = WorkerTimeline(self._begun)
                self._n_reports = 0
                self._take_reports(now)
                return
            self._strip.add(report, now)

    def _rate(self, now: float, n_run: int) -> float:
        """Return items a second: of late, or in all when the job is over."""
        if self._ended is not None:
            return n_run / max(1e-3, self._ended - self._begun)
        self._samples.append((now, n_run))
        while now - self._samples[0][0] > RATE_WINDOW and len(self._samples) > 2:
            self._samples.popleft()
        then, before = self._samples[0]
        return (n_run - before) / (now - then) if now > then else 0.0


def _state(is_over: bool, counts: dict[str, int]) -> str:
    if not is_over:
        return "running" if counts["running"] or counts["done"] else "waiting"
    if counts["failed"]:
        return "failed"
    return "cancelled" if counts["cancelled"] else "done"


def _errors(errors: dict[int, BaseException]) -> list[dict[str, Any]]:
    found = []
    for item, error in errors.items():
        # Unlike str(), this takes any exception.
        summary = traceback.format_exception_only(error)[0].partition("\n")[0]
        text = "".join(traceback.format_exception(error))
        found.append({"item": item, "summary": summary[:300], "traceback": text[-MAX_TRACEBACK:]})
    return found


def _output(job: Job[Any]) -> list[dict[str, Any]]:
    printed = job.ledger.output.last_texts(N_PRINTING)
    return [{"item": i, "text": text[-MAX_OUTPUT:]} for i, text in printed.items()]


def _progress(job: Job[Any]) -> list[dict[str, Any]]:
    known = job.ledger.output.all_progress().items()
    reported = [(i, done) for i, done in known if not job.ledger.has_ended(i)][-N_PROGRESS:]
    return [{"item": i, "done": done, "total": total} for i, (done, total) in reported]
