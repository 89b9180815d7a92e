"""A snapshot of a job as HTML that needs nothing: in saved notebooks, on GitHub, without widgets.

Only elements and inline styles that survive there; colours are the theme's, where it has any.
"""

from __future__ import annotations

from html import escape
from typing import Any

__all__ = ["describe", "duration", "job_html"]

_SHADES = {
    "done": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "cancelled": "var(--jp-warn-color1, #f57c00)",
    "running": "var(--jp-brand-color1, #1976d2)",
}
_LINE = "var(--jp-border-color2, #bdbdbd)"
_BUSY = "var(--jp-brand-color1, #1976d2)"
_PRE = f"margin:4px 0;padding:6px;border:1px solid {_LINE};overflow-x:auto;font-size:12px"


def job_html(snapshot: dict[str, Any]) -> str:
    """Return the HTML of what `JobView.snapshot` returned."""
    parts = [
        f"<div><b>{escape(snapshot['name'])}</b> <span>{escape(describe(snapshot))}</span></div>",
        _bar(snapshot),
        _obstacle(snapshot["obstacle"]),
        _strip(snapshot),
        *map(_error, snapshot["errors"]),
        _more_errors(snapshot),
        _output(snapshot["output"]),
    ]
    label = f"Job {snapshot['name']}"
    style = "font-family:var(--jp-ui-font-family, sans-serif);font-size:13px;max-width:760px"
    return f'<div role="group" aria-label="{escape(label)}" style="{style}">{"".join(parts)}</div>'


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
    over = snapshot["n"] - snapshot["counts"]["waiting"] - snapshot["counts"]["running"]
    style = f"display:flex;height:8px;margin:4px 0;border:1px solid {_LINE};overflow:hidden"
    return (
        f'<div role="progressbar" aria-valuemin="0" aria-valuemax="{snapshot["n"]}"'
        f' aria-valuenow="{over}" style="{style}">{cells}</div>'
    )


def _obstacle(text: str) -> str:
    return f'<div role="status"><b>Nothing can run:</b> {escape(text)}</div>' if text else ""


def _strip(snapshot: dict[str, Any]) -> str:
    """Return who was busy when, one row a worker; a stretch of equal columns is one rectangle."""
    rows, n = snapshot["strip"], snapshot["n_columns"]
    if not rows:
        return ""
    height = 12 * len(rows)
    drawn = "".join(_row(row, 12 * k, n) for k, row in enumerate(rows))
    seconds = duration(n * snapshot["column_seconds"])
    label = f"What {len(rows)} workers did in {seconds}; marks are items tried again or lost"
    return (
        f"<details open><summary>workers over {seconds}</summary>"
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {n} {height}"'
        f' style="width:100%;height:{height}px" preserveAspectRatio="none">{drawn}</svg></details>'
    )


def _row(row: dict[str, Any], top: int, n: int) -> str:
    drawn = [f"<title>{escape(row['worker'])}</title>"]
    start = 0
    busy = row["busy"][:n]
    for k in range(1, n + 1):
        if k == n or busy[k] != busy[start]:
            if busy[start]:
                drawn.append(
                    f'<rect x="{start}" y="{top + 1}" width="{k - start}" height="10"'
                    f' fill="{_BUSY}" fill-opacity="{busy[start]:g}"/>'
                )
            start = k
    drawn += [
        f'<rect x="{k}" y="{top}" width="1" height="12" fill="{_SHADES["failed"]}">'
        f"<title>{times} tried again or lost</title></rect>"
        for k, times in enumerate(row["trouble"][:n])
        if times
    ]
    return f"<g>{''.join(drawn)}</g>"


def _error(error: dict[str, Any]) -> str:
    return (
        f"<details><summary>✗ item {error['item']}: {escape(error['summary'])}</summary>"
        f'<pre style="{_PRE}">{escape(error["traceback"])}</pre></details>'
    )


def _more_errors(snapshot: dict[str, Any]) -> str:
    n_more = snapshot["n_errors"] - len(snapshot["errors"])
    return f"<div>and {n_more:,} more failed: see job.errors</div>" if n_more > 0 else ""


def _output(output: list[dict[str, Any]]) -> str:
    if not output:
        return ""
    text = "".join(f"[{o['item']}] {line}\n" for o in output for line in o["text"].splitlines())
    return (
        f"<details><summary>output of {len(output)} items</summary>"
        f'<pre style="{_PRE}">{escape(text)}</pre></details>'
    )
