"""A snapshot of a job as HTML that needs nothing: in saved notebooks, on GitHub, without widgets.

Only elements and inline styles that survive there; colours are the theme's, where it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .view import outermost

__all__ = ["describe", "describe_items", "describe_worker", "duration", "job_html"]

_SHADES = {
    "done": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "cancelled": "var(--jp-warn-color1, #f57c00)",
    "running": "var(--jp-brand-color1, #1976d2)",
}
#: Pixels of a worker's row.
_ROW = 14
_LINE = "var(--jp-border-color2, #bdbdbd)"
_BUSY = "var(--jp-brand-color1, #1976d2)"
_CELL = "text-align:left;padding:0 8px 0 0;white-space:nowrap;font-weight:normal"
_PRE = f"margin:4px 0;padding:6px;border:1px solid {_LINE};overflow-x:auto;font-size:12px"


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
        _output(snapshot["output"]),
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


def _output(output: list[dict[str, Any]]) -> str:
    if not output:
        return ""
    text = "".join(f"[{o['item']}] {line}\n" for o in output for line in o["text"].splitlines())
    return (
        f"<details><summary>output of {len(output)} items</summary>"
        f'<pre style="{_PRE}">{escape(text)}</pre></details>'
    )
