"""When the results of a map come, and how jobs share the workers, next to other tools.

``python -m benchmarks.order`` prints it; tools that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from .calls import sleep
from .local import own_server, workers_ready

#: Items of a map, and seconds that each takes.
N_ITEMS, SECONDS = 200, 0.05
N_SHORT = 2_000
#: Items of a job that others meet.
N_LONG = 2_000
#: Seconds for which three jobs share the workers.
SHARING = 4.0
N_LONE = 10


class Tool(NamedTuple):
    """How a tool runs many calls, returning results in order, and one.

    Attributes
    ----------
    drop
        Drops what was asked for and has not run.
    """

    map: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
    call: Callable[[Callable[[Any], Any], Any], Any]
    drop: Callable[[], object]


@contextmanager
def nbstreamq(n_workers: int, *, is_named: bool = False) -> Iterator[Tool]:
    from nbstreamq import TaskQueue

    numbers = itertools.count()

    def run(fn: Callable[[Any], Any], xs: Sequence[Any]) -> Iterable[Any]:
        name = f"order-{next(numbers)}" if is_named else None
        return queue.map(fn, xs, name=name)

    with own_server(), TaskQueue("order", workers=n_workers) as queue:
        workers_ready(queue, n_workers)
        jobs: list[Any] = []

        def remember(fn: Callable[[Any], Any], xs: Sequence[Any]) -> Iterable[Any]:
            jobs.append(run(fn, xs))
            found: Iterable[Any] = jobs[-1]
            return found

        def cancel() -> None:
            for job in jobs:
                job.cancel()
            jobs.clear()
            time.sleep(2 * SECONDS)

        yield Tool(remember, lambda fn, x: queue.submit(fn, x).result(), cancel)


@contextmanager
def pool(n_workers: int) -> Iterator[Tool]:
    from concurrent.futures import Future, ProcessPoolExecutor

    with ProcessPoolExecutor(n_workers) as executor:
        list(executor.map(sleep, [0.02] * 2 * n_workers))
        futures: list[Future[Any]] = []

        def run(fn: Callable[[Any], Any], xs: Sequence[Any]) -> Iterable[Any]:
            mine = [executor.submit(fn, x) for x in xs]
            futures.extend(mine)
            return (future.result() for future in mine)

        def drop() -> None:
            for future in futures:
                future.cancel()
            futures.clear()
            time.sleep(2 * SECONDS)

        yield Tool(run, lambda fn, x: executor.submit(fn, x).result(), drop)


@contextmanager
def dask(n_workers: int) -> Iterator[Tool]:
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        Client(cluster) as client,
    ):
        futures: list[Any] = []

        def run(fn: Callable[[Any], Any], xs: Sequence[Any]) -> Iterable[Any]:
            mine = client.map(fn, xs, pure=False)
            futures.extend(mine)
            return (future.result() for future in mine)

        def drop() -> None:
            client.cancel(futures)
            futures.clear()
            time.sleep(2 * SECONDS)

        list(run(sleep, [0.02] * 2 * n_workers))
        yield Tool(run, lambda fn, x: client.submit(fn, x, pure=False).result(), drop)


@contextmanager
def ray(n_workers: int) -> Iterator[Tool]:
    import ray

    ray.init(num_cpus=n_workers, include_dashboard=False, log_to_driver=False)
    references: list[Any] = []

    def run(fn: Callable[[Any], Any], xs: Sequence[Any]) -> Iterable[Any]:
        remote = ray.remote(fn)
        mine = [remote.remote(x) for x in xs]
        references.extend(mine)
        return (ray.get(one) for one in mine)

    def drop() -> None:
        for one in references:
            ray.cancel(one)
        references.clear()
        time.sleep(2 * SECONDS)

    try:
        list(run(sleep, [0.02] * 2 * n_workers))
        yield Tool(run, lambda fn, x: ray.get(ray.remote(fn).remote(x)), drop)
    finally:
        ray.shutdown()


def named(n_workers: int) -> Any:
    return nbstreamq(n_workers, is_named=True)


#: Title -> how to open it, and the package that it needs.
TOOLS: dict[str, tuple[Callable[[int], Any], str]] = {
    "nbstreamq": (nbstreamq, "nbstreamq"),
    "nbstreamq, with a name": (named, "nbstreamq"),
    "ProcessPoolExecutor": (pool, "concurrent"),
    "dask.distributed": (dask, "distributed"),
    "ray": (ray, "ray"),
}


def arrivals(tool: Tool, seconds: float, n: int, most: int | None = None) -> list[float]:
    """Return when each result of a map came, in seconds from the call."""
    began = time.perf_counter()
    results = tool.map(sleep, [seconds] * n)
    return [time.perf_counter() - began for _ in itertools.islice(results, most)]


def second_job(tool: Tool) -> float:
    """Return when the first result of a job comes that is behind a long one."""
    first = tool.map(sleep, [SECONDS] * N_LONG)
    next(iter(first))
    found: list[float] = []

    def wait() -> None:
        with suppress(BaseException):  # it is cancelled in the end
            found.extend(arrivals(tool, SECONDS, 20, 1))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(SHARING)
    n_found = len(found)
    tool.drop()
    thread.join()
    return found[0] if n_found else float("inf")


def shares(tool: Tool) -> tuple[float, float]:
    """Return by how much three jobs' numbers of results differ; and what a call between takes.

    The first is the largest number divided by the smallest.
    """
    counts, is_over = [0, 0, 0], threading.Event()

    def consume(at: int, results: Iterable[Any]) -> None:
        with suppress(BaseException):  # they are cancelled in the end
            for _ in results:
                counts[at] += not is_over.is_set()

    jobs = [tool.map(sleep, [SECONDS] * N_LONG) for _ in counts]
    threads = [threading.Thread(target=consume, args=pair) for pair in enumerate(jobs)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    pauses: list[float] = []
    lone = threading.Thread(target=lone_calls, args=(tool, pauses))
    lone.start()
    time.sleep(max(0.0, SHARING - (time.perf_counter() - began)))
    found, answered = counts.copy(), pauses.copy()
    is_over.set()
    tool.drop()
    for thread in (*threads, lone):
        thread.join()
    largest = max(found) / min(found) if min(found) else float("inf")
    return largest, statistics.median(answered) if answered else float("inf")


def lone_calls(tool: Tool, found: list[float]) -> None:
    """Add to `found` how long each of some calls takes, until they are cancelled."""
    with suppress(BaseException):
        for _ in range(N_LONE):
            began = time.perf_counter()
            tool.call(sleep, 0.0)
            found.append(time.perf_counter() - began)
            time.sleep(SECONDS)


def largest_step(times: Sequence[float]) -> float:
    """Return the longest time without a result."""
    return max(b - a for a, b in itertools.pairwise([0.0, *times]))


def measure(tool: Tool) -> dict[str, float]:
    """Return title -> value."""
    times = arrivals(tool, SECONDS, N_ITEMS)
    found = {
        "4th of 200 x 50 ms (s)": times[3],
        "half, of the whole": times[len(times) // 2] / times[-1],
        "all (s)": times[-1],
        "longest gap (s)": largest_step(times),
        "4th of 2,000 x 1 ms (s)": arrivals(tool, 0.001, N_SHORT)[3],
    }
    found["1st of a second job (s)"] = second_job(tool)
    found["largest share / smallest, of 3"], found["call between (s)"] = shares(tool)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.order")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--long", action="store_true", help="also items of 5 s")
    asked = parser.parse_args()
    for title in asked.tools:
        open_tool, package = TOOLS[title]
        if importlib.util.find_spec(package) is None:
            print(f"{title}: not installed")
            continue
        with ExitStack() as stack:
            tool = stack.enter_context(open_tool(asked.workers))
            found = measure(tool)
            if asked.long:
                found["4th of 200 x 5 s (s)"] = arrivals(tool, 5.0, N_ITEMS, 4)[-1]
                tool.drop()
        print(title)
        for what, value in found.items():
            print(f"    {what:34}{value:8.2f}", flush=True)


if __name__ == "__main__":
    main()
