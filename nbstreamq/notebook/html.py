"""A snapshot of a job as HTML that needs nothing: in saved notebooks, on GitHub, without widgets.

Only elements and inline styles that survive there; colours are the theme's, where it has any.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from ..client.future import TaskFuture
from ..client.ledger import error_text
from ..client.status import DeadLetters, JobList, LaneStatus, QueueStatus, WorkerStatus
from ..objects.references import Ref
from ..wire.keys import NESTED
from ..wire.messages import State
from .view import outermost

#: Most characters shown of a result, of an error and of what was printed: of this its end.
MAX_TEXT, MAX_OUTPUT = 300, 2000
#: Most workers shown, and most dead letters: the newest.
MAX_WORKERS = 32
MAX_LETTERS = 50

_LINE = "1px solid var(--jp-border-color2, #bbb)"
_FONT = "font-family:var(--jp-ui-font-family, sans-serif);font-size:13px"
_PAD = "text-align:left;padding:2px 8px"
_CELL = f'style="{_PAD};vertical-align:top;border-bottom:{_LINE}"'
_TABLE = f'style="{_FONT};border-collapse:collapse;margin:4px 0"'
_CAPTION = f'style="{_PAD};caption-side:top;font-weight:bold;white-space:nowrap"'
_SENTENCE = f'style="{_FONT};{_PAD}"'
_WARNING = f'style="{_FONT};{_PAD};color:var(--jp-error-color1, #c62828)"'
_PRE = f'style="margin:2px 0;padding:4px;border:{_LINE};overflow-x:auto"'

_abbreviate = reprlib.Repr()
_abbreviate.maxstring = _abbreviate.maxother = MAX_TEXT


def future_html(future: TaskFuture[Any]) -> str:
    """Return what is known of a call now; waits for nothing."""
    rows = [("status", escape(str(future.status)))]
    if future.worker:
        rows.append(("worker", f"{escape(future.worker)}, attempt {future.attempts}"))
    rows += [*_times(future), *_progress(future), *_outcome(future), *_future_output(future.logs)]
    return _record(_shown(future), rows)


def ref_html(ref: Ref) -> str:
    """Return what a stored value is."""
    rows = [
        ("type", escape(ref.type_name)),
        ("size", _size(ref.size_bytes)),
        ("digest", _code(ref.digest)),
    ]
    return _record("Ref: stands for a stored value", rows)


def status_html(status: QueueStatus, rate: float | None = None, note: str = "") -> str:
    """Return a queue's server, the lanes that hold something, and its workers.

    Parameters
    ----------
    rate
        Messages a second that were dealt with of late, if that is known.
    note
        When this was so.
    """
    rows = [("server", escape(status.server)), ("open jobs here", f"{status.open_jobs:,}")]
    if rate is not None:
        rows.append(("throughput", f"{rate:,.1f} messages a second"))
    busy = [v for v in status.lanes if v.waiting or v.running or v.delayed]
    return "".join(
        [
            _record(f"Queue {status.queue}", rows),
            _alert("Trouble", status.trouble),
            *(_alert("Warning", text) for text in status.warnings),
            _alert("Refused", status.refusals.removeprefix("refused ")),
            _lanes(busy),
            workers_html(status.workers),
            _sentence(note) if note else "",
        ]
    )


def workers_html(workers: Sequence[WorkerStatus]) -> str:
    """Return a table of workers."""
    if not workers:
        return _sentence("No workers: calls wait until there are some, see TaskQueue.run().")
    n_busy = sum(w.state == "busy" for w in workers)
    rows = [
        (
            w.id,
            w.state,
            f"{w.cpu:.0%}",
            f"{w.memory_bytes / 2**20:,.0f} MB",
            w.host,
            str(w.pid),
            w.python,
            ", ".join(_chosen(w.lanes)),
        )
        for w in workers[:MAX_WORKERS]
    ]
    title = f"{_count(len(workers), 'worker')}, {n_busy:,} busy"
    columns = ("worker", "state", "CPU", "memory", "host", "pid", "Python", "lanes")
    table = _grid(title, columns, rows)
    n_more = len(workers) - len(rows)
    return table + (_sentence(f"and {_count(n_more, 'more worker')}") if n_more else "")


def dead_html(letters: DeadLetters) -> str:
    """Return what was refused, or failed for good, the newest last."""
    if not letters:
        return _sentence("Nothing was refused, and nothing failed for good.")
    rows = [
        (
            f"{v.when:%Y-%m-%d %H:%M:%S}",
            v.kind,
            v.task_text,
            v.name,
            v.lane,
            str(v.attempts or ""),
            _cut(v.why),
            v.id,
        )
        for v in letters[-MAX_LETTERS:]
    ]
    columns = ("when (UTC)", "kind", "task", "function", "lane", "attempts", "why", "id")
    table = _grid(_count(len(letters), "dead letter"), columns, rows)
    n_more = len(letters) - len(rows)
    return table + (_sentence(f"and {n_more:,} older") if n_more else "")


def jobs_html(jobs: JobList) -> str:
    """Return a table of named jobs."""
    if not jobs:
        return _sentence("No named jobs: q.map(..., name='...') makes one that is kept.")
    now = time.time()
    rows = [
        (
            job.name,
            job.queue,
            job.state,
            f"{job.done:,} of {job.submitted:,}",
            f"{job.failed:,}",
            f"{job.cancelled:,}",
            job.function,
            duration(max(0.0, now - job.made)),
            "kept" if job.expires is None else f"in {duration(job.expires)}",
            "" if job.size_bytes is None else _size(job.size_bytes),
        )
        for job in jobs
    ]
    columns = (
        "job",
        "queue",
        "state",
        "done",
        "failed",
        "cancelled",
        "function",
        "age",
        "expires",
        "size",
    )
    return _grid("Named jobs", columns, rows)


# -- a call -------------------------------------------------------------------------------------


def _times(future: TaskFuture[Any]) -> list[tuple[str, str]]:
    timing = future.timing
    if not timing.get("started"):
        return []
    begun = datetime.fromtimestamp(timing["started"], UTC).isoformat(sep=" ", timespec="seconds")
    rows = [("started", f'<time datetime="{begun}">{begun.removesuffix("+00:00")} UTC</time>')]
    if future.status in {State.DONE, State.FAILED}:
        rows.append(("took", duration(timing["seconds"])))
    return rows


def _progress(future: TaskFuture[Any]) -> list[tuple[str, str]]:
    if future.progress is None or future.done():
        return []
    done, total = future.progress
    if total is None:
        return [("progress", f"{done:,} items")]
    bar = f'<progress max="{max(1, total)}" value="{done}"></progress>'
    return [("progress", f"{bar} {done:,} of {total:,}")]


def _outcome(future: TaskFuture[Any]) -> list[tuple[str, str]]:
    if not future.done() or future.cancelled():
        return []
    error = future.exception(0)
    if error is None:
        return [("result", _code(_shown(future.result(0))))]
    return [("error", _code(_cut(error_text(error))))]


def _future_output(text: str) -> list[tuple[str, str]]:
    if not text:
        return []
    shown = text if len(text) <= MAX_OUTPUT else "…" + text[-MAX_OUTPUT:]
    summary = _count(len(text.splitlines()), "line")
    pre = f"<pre {_PRE}>{escape(shown)}</pre>"
    return [("output", f"<details><summary>{summary}</summary>{pre}</details>")]


def _shown(value: Any) -> str:
    """Return the abbreviated repr of `value`, or why there is none."""
    try:
        return "".join(_abbreviate.repr(value))
    except BaseException as error:  # noqa: BLE001 - foreign code, for a display only
        return f"(can't be shown: its repr raised {type(error).__qualname__})"


# -- a queue ------------------------------------------------------------------------------------


def _alert(word: str, text: str) -> str:
    if not text:
        return ""
    return f"<div {_WARNING}><strong>{word}:</strong> {escape(text)}</div>"


def _lanes(lanes: Iterable[LaneStatus]) -> str:
    rows = [(v.lane, f"{v.waiting:,}", f"{v.running:,}", f"{v.delayed:,}") for v in lanes]
    if not rows:
        return _sentence("Nothing waits, nothing runs.")
    return _grid("Messages in the lanes", ("lane", "waiting", "running", "delayed"), rows)


def _chosen(lanes: Iterable[str]) -> list[str]:
    """Return lanes without those of calls inside calls, which every worker serves."""
    return [lane for lane in lanes if lane not in NESTED]


# -- tables -------------------------------------------------------------------------------------


def _record(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values; the values are HTML already."""
    body = "".join(
        f'<tr><th scope="row" {_CELL}>{escape(name)}</th><td {_CELL}>{value}</td></tr>'
        for name, value in rows
    )
    return _table(title, f"<tbody>{body}</tbody>")


