"""What a slow network costs: a server that is 20 ms away from the kernel and from the workers.

    python -m benchmarks.far [--delay 0.02]

A forwarding process holds back all that passes, in each direction. So a lone call takes four times
the delay at least: to the server, to a worker, and back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nbstreamq import TaskQueue

from .arrays import median
from .calls import identity, sleep
from .server import Server, url


class _Held(asyncio.Protocol):
    """One end of a connection: what it receives goes to the other end after a while."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.other: asyncio.WriteTransport | None = None

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


async def forward(port: int, path: str, delay: float) -> None:
    """Carry bytes between a port and a server's socket."""
    loop = asyncio.get_running_loop()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near, far = _Held(delay), _Held(delay)
        far.other = writer.transport
        near.other, _ = await loop.create_unix_connection(lambda: far, path)
        while data := await reader.read(2**18):
            near.data_received(data)
        near.connection_lost(None)

    server = await asyncio.start_server(accept, "127.0.0.1", port, limit=2**20)
    async with server:
        await server.serve_forever()


@contextmanager
def far_server(delay: float) -> Iterator[tuple[str, int]]:
    """Start a forwarding process; give its address and process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = url().partition("://")[2]
    command = [sys.executable, "-m", "benchmarks.far", "--forward", str(port), path, str(delay)]
    process = subprocess.Popen(command)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        process.wait()


def throughput(queue: TaskQueue, n_workers: int) -> None:
    lone = median(lambda: queue.submit(identity, 1).result(), 15) * 1e3
    print(f"a lone call: {lone:.0f} ms", flush=True)
    many = median(lambda: [f.result() for f in [queue.submit(identity, k) for k in range(5000)]], 3)
    print(f"5,000 submits, gathered: {5000 / many:,.0f} calls/s")
    items = median(lambda: queue.map(identity, range(200_000)).result(), 3)
    print(f"a map of 200,000 trivial items: {200_000 / items:,.0f} items/s")
    short = median(lambda: queue.map(sleep, [0.001] * 2000).result(), 3)
    print(f"a map of 2,000 items of 1 ms: {2000 * 0.001 / n_workers / short:.2f} of ideal")
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
    parser.add_argument("--forward", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        port, path, delay = options.forward
        asyncio.run(forward(int(port), path, float(delay)))
        return
    folder = tempfile.mkdtemp(prefix="nbq-")
    os.environ.update(NBSTREAMQ_RUNTIME_DIR=folder, NBSTREAMQ_DATA_DIR=folder + "/data")
    server = Server()
    try:
        with (
            far_server(options.delay) as (address, _),
            TaskQueue("far", address, workers=0, insecure=True) as queue,
        ):
            started = [start_worker(address, 2)]
            while len(queue.workers()) < 2:
                time.sleep(0.1)
            throughput(queue, 2)
            with far_server(options.delay) as (other, forwarder):
                started.append(start_worker(other, 1))
                while len(queue.workers()) < 3:
                    time.sleep(0.1)
                futures = [queue.submit(where, 3.0) for _ in range(3)]
                time.sleep(1.0)
                begun = time.perf_counter()
                os.kill(forwarder, signal.SIGSTOP)  # a network that carries nothing
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
