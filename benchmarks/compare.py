"""nbstreamq beside concurrent.futures.ProcessPoolExecutor: the same work, in one run, in turns.

    python benchmarks/compare.py [--rounds 5] [--workers 2]

Each round measures both, one after the other; what is printed are medians over the rounds, and the
ratio of the medians. nbstreamq runs as it does by default: embedded server, append-only file
written every second, all messages signed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

N_SUBMITS = 10_000
N_ITEMS = 200_000
N_LATENCIES = 500
N_SLEEPS = 1_000


def identity(x: int) -> int:
    return x


def busy_millisecond(x: int) -> int:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return x


def latency(executor: Executor) -> float:
    """Return the median microseconds from a submit to its result, one at a time."""
    seconds = []
    for i in range(N_LATENCIES):
        begun = time.perf_counter()
        executor.submit(identity, i).result()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1e6


def submits(executor: Executor) -> float:
    """Return calls a second, each submitted on its own."""
    begun = time.perf_counter()
    futures = [executor.submit(identity, i) for i in range(N_SUBMITS)]
    for future in futures:
        future.result()
    return N_SUBMITS / (time.perf_counter() - begun)


def mapped(executor: Executor) -> float:
    """Return items a second of a map over short calls."""
    begun = time.perf_counter()
    if isinstance(executor, ProcessPoolExecutor):
        # Its best of 100, 500, 2000, 5000 and 20000 here.
        results = list(executor.map(identity, range(N_ITEMS), chunksize=2000))
    else:
        results = list(executor.map(identity, range(N_ITEMS)))
    if results != list(range(N_ITEMS)):
        sys.exit("wrong results")
    return N_ITEMS / (time.perf_counter() - begun)


def milliseconds(executor: Executor) -> float:
    """Return the share of the ideal speed for calls of 1 ms, without a chunk size."""
    n_workers = min(ARGUMENTS.workers, os.cpu_count() or 1)
    begun = time.perf_counter()
    list(executor.map(busy_millisecond, range(N_SLEEPS)))
    return N_SLEEPS * 0.001 / n_workers / (time.perf_counter() - begun)


MEASURES: dict[str, tuple[Callable[[Executor], float], str, bool]] = {
    "latency of one call": (latency, "µs", False),
    "single submits": (submits, "calls/s", True),
    "map of 200,000 short calls": (mapped, "items/s", True),
    "map of 1 ms calls, share of ideal": (milliseconds, "", True),
}


def main() -> None:
    from nbstreamq import TaskQueue

    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in MEASURES}
    with ProcessPoolExecutor(ARGUMENTS.workers) as pool, TaskQueue("benchmark") as queue:
        queue.run(ARGUMENTS.workers)
        for executor in (pool, queue):
            list(executor.map(identity, range(1000)))
        for _ in range(ARGUMENTS.rounds):
            for name, (measure, _, _) in MEASURES.items():
                rounds[name].append((measure(pool), measure(queue)))
    report(rounds)


def report(rounds: dict[str, list[tuple[float, float]]]) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores,", end=" ")
    print(f"{ARGUMENTS.workers} workers, medians of {ARGUMENTS.rounds} rounds\n")
    print("| | ProcessPoolExecutor | nbstreamq | ratio |")
    print("|---|---|---|---|")
    for name, pairs in rounds.items():
        _, unit, more_is_better = MEASURES[name]
        theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = ours / theirs if more_is_better else theirs / ours
        digits = 2 if theirs < 10 else 0
        print(f"| {name} | {theirs:,.{digits}f} {unit} | {ours:,.{digits}f} {unit} | {ratio:.2f} |")
    print("\nA ratio over 1 means that nbstreamq is ahead.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    ARGUMENTS = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbq-") as folder:
        # A server of its own: what else runs on this machine is left alone.
        os.environ["NBSTREAMQ_RUNTIME_DIR"] = os.environ["NBSTREAMQ_DATA_DIR"] = folder
        os.environ["NBSTREAMQ_SERVER_IDLE"] = "1"
        main()