def _grid(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table of plain texts; the first of each row names it."""
    head = "".join(f'<th scope="col" {_CELL}>{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row" {_CELL}>{escape(first)}</th>'
        + "".join(f"<td {_CELL}>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return _table(title, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def _table(title: str, inside: str) -> str:
    return f"<table {_TABLE}><caption {_CAPTION}>{escape(title)}</caption>{inside}</table>"


def _sentence(text: str) -> str:
    return f"<div {_SENTENCE}>{escape(text)}</div>"


def _code(text: str) -> str:
    return f'<code style="overflow-wrap:anywhere">{escape(text)}</code>'


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _size(n: int) -> str:
    """Return a size as people say it, and exactly."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit} ({n:,} bytes)"
    return f"{n:,} bytes"


_SHADES = {
    "done": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "cancelled": "var(--jp-warn-color1, #f57c00)",
    "running": "var(--jp-brand-color1, #1976d2)",
}
#: Pixels of a worker's row.
_ROW = 14
_BORDER = "var(--jp-border-color2, #bdbdbd)"
_BUSY = "var(--jp-brand-color1, #1976d2)"
_WORKER_CELL = "text-align:left;padding:0 8px 0 0;white-space:nowrap;font-weight:normal"
_BOX = f"margin:4px 0;padding:6px;border:1px solid {_LINE};overflow-x:auto;font-size:12px"


def job_html(snapshot: dict[str, Any], place: str = "") -> str:
    """Return the HTML of what `JobView.snapshot` returned.

    Notebooks that are not trusted lose ARIA roles and drawings, GitHub all styles: so the elements
    themselves carry the meaning, and what is drawn or coloured is said in words, too.

    Parameters
    ----------
    place
        Class of an empty element where a live notebook may offer to run what failed again.
    """
    parts = [
        f"<figcaption><b>{escape(snapshot['name'])}</b> {escape(describe(snapshot))}</figcaption>",
        _bar(snapshot),
        _obstacle(snapshot["obstacle"]),
        _strip(snapshot),
        *map(_error, snapshot["errors"]),
        _more_errors(snapshot),
        _advice(snapshot, place),
        _job_output(snapshot["output"]),
    ]
    style = "font-family:var(--jp-ui-font-family, sans-serif);font-size:13px;max-width:760px"
    return f'<figure style="margin:0;{style}">{"".join(parts)}</figure>'


def describe(snapshot: dict[str, Any]) -> str:
    """Return the numbers of a snapshot in words: ``300 of 300 done · 12.3/s · 24 s``."""
    counts = snapshot["counts"]
    words = [f"{counts['done']:,} of {snapshot['n']:,} done"]
    words += [f"{counts[s]:,} {s}" for s in ("failed", "cancelled", "running") if counts[s]]
    if snapshot["rate"]:
        rate = snapshot["rate"]
        words.append(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s")
    words.append(duration(snapshot["elapsed"]))
    if snapshot["remaining"] is not None:
        words.append(f"about {duration(snapshot['remaining'])} left")
    if snapshot["n_workers"]:
        words.append(f"{snapshot['n_busy']} of {snapshot['n_workers']} workers busy")
    return " · ".join(words)


def describe_worker(row: dict[str, Any], elapsed: float) -> str:
    """Return what a worker did, in words: ``98% busy · 12 items · 1 tried again or lost``."""
    n = row["n_items"]
    words = [f"{min(1.0, row['seconds'] / max(1e-3, elapsed)):.0%} busy"]
    words.append(f"{n:,} item{'' if n == 1 else 's'}")
    if row["n_trouble"]:
        words.append(f"{row['n_trouble']:,} tried again or lost")
    return " · ".join(words)


def describe_items(ends: Sequence[int]) -> str:
    """Return which items they are, by the first and the last one: ``item 3``, ``items 3 to 17``."""
    if not ends:
        return ""
    first, last = ends
    return f"item {first}" if first == last else f"items {first} to {last}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``0.42 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def _bar(snapshot: dict[str, Any]) -> str:
    n = max(1, snapshot["n"])
    cells = "".join(
        f'<div title="{count} {state}" style="width:{100 * count / n:.2f}%;background:{shade}">'
        "</div>"
        for state, shade in _SHADES.items()
        if (count := snapshot["counts"][state])
    )
    style = f"display:flex;height:8px;margin:4px 0;border:1px solid {_LINE};overflow:hidden"
    return f'<div style="{style}">{cells}</div>'


def _obstacle(text: str) -> str:
    return f"<output><b>Nothing can run:</b> {escape(text)}</output>" if text else ""


def _strip(snapshot: dict[str, Any]) -> str:
    """Return who was busy when, one row a worker; a stretch of equal columns is one rectangle."""
    rows, n = snapshot["strip"], snapshot["n_columns"]
    if not rows:
        return ""
    drawn = "".join(_worker(row, n, snapshot["elapsed"]) for row in rows)
    summary = f"workers over {duration(n * snapshot['column_seconds'])}"
    style = "width:100%;table-layout:auto;border-collapse:collapse;margin:0;font-size:12px"
    table = f'<table style="{style}"><tbody>{drawn}</tbody></table>'
    return f"<details open><summary>{summary}</summary>{table}</details>"


def _worker(row: dict[str, Any], n: int, elapsed: float) -> str:
    svg = (
        f'<svg viewBox="0 0 {n} {_ROW}" preserveAspectRatio="none"'
        f' style="display:block;width:100%;height:{_ROW}px">{_row(row, n)}</svg>'
    )
    return (
        f'<tr><th scope="row" style="{_CELL}">{escape(row["worker"])}</th>'
        f'<td style="{_CELL};width:100%">{svg}</td>'
        f'<td style="{_CELL}">{describe_worker(row, elapsed)}</td></tr>'
    )


def _row(row: dict[str, Any], n: int) -> str:
    """Draw a worker; what was tried again or lost stands out by its height, too."""
    drawn = []
    start = 0
    busy = row["busy"][:n]
    for k in range(1, n + 1):
        if k == n or busy[k] != busy[start]:
            if busy[start]:
                ran = describe_items(outermost(*row["ran"][start:k]))
                drawn.append(
                    f'<rect x="{start}" y="2" width="{k - start}" height="{_ROW - 4}"'
                    f' fill="{_BUSY}" fill-opacity="{busy[start]:g}"><title>{ran}</title></rect>'
                )
            start = k
    drawn += [
        f'<rect x="{k}" y="0" width="1" height="{_ROW}" fill="{_SHADES["failed"]}">'
        f"<title>{times} tried again or lost</title></rect>"
        for k, times in enumerate(row["trouble"][:n])
        if times
    ]
    return "".join(drawn)


def _error(error: dict[str, Any]) -> str:
    return (
        f"<details><summary>✗ item {error['item']}: {escape(error['summary'])}</summary>"
        f'<pre style="{_PRE}">{escape(error["traceback"])}</pre></details>'
    )


def _more_errors(snapshot: dict[str, Any]) -> str:
    n_more = snapshot["n_errors"] - len(snapshot["errors"])
    return f"<div>and {n_more:,} more failed: see job.errors</div>" if n_more > 0 else ""


def _advice(snapshot: dict[str, Any], place: str) -> str:
    n = snapshot["n_errors"]
    if not n or snapshot["state"] != "failed":
        return ""
    what = "it" if n == 1 else f"all {n:,}"
    return (
        f"<div><code>job.retry_failed()</code> runs {what} again,"
        " <code>job.retry_failed(mended)</code> with a mended function."
        f' <span class="{escape(place)}"></span></div>'
    )


def _job_output(output: list[dict[str, Any]]) -> str:
    if not output:
        return ""
    text = "".join(f"[{o['item']}] {line}\n" for o in output for line in o["text"].splitlines())
    return (
        f"<details><summary>output of {len(output)} items</summary>"
        f'<pre style="{_PRE}">{escape(text)}</pre></details>'
    )
