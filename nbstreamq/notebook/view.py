"""A job as plain data, which templates and the terminal show. Knows no IPython."""

from __future__ import annotations

import time
import traceback
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..client.calls import Calls
from ..client.error_notes import RunInfo
from ..client.estimate import OFFERED, peak_of, seconds_on
from ..client.future import CallFuture
from ..client.job import Job
from ..client.progress import Loop, Waits
from ..client.session import Session
from ..client.table import JobTable, Outstanding
from ..sizes import plural
from ..wire.item_ranges import items, size
from ..wire.messages import State

#: Columns of a worker's timeline. More are finer, and slower to draw.
N_COLUMNS = 100
#: Seconds that one column stands for, at first; doubled whenever the job outgrows the timeline.
FIRST_COLUMN = 0.05
#: Seconds over which the rate is measured.
RATE_WINDOW = 5.0
#: Seconds that an item takes whose duration, and not the rate, tells the time that is left.
LONG_ITEM = 0.5
#: Seconds to the end from which it is told what more workers would bring.
LONG_WAIT = 60.0
#: Reports that the duration of items is the mean of. More follow a change more slowly.
N_DURATIONS = 100
#: Seconds that a job must have taken whose rate is told when it is over.
MIN_SECONDS = 0.01
#: Calls that must have ended before the mean of their rate is told.
MIN_ENDED = 10
#: Seconds between two questions about the workers.
SURVEY = 1.0
#: Most errors, printing items, progress bars and workers shown.
N_ERRORS, N_PRINTING, N_PROGRESS, N_WORKERS = 5, 20, 8, 32
#: Characters shown of one traceback, and of one item's output: the end.
MAX_TRACEBACK, MAX_OUTPUT = 8000, 2000
#: Characters of an error in one line.
MAX_SUMMARY = 120


def worker_labels(workers: Iterable[str]) -> dict[str, str]:
    """Return id -> name for people: ``worker 2``, with the machine only if there are several.

    A saved notebook does not tell strangers the machine's name without need.
    """
    parts = {worker: worker.partition("#") for worker in workers}
    several = len({machine for machine, _, _ in parts.values()}) > 1
    return {w: w if several else f"worker {number}" for w, (_, _, number) in parts.items()}


# -- what there is to show ----------------------------------------------------------------------

#: The first and the last of some items; empty if there are none.
Ends = tuple[int, ...]
T = TypeVar("T")


