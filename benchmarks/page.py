"""Make tables and a chart from the results; a complete run's go into docs/performance.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from .measures import MEASURES

__all__ = ["put_between", "tables", "write_page"]

#: Key -> title, unit, whether more is better.
ROWS = {"first": ("first result from a fresh interpreter", "ms", False)} | {
    key: (measure.title, measure.unit, measure.more_is_better) for key, measure in MEASURES.items()
}
TABLES = {
    "What a call costs": ("first", "latency", "submits", "map", "described", "memory"),
    "How well two workers are used": ("short", "one_long", "rising", "falling"),
    "Large arrays": ("array", "shared"),
}
NOTE = """\
In parentheses: how many times better nbstreamq is; below 1 it loses. ≈: measured with less work and
multiplied. Empty: there is no such thing, or it failed (see below)."""


def tables(results: dict[str, Any]) -> str:
    """Return the tables as Markdown, and what was skipped."""
    medians = _medians(results)
    parts = []
    for title, keys in TABLES.items():
        heads = [f"{ROWS[key][0]}, {ROWS[key][1]}" for key in keys]
        lines = [f"**{title}**", "", f"| | {' | '.join(heads)} |", "|---" * (len(keys) + 1) + "|"]
        for name in medians:
            cells = (_cell(medians, name, key) for key in keys)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, NOTE, *_problems(results)])


def write_page(results: dict[str, Any], root: Path) -> None:
    """Write tables, chart and figures into docs/."""
    from .chart import draw

    docs = root / "docs"
    draw(_medians(results), docs / "images" / "performance.svg")
    (docs / "performance.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = f"{_about(results)}\n\n![Medians, by tool](images/performance.svg)\n\n{tables(results)}"
    put_between(docs / "performance.md", "peers", text)


def put_between(page: Path, name: str, text: str) -> None:
    """Replace the text between the two marks of `name`."""
    begin, close = f"<!-- {name}: written by make -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(close)
    if not found:
        raise ValueError(f"{page} has no {begin} ... {close}")
    page.write_text(f"{before}{begin}\n{text}\n{close}{after}", encoding="utf-8")


def _about(results: dict[str, Any]) -> str:
    head = results["head"]
    versions = {
        package: version
        for sessions in results["sessions"].values()
        for package, version in sessions[0].get("versions", {}).items()
    }
    listed = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    return (
        f"{head['processor']}, {head['cores']} cores, {head['memory_gb']} GB, {head['system']},"
        f" Python {head['python']}, commit {head['commit']}, {results['date']}; two workers each,"
        f" medians of {head['rounds']} rounds. Versions: {listed}."
    )


def _medians(results: dict[str, Any]) -> dict[str, dict[str, tuple[float, bool]]]:
    """Return peer -> measure -> median, and whether it was multiplied."""
    medians: dict[str, dict[str, tuple[float, bool]]] = {}
    for name, sessions in results["sessions"].items():
        if any("skipped" in session for session in sessions):
            continue
        medians[name] = {}
        for key in ROWS:
            found = [s["found"][key] for s in sessions if s["found"].get(key)]
            if found:
                value = statistics.median(f["value"] for f in found)
                medians[name][key] = (value, any(f["scaled"] for f in found))
    return medians


def _cell(medians: dict[str, dict[str, tuple[float, bool]]], name: str, key: str) -> str:
    if key not in medians[name]:
        return ""
    value, scaled = medians[name][key]
    text = f"{'≈' if scaled else ''}{_number(value)}"
    ours = medians["nbstreamq"].get(key)
    if name == "nbstreamq" or ours is None:
        return f"**{text}**" if name == "nbstreamq" else text
    ratio = ours[0] / value if ROWS[key][2] else value / ours[0]
    return f"{text} ({_number(ratio)})"


def _number(value: float) -> str:
    """Return a number with about three digits."""
    if value < 10:
        return f"{value:.2f}"
    if value < 100:
        return f"{value:.1f}"
    return f"{float(f'{value:.3g}'):,.0f}"


def _problems(results: dict[str, Any]) -> list[str]:
    lines = []
    for name, sessions in results["sessions"].items():
        problems = {
            f"{ROWS[key][0]}: {what}"
            for session in sessions
            for key, what in session.get("errors", {}).items()
        }
        problems |= {f"skipped: {s['skipped']}" for s in sessions if "skipped" in s}
        lines += [f"* {name}: {problem}" for problem in sorted(problems)]
    return ["\n".join(lines)] if lines else []
