"""Large arrays: there and back, and captured by a function that many calls share.

    python benchmarks/arrays.py [--rounds 7] [--workers 2] [--megabytes 100]

Compares nbstreamq with its embedded server, ProcessPoolExecutor, joblib if it is installed, and one
copy each way into new memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from nbstreamq import TaskQueue

N_ITEMS = 64


def change(array: np.ndarray) -> np.ndarray:
    array[0] = 1.0
    return array


def fresh_copies(array: np.ndarray) -> None:
    """Copy the array into new pages, as if to a worker, and back."""
    array.copy().copy()


def median(call: Callable[[], object], rounds: int, pause: float = 0.0) -> float:
    """Return the median seconds of a call that is made every `pause` seconds, after a first one."""
    call()
    seconds = []
    for _ in range(rounds):
        time.sleep(pause)
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def shared_bytes() -> int:
    """Return the bytes of files in memory, mapped or not."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


def private_bytes(pid: int) -> int:
    """Return the bytes of memory that a process does not share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def there_and_back(queue: TaskQueue, array: np.ndarray, rounds: int, n_workers: int) -> None:
    print(f"an array of {array.nbytes / 1e6:.0f} MB to a worker and back, seconds:")
    found = {"nbstreamq": median(lambda: queue.submit(change, array).result(), rounds)}
    with ProcessPoolExecutor(n_workers) as pool:
        found["ProcessPoolExecutor"] = median(lambda: pool.submit(change, array).result(), rounds)
    try:
        from joblib import Parallel, delayed
    except ImportError:
        pass
    else:
        with Parallel(n_workers) as parallel:  # it gives arrays read-only, so: only back
            call = [delayed(np.negative)(array)]
            found["joblib"] = median(lambda: parallel(call), rounds)
    found["a fresh copy each way"] = median(lambda: fresh_copies(array), rounds)
    for name, seconds in found.items():
        print(f"  {name:24}{seconds:8.3f}{seconds / found['nbstreamq']:8.1f} x")


def captured(queue: TaskQueue, array: np.ndarray) -> None:
    def pick(k: int) -> tuple[float, int]:
        time.sleep(0.02)
        return float(array[:: 2**9].sum() + array[k]), os.getpid()

    def process(_: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    workers = set(queue.map(process, range(40)))
    before = shared_bytes() + sum(map(private_bytes, workers))
    begun = time.perf_counter()
    job = queue.map(pick, range(N_ITEMS))
    values = job.result()
    seconds = time.perf_counter() - begun
    used = shared_bytes() + sum(map(private_bytes, workers)) - before
    assert len(values) == N_ITEMS
    print(
        f"captured by a function, {N_ITEMS} calls of 20 ms: {seconds:.3f} s; files and workers use"
        f" {used / 1e6:.0f} MB more, {used / array.nbytes:.2f} times the array"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="nbq-arrays-")
    os.environ.update(NBSTREAMQ_RUNTIME_DIR=folder, NBSTREAMQ_DATA_DIR=folder + "/data")
    os.environ["NBSTREAMQ_SERVER_IDLE"] = "1"
    array = np.random.default_rng(1).random(options.megabytes * 10**6 // 8)
    with TaskQueue("arrays", workers=options.workers) as queue:
        queue.submit(abs, 1).result()
        captured(queue, array)
        there_and_back(queue, array, options.rounds, options.workers)


if __name__ == "__main__":
    main()