def outermost(*parts: Ends) -> Ends:
    """Return the first and the last of all items in some parts."""
    known = [part for part in parts if part]
    return (min(a for a, _ in known), max(b for _, b in known)) if known else ()


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What one worker did; the lists have an entry for each column of its timeline.

    Attributes
    ----------
    name
        For people.
    busy
        Share of the time that it was busy, from 0 to 1.
    ran
        The first and the last item that it was busy with.
    trouble
        How many items it lost, or had to leave for another try.
    seconds, n_items
        How long it was busy, and how many items it finished.
    """

    name: str
    busy: list[float]
    ran: list[Ends]
    trouble: list[float]
    seconds: float
    n_items: int

    @property
    def n_trouble(self) -> int:
        """How many items it lost, or had to leave for another try."""
        return int(sum(self.trouble))

    def stretches(self, n_columns: int) -> Iterator[tuple[int, float, Ends]]:
        """Yield the first columns, in order; neighbours that look the same as one.

        How many there are, the share of the time that the worker was busy, and what ran.
        """
        busy, ran, start = self.busy, self.ran, 0
        for end in range(1, n_columns + 1):
            if end == n_columns or busy[end] != busy[start]:
                items = ran[start] if end == start + 1 else outermost(*ran[start:end])
                yield end - start, busy[start], items
                start = end

    def troubles(self) -> Iterator[tuple[int, int]]:
        """Yield each column with trouble, and how many items it was."""
        return ((k, int(times)) for k, times in enumerate(self.trouble) if times)


class FailedItem(NamedTuple):
    """An item that failed: its index, and its error in one line and in full."""

    item: int
    summary: str
    traceback: str


class PrintedText(NamedTuple):
    """The end of what an item printed."""

    item: int
    text: str


class ItemProgress(NamedTuple):
    """How many steps a running item has done, and of how many; None: it did not say."""

    item: int
    done: int
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPicture:
    """What there is to show of a job at one moment.

    Attributes
    ----------
    id, name, state
        Of the job; the state is ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
    n, counts
        Number of items, and how many are in each state.
    elapsed, rate, remaining
        Seconds since the job began; items a second; seconds to the end, if that can be told.
    outlook, worker_bytes
        Number of workers -> seconds to the end on so many, if that is long; and the most memory
        that one has used, if that is known.
    n_busy, n_workers
        Of the workers that the server knows; 0 when the job is over.
    obstacle
        Why nothing can run, or goes on; empty if something does.
    note
        What of the function's packages is different on some machines; empty if nothing is.
    workers, n_columns, column_seconds
        Timelines, how many of their columns have begun, and how many seconds one stands for.
    errors, output, progress
        The first errors, the last items that printed, and the running items that report progress.
    can_retry
        Whether an item has failed that may be run again.
    has_total
        Whether `n` is the number of all items. If not, more may come.
    """

    id: str
    name: str
    state: str
    n: int
    counts: dict[str, int]
    elapsed: float
    rate: float
    remaining: float | None
    n_busy: int
    n_workers: int
    obstacle: str
    note: str = ""
    outlook: dict[int, float] = field(default_factory=dict)
    worker_bytes: int | None = None
    workers: list[WorkerRow] = field(default_factory=list)
    n_columns: int = 1
    column_seconds: float = FIRST_COLUMN
    errors: list[FailedItem] = field(default_factory=list)
    output: list[PrintedText] = field(default_factory=list)
    progress: list[ItemProgress] = field(default_factory=list)
    can_retry: bool = False
    has_total: bool = True

    @property
    def is_over(self) -> bool:
        """Whether no item is left."""
        return self.state not in ("waiting", "running")

    @property
    def obstacle_kind(self) -> str:
        """What the obstacle does, in words."""
        return "Held up" if self.counts["running"] else "Nothing can run"

    @property
    def n_over(self) -> int:
        """How many items have ended, in whatever way."""
        return self.counts["done"] + self.counts["failed"] + self.counts["cancelled"]


# -- who was busy when --------------------------------------------------------------------------


class WorkerTimeline:
    """When each worker was busy, and with which items, in columns of equal time."""

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self.seconds = FIRST_COLUMN
        self._busy: dict[str, list[float]] = {}
        self._trouble: dict[str, list[float]] = {}
        self._items: dict[str, int] = {}
        self._ran: dict[str, list[Ends]] = {}
        #: Worker -> what it said last when it began an item that takes a while.
        self._running: dict[str, RunInfo] = {}
        #: Item -> when it began, of all that take a while: a worker may run several coroutines.
        self._began: dict[int, float] = {}

    def add(self, run: RunInfo, now: float) -> None:
        """Take in what a worker did."""
        self._fit(now)
        busy = self._busy.setdefault(run.worker, [0.0] * N_COLUMNS)
        trouble = self._trouble.setdefault(run.worker, [0.0] * N_COLUMNS)
        ran = self._ran.setdefault(run.worker, [()] * N_COLUMNS)
        self._note(run)
        if run.kind == "started":
            self._running[run.worker] = run
        elif run.kind == "handed_back":
            self._running.pop(run.worker, None)
        elif run.kind in ("retried", "lost"):
            self._running.pop(run.worker, None)
            trouble[self._column(now)] += 1
        elif run.kind == "finished":
            end, running = run.started + run.seconds, self._running.get(run.worker)
            if running and end >= running.started:
                del self._running[run.worker]
            self._items[run.worker] = self._items.get(run.worker, 0) + size(run.span)
            self._fill(busy, ran, run, end)

    def _note(self, run: RunInfo) -> None:
        """Note that an item has begun, or that some run no longer."""
        if run.kind == "started":
            self._began[run.n + run.span[0].start] = run.started
        elif size(run.span) < len(self._began):
            for item in items(run.span):
                self._began.pop(run.n + item, None)
        else:
            for item in [i for i in self._began if any(i - run.n in part for part in run.span)]:
                del self._began[item]

    def begins(self, *, concurrent: bool) -> list[float]:
        """Return when the items began that take a while and run now.

        Parameters
        ----------
        concurrent
            Whether a worker runs several at a time.
        """
        one_for_each = [run.started for run in self._running.values()]
        return list(self._began.values()) if concurrent else one_for_each

    def forget(self, is_over: Callable[[int], bool]) -> None:
        """Forget running items that are over: no worker reports an item that was stopped."""
        found = self._running.items()
        self._running = {w: r for w, r in found if not is_over(r.n + r.span[0].start)}
        self._began = {item: at for item, at in self._began.items() if not is_over(item)}

    def rows(self, now: float) -> list[WorkerRow]:
        """Return what is known of the workers: of the busiest, if there are many."""
        self._fit(now)
        busy = {name: row.copy() for name, row in self._busy.items()}
        ran = {name: row.copy() for name, row in self._ran.items()}
        for name, run in self._running.items():
            self._fill(busy[name], ran[name], run, now)
        names = sorted(busy, key=lambda name: -sum(busy[name]))[:N_WORKERS]
        labels = worker_labels(names)
        return [
            WorkerRow(
                labels[name],
                [round(min(1.0, seconds / self.seconds), 1) for seconds in busy[name]],
                ran[name],
                self._trouble[name].copy(),
                # A worker with several coroutines is no busier than with one.
                round(sum(min(seconds, self.seconds) for seconds in busy[name]), 2),
                self._items.get(name, 0),
            )
            for name in sorted(names, key=_by_number)
        ]

    def n_used(self, now: float) -> int:
        """Return how many columns have begun."""
        return self._column(now) + 1

    def _column(self, at: float) -> int:
        return min(N_COLUMNS - 1, max(0, int((at - self._begun) / self.seconds)))

    def _fill(self, busy: list[float], ran: list[Ends], run: RunInfo, end: float) -> None:
        items = run.n + run.span[0].start, run.n + run.span[-1].stop - 1
        for k in range(self._column(run.started), self._column(end) + 1):
            first = self._begun + k * self.seconds
            busy[k] += max(0.0, min(end, first + self.seconds) - max(run.started, first))
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


def _by_number(worker: str) -> tuple[str, int, str]:
    machine, _, number = worker.rpartition("#")
    return machine, int(number) if number.isdecimal() else -1, number


def _pairs(row: list[T]) -> Iterator[tuple[T, T]]:
    return zip(row[::2], row[1::2], strict=True)


# -- how long it will take ----------------------------------------------------------------------


class Durations:
    """How long items take, of late."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float]] = deque(maxlen=N_DURATIONS)

    def add(self, run: RunInfo) -> None:
        """Take in what a worker did."""
        if run.kind == "finished":
            self._last.append((size(run.span), run.seconds))

    def mean(self) -> float:
        """Return the seconds that an item takes; 0: that is not known."""
        n = sum(n for n, _ in self._last)
        return sum(seconds for _, seconds in self._last) / n if n else 0.0


