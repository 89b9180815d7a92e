"""What a call costs that is alone, next to ProcessPoolExecutor: Python functions, requests, time.

``python -m benchmarks.lone_call`` prints it. With ``--record`` it also appends the figures to
benchmarks/steps.csv, one line for each commit, so that changes of the inside can be compared.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy

from nbstreamq import TaskQueue

from .arrays import median
from .calls import Counter, identity, increment, n_entered, sleep
from .local import ServerUse, own_server, workers_ready

STEPS = Path(__file__).parent / "steps.csv"
N_COUNTED = 20
#: Calls, rounds, and seconds between two calls.
SERIES = {"back to back": (400, 5, 0.0), "every 5 ms": (60, 5, 0.005), "every 50 ms": (12, 5, 0.05)}
N_BURST, N_MAP, N_SHORT = 5_000, 200_000, 1_000
N_ROUNDS = 7
#: Bytes of the array that goes there and back.
ARRAY_BYTES = 100_000_000


def count_functions(queue: TaskQueue) -> tuple[float, float]:
    """Return how many Python functions a lone call enters in the client, and in its only worker.

    Lower quartiles of many calls, since now and then something is done that is not for each call,
    and on a busy machine more calls sleep. Other threads are not counted: they have nothing to do
    for such a call.
    """
    queue.submit(Counter.start).result()
    Counter.start()
    in_client, in_worker = [], []
    for _ in range(N_COUNTED):
        in_client.append(n_entered())
        in_worker.append(queue.submit(n_entered).result())
    sys.setprofile(None)
    return usual_step(in_client) - 1, usual_step(in_worker) - 1


def usual_step(numbers: list[int]) -> float:
    """Return the lower quartile of the differences between successive numbers."""
    return statistics.quantiles((b - a for a, b in pairwise(numbers)), n=4)[0]


def count_requests(queue: TaskQueue) -> float:
    """Return how many times a worker asks for tasks for each isolated call."""
    use = ServerUse(queue)
    time.sleep(0.1)  # what was asked before is answered
    use.start()
    for _ in range(N_COUNTED):
        queue.submit(abs, -1).result()
        time.sleep(0.05)
    stats = use.client.info("commandstats")
    return float(stats["cmdstat_xreadgroup"]["calls"]) / N_COUNTED


def seconds_of(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


class Contest:
    """The same work for nbstreamq and for ProcessPoolExecutor, in turns.

    Attributes
    ----------
    found
        What was done -> the seconds of nbstreamq, and those of the pool, one for each round.
    """

    def __init__(self, queue: TaskQueue, pool: ProcessPoolExecutor) -> None:
        self.found: dict[str, tuple[list[float], list[float]]] = {}
        self._executors: tuple[Executor, Executor] = (queue, pool)

    def latency(self, what: str, n_calls: int, pause: float) -> None:
        self._note(what, lambda x: median(lambda: x.submit(abs, -1).result(), n_calls, pause))

    def submits(self) -> None:
        def gather(executor: Executor) -> None:
            for future in [executor.submit(abs, -i) for i in range(N_BURST)]:
                future.result()

        self._note(f"{N_BURST:,} submits", lambda executor: seconds_of(lambda: gather(executor)))

    def map(self, what: str, fn: Callable[[Any], Any], items: Sequence[Any], n_chunks: int) -> None:
        """Run a map; the pool has to be told how many items go at once."""

        def run(executor: Executor) -> None:
            is_pool = isinstance(executor, ProcessPoolExecutor)
            size = {"chunksize": len(items) // n_chunks} if is_pool else {}
            assert len(list(executor.map(fn, items, **size))) == len(items)

        self._note(what, lambda executor: seconds_of(lambda: run(executor)))

    def array(self) -> None:
        array = numpy.ones(ARRAY_BYTES // 8)
        self._note("100 MB there and back", lambda x: seconds_of(x.submit(increment, array).result))

    def _note(self, what: str, do: Callable[[Executor], float]) -> None:
        for executor, times in zip(
            self._executors, self.found.setdefault(what, ([], [])), strict=True
        ):
            times.append(do(executor))


def measure() -> dict[str, tuple[float, float]]:
    """Return what -> (seconds of nbstreamq, of ProcessPoolExecutor), each the median of rounds."""
    with TaskQueue("lone", workers=2) as queue, ProcessPoolExecutor(2) as pool:
        workers_ready(queue, 2)
        list(pool.map(sleep, [0.02] * 4))
        contest = Contest(queue, pool)
        for what, (n_calls, n_rounds, pause) in SERIES.items():
            for _ in range(n_rounds):
                contest.latency(what, n_calls, pause)
        for _ in range(N_ROUNDS):
            contest.submits()
            contest.map(f"map of {N_MAP:,}", identity, range(N_MAP), 40)
            contest.map(f"{N_SHORT:,} x 1 ms", sleep, [0.001] * N_SHORT, 100)
            contest.array()
    found = contest.found.items()
    return {
        what: (statistics.median(ours), statistics.median(pools)) for what, (ours, pools) in found
    }


def record(figures: dict[str, float]) -> None:
    """Append a line to the file of steps."""
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h %s"], capture_output=True, text=True, check=True
    ).stdout.strip()
    row = {"date": datetime.date.today().isoformat(), "commit": commit}
    row |= {what: f"{value:.4g}" for what, value in figures.items()}
    is_new = not STEPS.exists()
    with STEPS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.lone_call")
    parser.add_argument("--record", action="store_true", help="append the figures to steps.csv")
    is_recorded = parser.parse_args().record
    figures: dict[str, float] = {}
    with own_server():
        with TaskQueue("count", workers=1) as queue:
            client, worker = count_functions(queue)
            figures |= {"functions in the client": client, "functions in the worker": worker}
            figures["requests of an isolated call"] = count_requests(queue)
        for what, value in figures.items():
            print(f"{what:30}{value:8.1f}")
        for what, (ours, pools) in measure().items():
            us, pools_us = f"{ours * 1e6:,.0f}", f"{pools * 1e6:,.0f}"
            print(f"{what:30}{us:>12} us, the pool {pools_us:>12}: {ours / pools:.2f}")
            figures |= {f"{what} (us)": ours * 1e6, f"{what} (ratio to the pool)": ours / pools}
    if is_recorded:
        record(figures)


if __name__ == "__main__":
    main()
