"""HTML of jobs, futures, refs and queues, and the words in it; the templates are in templates/.

It needs no script, no style sheet and no kernel: live views show it, and saved notebooks keep it.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.error_notes import error_text
from ..client.future import TaskFuture
from ..client.status import (
    DeadLetter,
    DeadLetters,
    JobList,
    JobStatus,
    LaneStatus,
    LimitStatus,
    QueueStatus,
    WorkerList,
    WorkerStatus,
)
from ..client.units import MAX_SHOWN, Units
from ..home import how_to_start
from ..objects.references import Ref
from ..sizes import duration, plural
from ..wire.keys import NESTED
from ..wire.messages import State
from .view import MAX_OUTPUT, N_COLUMNS, Ends, JobPicture, WorkerRow

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

#: Most characters shown of a result or an error.
MAX_TEXT = 300
#: Most workers shown, and most dead letters: the newest.
MAX_WORKERS, MAX_LETTERS = 32, 50

_abbreviate = reprlib.Repr()
_abbreviate.maxstring = _abbreviate.maxother = MAX_TEXT


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["how_to_start"] = how_to_start
    filters = (
        columns,
        describe,
        describe_outlook,
        describe_worker,
        duration,
        number,
        plural,
        size,
        tail,
    )
    templates.filters.update({one.__name__: one for one in filters})
    return templates


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(values)


# -- what there is HTML of ----------------------------------------------------------------------


def saved_html(picture: JobPicture, place: str = "") -> str:
    """Return the HTML of a job to keep in a notebook: if it is not over, it says when that was."""
    if not picture.is_over:  # nobody knows later how long it takes, or what the workers do
        picture = replace(picture, remaining=None, outlook={}, n_workers=0)
    seen = None if picture.is_over else _now()
    return job_html(picture, place, has_buttons=False, seen=seen)


def job_html(
    picture: JobPicture,
    place: str = "",
    *,
    has_buttons: bool = True,
    keeps_buttons: bool = False,
    seen: datetime | None = None,
) -> str:
    """Return the HTML of a job.

    Parameters
    ----------
    place
        Class of an empty element in which a live notebook may offer to run failed items again.
    has_buttons
        Whether the live view has buttons.
    keeps_buttons
        Whether the live view stays when the job is over, with its button for failed items.
    seen
        When the job was like that, if it is to be said that this was not its end.
    """
    printed = [f"[{p.item}] {line}" for p in picture.output for line in p.text.splitlines()]
    output = "\n".join(printed)
    return _render(
        "job.html",
        job=picture,
        output=output,
        place=place,
        has_buttons=has_buttons and (keeps_buttons or not picture.is_over),
        seen=seen,
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def future_html(future: TaskFuture[Any]) -> str:
    """Return the HTML of what is known of a call now; waits for nothing."""
    status = future.status  # once: it changes at any moment
    has_run = status in {State.DONE, State.FAILED}
    is_over, timing = has_run or status is State.CANCELLED, future.timing
    begun = timing.get("started")
    result, error = _outcome(future)
    return _render(
        "future.html",
        future=future,
        title=_shown(future),
        status=status,
        started=datetime.fromtimestamp(begun, UTC) if begun else None,
        seconds=timing["seconds"] if begun and has_run else None,
        progress=None if is_over else future.progress,
        seen=None if is_over else _now(),
        result=result,
        error=error,
        logs=future.logs,
    )


def ref_html(ref: Ref) -> str:
    """Return the HTML of a stored value: its type and size, not the value."""
    return _render("ref.html", ref=ref)


def status_html(
    status: QueueStatus, rate: float | None = None, jobs: Sequence[JobStatus] = (), note: str = ""
) -> str:
    """Return the HTML of a queue: its server, its workers, and the lanes that hold something.

    Parameters
    ----------
    rate
        Messages a second that were dealt with of late, if that is known.
    jobs
        Its named jobs.
    note
        A last sentence.
    """
    return _render(
        "status.html",
        status=status,
        rate=rate,
        lanes=list(_lane_rows(status.lanes)),
        workers=status.workers,
        worker_rows=_worker_rows(status.workers),
        limits=[_limit_row(limit) for limit in status.limits],
        awaited=status.awaited,
        jobs=jobs,
        job_rows=_job_rows(jobs),
        note=note,
    )


def workers_html(workers: WorkerList) -> str:
    """Return a table of workers."""
    return _render(
        "workers.html",
        workers=workers,
        worker_rows=_worker_rows(workers),
        awaited=workers.awaited,
    )


def units_html(units: Units, note: str = "") -> str:
    """Return a table of the units in another place; `note` is a last sentence."""
    rows = units.status()
    shown = rows[-MAX_SHOWN:]
    head = ("unit", "state", "workers", *["why"] * any(unit.why for unit in shown))
    cells = [(u.id, u.state, f"{u.n_alive} of {u.n_workers}", _cut(u.why)) for u in shown]
    return _render(
        "units.html",
        units=units,
        head=head,
        unit_rows=[row[: len(head)] for row in cells],
        n_older=len(rows) - len(shown),
        note=note,
    )


def dead_html(letters: DeadLetters) -> str:
    """Return a table of what was refused, or failed for good, the newest last."""
    rows = [_letter_row(letter) for letter in letters[-MAX_LETTERS:]]
    return _render("dead.html", letters=letters, letter_rows=rows)


def jobs_html(jobs: JobList) -> str:
    """Return a table of named jobs."""
    return _render("jobs.html", jobs=jobs, job_rows=_job_rows(jobs))


#: Type -> what returns the HTML of such an object. Jobs, queues and units have live views besides.
HTML_OF: dict[type, Callable[[Any], str]] = {
    TaskFuture: future_html,
    Ref: ref_html,
    DeadLetters: dead_html,
    JobList: jobs_html,
    QueueStatus: status_html,
    WorkerList: workers_html,
    Units: units_html,
}


def html_of(value: Any) -> str:
    """Return the HTML of an object whose type, or whose base, is in `HTML_OF`."""
    return next(html for kind, html in HTML_OF.items() if isinstance(value, kind))(value)


# -- rows of tables -----------------------------------------------------------------------------


def _lane_rows(lanes: Iterable[LaneStatus]) -> Iterable[tuple[str, ...]]:
    for v in lanes:
        if v.waiting or v.running or v.delayed:
            yield (v.lane, number(v.waiting), number(v.running), number(v.delayed))


def _limit_row(v: LimitStatus) -> tuple[str, ...]:
    concurrent = "any number" if v.concurrent is None else number(v.concurrent)
    rate = "any number" if v.rate is None else f"{v.rate:,.3g}/s"
    return v.limit, number(v.running), number(v.waiting), concurrent, rate


def _worker_rows(workers: Sequence[WorkerStatus]) -> list[tuple[str, ...]]:
    return [
        (
            w.id,
            w.activity,
            f"{w.cpu:.0%}",
            size(w.memory_bytes),
            w.host,
            str(w.pid),
            w.python,
            # Every worker serves the lanes of calls inside calls.
            ", ".join(lane for lane in w.lanes if lane not in NESTED),
        )
        for w in workers[:MAX_WORKERS]
    ]


def _letter_row(letter: DeadLetter) -> tuple[str, ...]:
    return (
        f"{letter.when:%Y-%m-%d %H:%M:%S}",
        letter.kind,
        letter.name,
        _cut(letter.why),
        str(letter.attempts or ""),
        letter.lane,
        letter.task_text,
        letter.id,
    )


def _job_rows(jobs: Iterable[JobStatus]) -> list[tuple[str, ...]]:
    now = time.time()
    return [
        (
            job.name,
            job.queue,
            job.state,
            f"{job.done:,} of {job.submitted:,}",
            number(job.failed),
            number(job.cancelled),
            job.function,
            duration(max(0.0, now - job.made)),
            "kept" if job.expires is None else f"in {duration(job.expires)}",
            "" if job.size_bytes is None else size(job.size_bytes),
        )
        for job in jobs
    ]


# -- a call -------------------------------------------------------------------------------------


def _outcome(future: TaskFuture[Any]) -> tuple[str | None, str | None]:
    """Return the result and the error of a call, in short; None where there is none."""
    if not future.done() or future.cancelled():
        return None, None
    error = future.exception(0)
    if error is None:
        return _shown(future.result(0)), None
    return None, _cut(error_text(error))


def _shown(value: Any) -> str:
    """Return the abbreviated repr of `value`, or why there is none."""
    try:
        return "".join(_abbreviate.repr(value))
    except BaseException as error:  # noqa: BLE001 - foreign code, for a display only
        return f"(can't be shown: its repr raised {type(error).__qualname__})"


# -- drawings -----------------------------------------------------------------------------------


def columns(worker: WorkerRow, n_columns: int) -> Markup:
    """Return the first columns of a worker's timeline.

    No template: there are thousands of columns, ten times a second, and few of them have changed.
    """
    from markupsafe import Markup

    parts = [_stretch(*stretch) for stretch in worker.stretches(n_columns)]
    return Markup("".join(parts))  # noqa: S704 - there are only numbers in it


@lru_cache(maxsize=MAX_WORKERS * N_COLUMNS)
def _stretch(width: int, busy: float, items: Ends) -> str:
    if not busy:
        return f'<span style="flex:{width}"></span>'
    look = f"flex:{width};background:currentColor;opacity:{busy}"
    return f'<span style="{look}" title="{describe_items(items)}"></span>'


# -- words --------------------------------------------------------------------------------------


def describe(job: JobPicture, *, briefly: bool = False) -> str:
    """Return the numbers of a job in words: ``300 of 300 done · 12.3/s · 24 s``.

    Parameters
    ----------
    briefly
        Leave out the rate, and how many workers are busy.
    """
    counts, rate = job.counts, job.rate
    of_all = f" of {job.n:,}" if job.has_total else ""
    words = [f"{counts['done']:,}{of_all} done"]
    words += [f"{counts[s]:,} {s}" for s in ("failed", "cancelled", "running") if counts[s]]
    if rate and not briefly:
        words.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")
    words.append(duration(job.elapsed))
    if job.remaining is not None:
        words.append(f"about {duration(job.remaining)} left")
    if job.n_workers and not briefly:
        words.append(f"{job.n_busy} of {plural(job.n_workers, 'worker')} busy")
    return " · ".join(words)


def describe_outlook(job: JobPicture) -> str:
    """Return how long the rest takes with other numbers of workers, and what memory each needs."""
    times = [f"{duration(seconds)} on {n} workers" for n, seconds in job.outlook.items()]
    memory = [f"{size(job.worker_bytes)} of memory for each"] if job.worker_bytes else []
    return " · ".join([f"the rest takes {times[0]}", *times[1:], *memory])


def describe_worker(worker: WorkerRow, elapsed: float) -> str:
    """Return what a worker did, in words: ``98% busy · 12 items · 1 retried or lost``."""
    words = [f"{min(1.0, worker.seconds / max(1e-3, elapsed)):.0%} busy"]
    words.append(plural(worker.n_items, "item"))
    if worker.n_trouble:
        words.append(f"{worker.n_trouble:,} retried or lost")
    return " · ".join(words)


def describe_items(ends: Ends) -> str:
    """Return which items they are, by the first and the last one: ``item 3``, ``items 3 to 17``."""
    if not ends:
        return ""
    first, final = ends
    return f"item {first}" if first == final else f"items {first} to {final}"


def number(n: int) -> str:
    """Return a number as people write it: ``1,200``."""
    return f"{n:,}"


def tail(text: str, n: int = MAX_OUTPUT) -> str:
    """Return the last `n` characters of `text`."""
    return text if len(text) <= n else "…" + text[-n:]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def size(n: int) -> str:
    """Return a number of bytes as people say it: ``17 bytes``, ``2.0 KiB``."""
    from jinja2.filters import do_filesizeformat

    return plural(n, "byte") if n < 2**10 else do_filesizeformat(n, binary=True)