def time_left(
    n_left: int, rate: float, mean: float, running: list[float], n_at_once: int = 0
) -> float | None:
    """Return how many seconds some items take; None if that can't be told.

    Parameters
    ----------
    n_left
        How many are not over.
    rate
        How many ended in a second, of late.
    mean
        How many seconds one takes.
    running
        For how many seconds those have run that take a while.
    n_at_once
        How many run at the same time, if those that do are fewer for a moment.
    """
    if not running or mean < LONG_ITEM:
        return n_left / rate if rate else None
    begin_now = [0.0] * (min(n_at_once, n_left) - len(running))
    ends = sorted(max(0.0, mean - seconds) for seconds in running + begin_now)
    n_waiting = max(0, n_left - len(ends))
    rounds, n_more = divmod(n_waiting, len(ends))
    last = ends[n_more - 1] + (rounds + bool(n_more)) * mean
    return max(last, ends[-1] + rounds * mean) or None


# -- looking at a job, or at calls --------------------------------------------------------------


class WorkerSurvey:
    """The workers that there are for some calls, and why none may run them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked_at = 0.0
        self._found: dict[str, dict[str, Any]] = {}
        self.obstacle = self.note = ""

    def look(self, what: Outstanding, now: float) -> None:
        """Ask the server, unless that was a moment ago."""
        if now - self._asked_at >= SURVEY:
            self._asked_at = now
            self._found, self.obstacle = self._session.survey(what)
            self.note = "; ".join(self._session.environments.notes(what.fn, self._found))

    def forget(self) -> None:
        """Forget them: everything is over."""
        self._found, self.obstacle = {}, ""

    @property
    def n(self) -> int:
        """How many there are."""
        return sum(not about.get("waits") for about in self._found.values())

    @property
    def n_busy(self) -> int:
        """How many of them run something."""
        return sum(about.get("state") == "busy" for about in self._found.values())

    @property
    def held_up(self) -> str:
        """Which limits they wait for; empty if one of them does something."""
        limits = [
            about.get("limit", "") for about in self._found.values() if about.get("state") == "busy"
        ]
        if not all(limits):
            return ""
        return "; ".join(
            f"{plural(n, 'worker')} {'waits' if n == 1 else 'wait'} for limit {limit}"
            for limit, n in Counter(limits).items()
        )

    @property
    def peak(self) -> int | None:
        """The most memory that one of them has used; None if that is not known."""
        return peak_of(self._found.values())


class JobView:
    """Looks at a job again and again, and says what there is to show; does not keep it alive.

    Parameters
    ----------
    job
        Any job.
    clock
        Returns the seconds since the epoch.
    """

    def __init__(self, job: Job[Any], clock: Callable[[], float] = time.time) -> None:
        self._table: JobTable = weakref.proxy(job._table)
        self._clock = clock
        self._begun = clock()
        self._ended: float | None = None
        self._timeline = WorkerTimeline(self._begun)
        self._durations = Durations()
        self._n_reports = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._workers = WorkerSurvey(job._session)
        self._most_running = 0

    @property
    def is_over(self) -> bool:
        """Whether no item is left."""
        return self._table.is_over

    def picture(self) -> JobPicture:
        """Return what there is to show now; asks the server once a second."""
        table, now = self._table, self._clock()
        is_over = table.is_over
        self._look(is_over, now)
        until = self._ended or now
        self._take_reports(until)
        self._timeline.forget(table.has_ended)
        counts = {str(state): n for state, n in table.counts().items()}
        n_run = counts["done"] + counts["failed"]
        rate = self._rate(until, n_run)
        n_left = len(table) - n_run - counts["cancelled"]
        remaining = self._time_left(now, n_left, rate)
        return JobPicture(
            id=table.job,
            name=table.title or table.name,
            state=_state(is_over, counts),
            n=len(table),
            counts=counts,
            elapsed=round(until - self._begun, 2),
            rate=round(rate, 2),
            remaining=remaining,
            outlook=self._outlook(n_left) if (remaining or 0.0) >= LONG_WAIT else {},
            worker_bytes=self._workers.peak,
            n_busy=self._workers.n_busy,
            n_workers=self._workers.n,
            obstacle=self._workers.held_up if counts["running"] else self._workers.obstacle,
            note=self._workers.note,
            workers=self._timeline.rows(until),
            n_columns=self._timeline.n_used(until),
            column_seconds=self._timeline.seconds,
            errors=[_failed_item(*found) for found in table.errors(N_ERRORS).items()],
            output=_output(table),
            progress=_progress(table),
            can_retry=counts["failed"] > 0,
        )

    def _look(self, is_over: bool, now: float) -> None:
        """Learn about the workers; or note that the job is over."""
        if not is_over:
            self._workers.look(self._table, now)
        elif self._ended is None:
            self._ended = now if self._samples else self._last_end(now)
            self._workers.forget()

    def _last_end(self, now: float) -> float:
        """Return when a job ended that was over before this looked at it."""
        ends = (r.started + r.seconds for r in self._table.reports(0) if r.kind == "finished")
        return min(now, max(ends, default=now))

    def _take_reports(self, now: float) -> None:
        for run in self._table.reports(self._n_reports):
            self._n_reports += 1
            if run.started and run.started < self._begun:
                # The job began before it was shown.
                self._begun = run.started
                self._timeline = WorkerTimeline(self._begun)
                self._n_reports = 0
                self._take_reports(now)
                return
            self._timeline.add(run, now)
            self._durations.add(run)

    def _time_left(self, now: float, n_left: int, rate: float) -> float | None:
        if not n_left or self._workers.obstacle or not self._workers.n:
            return None
        concurrent = self._table.options.concurrency is not None
        running = [now - began for began in self._timeline.begins(concurrent=concurrent)]
        if concurrent:  # many coroutines end together, and the next ones begin in a moment
            self._most_running = max(self._most_running, len(running))
        mean = self._durations.mean()
        found = time_left(n_left, rate, mean, running, self._most_running)
        return None if found is None else round(found, 1)

    def _outlook(self, n_left: int) -> dict[int, float]:
        mean = self._durations.mean()
        return {n: seconds_on(n, n_left, mean) for n in OFFERED} if mean else {}

    def _rate(self, now: float, n_run: int) -> float:
        """Return items a second: of late, or of the whole job when it is over."""
        if self._ended is not None:
            seconds = self._ended - self._begun
            return n_run / seconds if seconds >= MIN_SECONDS else 0.0
        self._samples.append((now, n_run))
        while now - self._samples[0][0] > RATE_WINDOW and len(self._samples) > 2:
            self._samples.popleft()
        then, before = self._samples[0]
        return (n_run - before) / (now - then) if now > then else 0.0


class CallsView:
    """Looks at the single calls of one function: those of some waits, and those beside them.

    It keeps no result alive.

    Parameters
    ----------
    call
        One of those that are waited for.
    waits
        The waits that show the calls, from the first one on that was waited for.
    """

    def __init__(self, session: Session, call: CallFuture[Any], waits: Waits) -> None:
        self._session = session
        self._id, self._name = call.job, call.name
        self._waits = waits
        #: Calls that share a job id, and the number of the first one that is shown.
        self._groups: dict[Calls, int] = {}
        self._begun = time.time() if waits.first_of(call.job) is None else waits.began
        self._ended: float | None = None
        self._workers = WorkerSurvey(session)
        self._n_at_first = sum(group.n - first for group, first in self._look().items())

    @property
    def is_over(self) -> bool:
        """Whether no call is left."""
        return not any(group.open for group in self._look())

    def picture(self) -> JobPicture:
        """Return what there is to show now; asks the server once a second."""
        now, groups = time.time(), self._look()
        states = Counter[State]()
        for group, first in groups.items():
            states += group.counts(first)
        counts = {str(state): states[state] for state in State}
        is_over = self._survey(groups, now)
        elapsed = (self._ended or now) - self._begun
        n, n_over = states.total(), sum(counts[s] for s in ("done", "failed", "cancelled"))
        rate = n_over / elapsed if n_over >= MIN_ENDED else 0.0
        return JobPicture(
            id=self._id,
            name=self._name,
            state=_state(is_over, counts),
            n=n,
            counts=counts,
            elapsed=round(elapsed, 2),
            rate=round(rate, 2),
            remaining=self._time_left(n, n - n_over, rate),
            n_busy=self._workers.n_busy,
            n_workers=self._workers.n,
            obstacle=self._workers.held_up if counts["running"] else self._workers.obstacle,
            note=self._workers.note,
            progress=list(_progress_of(groups))[-N_PROGRESS:],
        )

    def _look(self) -> dict[Calls, int]:
        """Return the calls, and the number of the first one that is shown."""
        for group in list(self._session.outstanding.values()):
            if not isinstance(group, Calls) or group.function.name != self._name:
                continue
            if group not in self._groups and group.open:
                first = self._waits.first_of(group.job)
                self._groups[group] = min([*group.open] if first is None else [*group.open, first])
        return self._groups

    def _survey(self, groups: Iterable[Calls], now: float) -> bool:
        """Learn about the workers; or note that the calls are over, and return whether they are."""
        left = next((call for group in groups for call in group.open.copy().values()), None)
        if left is not None:
            self._ended = None
            self._workers.look(left, now)
        elif self._ended is None:
            self._ended = now
            self._workers.forget()
        return left is None

    def _time_left(self, n: int, n_left: int, rate: float) -> float | None:
        """Return how many seconds the calls take; None if that can't be told, or more may come."""
        if n > self._n_at_first or self._workers.obstacle or not (n_left and rate):
            return None
        return round(n_left / rate, 1)


