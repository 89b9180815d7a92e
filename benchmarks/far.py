"""What a slow network costs: a server that is 20 ms away from the kernel and from the workers.

    python -m benchmarks.far [--delay 0.02]

A forwarding process holds back all that passes, in each direction. So a lone call takes four times
the delay at least: to the server, to a worker, and back.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from nbstreamq import TaskQueue
from tests.forwarder import Forwarder

from .arrays import median
from .calls import identity, sleep
from .server import Server, url


def throughput(queue: TaskQueue, n_workers: int) -> None:
    lone = median(lambda: queue.submit(identity, 1).result(), 15) * 1e3
    print(f"a lone call: {lone:.0f} ms", flush=True)
    many = median(lambda: [f.result() for f in [queue.submit(identity, k) for k in range(5000)]], 3)
    print(f"5,000 submits, gathered: {5000 / many:,.0f} calls/s")
    items = median(lambda: queue.map(identity, range(200_000)).result(), 3)
    print(f"a map of 200,000 trivial items: {200_000 / items:,.0f} items/s")
    short = median(lambda: queue.map(sleep, [0.001] * 2000).result(), 3)
    print(f"a map of 2,000 items of 1 ms: {2000 * 0.001 / n_workers / short:.2f} of ideal")
    many = median(lambda: queue.map(sleep, [0.001] * 10_000).result(), 3)
    print(f"a map of 10,000 items of 1 ms: {10_000 * 0.001 / n_workers / many:.2f} of ideal")
    long = median(lambda: queue.map(sleep, [0.05] * 100).result(), 3)
    print(f"a map of 100 items of 50 ms: {100 * 0.05 / n_workers / long:.2f} of ideal", flush=True)


def where(seconds: float) -> int:
    time.sleep(seconds)
    return os.getppid()


def start_worker(address: str, n_workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nbstreamq", "worker", address, "--queue", "far"]
    return subprocess.Popen(
        [*command, "-n", str(n_workers), "--insecure"], stderr=subprocess.DEVNULL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.02)
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="nbq-")
    os.environ.update(NBSTREAMQ_RUNTIME_DIR=folder, NBSTREAMQ_DATA_DIR=folder + "/data")
    server = Server()
    try:
        with (
            Forwarder(url(), options.delay) as road,
            TaskQueue("far", road.url, workers=0, insecure=True) as queue,
        ):
            started = [start_worker(road.url, 2)]
            while len(queue.workers()) < 2:
                time.sleep(0.1)
            throughput(queue, 2)
            with Forwarder(url(), options.delay) as other:
                started.append(start_worker(other.url, 1))
                while len(queue.workers()) < 3:
                    time.sleep(0.1)
                futures = [queue.submit(where, 3.0) for _ in range(3)]
                time.sleep(1.0)
                begun = time.perf_counter()
                other.mute()
                for future in futures:
                    future.result()
                seconds = time.perf_counter() - begun
                print(f"a machine that is cut off: its call of 3 s is done after {seconds:.1f} s")
            for process in started:
                process.terminate()
            for process in started:
                process.wait()
    finally:
        server.process.kill()
        server.process.wait()


if __name__ == "__main__":
    main()
