"""What leaves the server when the calls of several machines use one large array.

    python -m benchmarks.machines [--megabytes 100] [--machines 2] [--workers 4] [--name NAME]

Each machine is a supervisor with a memory folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import redis

from nbstreamq import TaskQueue

from .arrays import N_ITEMS, private_bytes, shared_bytes
from .server import Server, url


@contextlib.contextmanager
def machines(queue: TaskQueue, n_machines: int, n_workers: int) -> Iterator[list[int]]:
    """Start supervisors; give the process ids of all workers."""
    with contextlib.ExitStack() as stack:
        started = []
        for k in range(n_machines):
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nbq"))
            options = ["-n", str(n_workers), "--queue", queue.name, "--insecure"]
            command = [sys.executable, "-m", "nbstreamq", "worker", *options, url()]
            env = os.environ | {"NBSTREAMQ_MEMORY_DIR": f"{folder}/{k}"}
            started.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL))
        try:
            while len(workers := queue.workers()) < n_machines * n_workers:
                time.sleep(0.1)
            yield [worker.pid for worker in workers]
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--name", help="of the job; else it has none")
    options = parser.parse_args()
    array = np.random.default_rng(1).random(options.megabytes * 10**6 // 8)

    def pick(k: int) -> tuple[float, int]:
        time.sleep(0.2)
        return float(array[k]), os.getpid()

    folder = tempfile.mkdtemp(prefix="nbq-")
    os.environ.update(NBSTREAMQ_RUNTIME_DIR=folder, NBSTREAMQ_DATA_DIR=folder + "/data")
    server = Server()
    client = redis.Redis(unix_socket_path=url().partition("://")[2])

    def sent() -> int:
        return int(client.info("stats")["total_net_output_bytes"])

    try:
        with (
            TaskQueue("machines", url(), workers=0, insecure=True) as queue,
            machines(queue, options.machines, options.workers) as workers,
        ):
            before, shared = sent(), shared_bytes()
            private = sum(map(private_bytes, workers))
            begun = time.perf_counter()
            found = queue.map(pick, range(N_ITEMS), chunksize=1, name=options.name).result()
            seconds = time.perf_counter() - begun
            used = sum(map(private_bytes, workers)) - private
            print(
                f"{N_ITEMS} calls in {len({pid for _, pid in found})} workers of"
                f" {options.machines} machines use {array.nbytes / 1e6:.0f} MB:"
                f" {(sent() - before) / 1e6:.0f} MB leave the server, {seconds:.1f} s;"
                f" workers use {used / 1e6:.0f} MB more of their own and"
                f" {(shared_bytes() - shared) / 1e6:.0f} MB in files"
            )
    finally:
        server.process.kill()
        server.process.wait()


if __name__ == "__main__":
    main()