class LoopView:
    """Looks at a loop of another library."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def is_over(self) -> bool:
        """Whether all its calls are over."""
        n_over, _, total = self._loop.count()
        return n_over == total

    def picture(self) -> JobPicture:
        """Return what there is to show now."""
        n_over, n_made, total = self._loop.count()
        n, elapsed = n_made if total is None else total, time.time() - self._loop.began
        rate = n_over / elapsed if n_over >= MIN_ENDED else 0.0
        return JobPicture(
            id=self._loop.name,
            name=self._loop.name,
            state="done" if n_over == total else "running",
            n=n,
            counts={str(state): 0 for state in State} | {"done": n_over},
            elapsed=round(elapsed, 2),
            rate=round(rate, 2),
            remaining=round((n - n_over) / rate, 1) if total and rate else None,
            n_busy=0,
            n_workers=0,
            obstacle="",
            has_total=total is not None,
        )


#: What looks at something that a person waits for.
WaitView: TypeAlias = JobView | CallsView | LoopView


def view_of_wait(session: Session, what: Outstanding | Loop, waits: Waits | None) -> WaitView:
    """Return a view of what a session waits for."""
    if isinstance(what, Loop):
        return LoopView(what)
    if isinstance(what, CallFuture) and waits is not None:
        return CallsView(session, what, waits)
    if isinstance(what, JobTable):
        return JobView(Job(session, what))
    raise TypeError(f"{what!r} is neither a job nor a call")


def _state(is_over: bool, counts: dict[str, int]) -> str:
    if not is_over:
        return "running" if counts["running"] or counts["done"] else "waiting"
    if counts["failed"]:
        return "failed"
    return "cancelled" if counts["cancelled"] else "done"


def _failed_item(item: int, error: BaseException) -> FailedItem:
    # str() fails for some exceptions; this takes any.
    summary = traceback.format_exception_only(error)[0].partition("\n")[0]
    text = "".join(traceback.format_exception(error))
    if len(summary) > MAX_SUMMARY:
        summary = f"{summary[:MAX_SUMMARY]}…"
    return FailedItem(item, summary, text[-MAX_TRACEBACK:])


def _output(table: JobTable) -> list[PrintedText]:
    printed = table.output.last_texts(N_PRINTING)
    return [PrintedText(item, text[-MAX_OUTPUT:]) for item, text in printed.items()]


def _progress(table: JobTable) -> list[ItemProgress]:
    known = table.output.all_progress().items()
    running = [(i, done) for i, done in known if table.state(i) is State.RUNNING]
    return [
        ItemProgress(item, done, total) for item, (done, total) in sorted(running[-N_PROGRESS:])
    ]


def _progress_of(groups: dict[Calls, int]) -> Iterator[ItemProgress]:
    """Yield what running calls have reported; they are counted from the first one that is shown."""
    n_before = 0
    for group, first in groups.items():
        for number, (done, total) in group.output.all_progress().items():
            if number >= first and not group.has_ended(number):
                yield ItemProgress(n_before + number - first, done, total)
        n_before += group.n - first
