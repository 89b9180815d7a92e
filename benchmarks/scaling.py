"""Measure how nbstreamq scales with tasks, workers and sizes: ``python -m benchmarks.scaling``.

Writes its part of docs/performance.md and a chart.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nbstreamq import TaskQueue

from .calls import identity, increment, sleep
from .chart import OURS, figure, save
from .local import own_server, workers_ready
from .machine import machine
from .page import put_between

ROOT = Path(__file__).parents[1]
N_TASKS = (1_000, 10_000, 100_000, 1_000_000)
#: Maximum number of single submits: beyond this their rate does not change.
MOST_SINGLE = 100_000
N_WORKERS = (1, 2, 4, 8, 16, 32, 64)
#: Calls for each worker that sleep so many seconds: they need no core, so more workers help.
N_SLEEPS, PAUSE = 40, 0.05
SIZES = (1, 1_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
#: Seconds there and back. If an array takes longer, no larger one is tried.
PATIENCE = 4.0
#: Maximum number of runs for a median, if they take at most 1.5 s together.
MOST_RUNS = 25
#: Points on a curve: the varied number, and the result.
Curve = dict[int, float]


def main() -> None:
    curves = {}
    with own_server():
        for measure in (singles, items, sleeping, bandwidth):
            with TaskQueue("scaling", workers=2) as queue:
                workers_ready(queue, 2)
                curves[measure.__name__] = measure(queue)
    text = "\n\n".join([_head(), *_tables(curves), "![The same as curves](images/scaling.svg)"])
    print(text)
    put_between(ROOT / "docs" / "performance.md", "scaling", text)
    _draw(curves, ROOT / "docs" / "images" / "scaling.svg")


def singles(queue: TaskQueue) -> Curve:
    """Return calls a second of single submits, by their number; two workers."""

    def run(n: int) -> float:
        futures = [queue.submit(identity, i) for i in range(n)]
        return n if [future.result() for future in futures] == list(range(n)) else 0

    return {n: _rate(run, n) for n in N_TASKS if n <= MOST_SINGLE}


def items(queue: TaskQueue) -> Curve:
    """Return items a second of a map, by their number; two workers."""

    def run(n: int) -> float:
        return n if list(queue.map(identity, range(n))) == list(range(n)) else 0

    return {n: _rate(run, n) for n in N_TASKS}


def sleeping(queue: TaskQueue) -> Curve:
    """Return the share of the ideal speed of calls that sleep, by the number of workers."""
    curve = {}
    for n in N_WORKERS:
        workers_ready(queue, n)

        def run(n: int) -> float:
            return PAUSE * len(list(queue.map(sleep, [PAUSE] * (N_SLEEPS * n)))) / n

        curve[n] = _rate(run, n)
    return curve


def bandwidth(queue: TaskQueue) -> Curve:
    """Return MB a second of arrays that go to a worker and come back changed, by their size."""
    curve = {}
    for size in SIZES:
        array = np.zeros(size, dtype="uint8")

        def run(size: int, array: Any = array) -> float:
            back = queue.submit(increment, array).result()
            return 2 * size / 1e6 if back[-1] == 1 else 0

        try:
            curve[size] = _rate(run, size)
        except Exception as error:
            _tell(f"{size:,} bytes: {error}")
        else:
            if 2 * size / 1e6 / curve[size] > PATIENCE:
                break
    return curve


def _rate(run: Callable[[int], float], n: int) -> float:
    """Return the median of what `run` returns, a second."""
    rates: list[float] = []
    end = time.perf_counter() + 1.5
    while len(rates) < MOST_RUNS and (not rates or time.perf_counter() < end):
        begun = time.perf_counter()
        rates.append(run(n) / (time.perf_counter() - begun))
    _tell(f"{run.__qualname__.partition('.')[0]}, {n:,}: {statistics.median(rates):,.2f}")
    return statistics.median(rates)


def _head() -> str:
    found = machine(ROOT)
    return (
        f"{found['processor']}, {found['cores']} cores for client, server and all workers,"
        f" Python {found['python']}, commit {found['commit']}. Medians of up to {MOST_RUNS} runs."
    )


def _tables(curves: dict[str, Curve]) -> list[str]:
    tasks = ["| tasks | single submits, calls/s | map, items/s |", "|---|---|---|"]
    for n in N_TASKS:
        single = curves["singles"].get(n)
        tasks.append(
            f"| {n:,} | {f'{single:,.0f}' if single else ''} | {curves['items'][n]:,.0f} |"
        )
    title = f"calls of {PAUSE * 1e3:.0f} ms asleep, share of ideal"
    workers = [f"| workers | {title} |", "|---|---|"]
    workers += [f"| {n} | {share:.2f} |" for n, share in curves["sleeping"].items()]
    sizes = ["| array | there and back, MB/s | time, ms |", "|---|---|---|"]
    for size in SIZES:
        rate = curves["bandwidth"].get(size)
        times = (
            f"{rate:,.3g} | {2 * size / rate / 1e3:,.3g}" if rate else "takes too long or fails |"
        )
        sizes.append(f"| {size:,} B | {times} |")
    return ["\n".join(lines) for lines in (tasks, workers, sizes)]


def _draw(curves: dict[str, Curve], target: Path) -> None:
    titles = {
        "singles": "Single submits, calls/s, by number",
        "items": "Map, items/s, by number",
        "sleeping": "Share of ideal, by workers",
        "bandwidth": "MB/s there and back, by bytes",
    }
    drawn, axes = figure(1, 4, (11, 2.6))
    for (key, title), ax in zip(titles.items(), axes.flat, strict=True):
        ax.plot(*zip(*curves[key].items(), strict=True), "o-", color=OURS)
        ax.set_title(title, fontsize=9)
        ax.set_xscale("log")
        if key == "bandwidth":
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
    save(drawn, target)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
