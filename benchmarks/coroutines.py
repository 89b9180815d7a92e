"""1,000 HTTP calls of 200 ms: on workers of nbstreamq and of streaq, and with asyncio.gather.

``python -m benchmarks.coroutines`` prints seconds: median, and the rounds. Two worker processes run
50 calls each at the same time; asyncio.gather runs 100 in one process. Ideal are 2.0 s. The website
is a process of its own, and all of them use the same client code.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nbstreamq import TaskQueue

from .async_queues import AT_A_TIME
from .local import own_server
from .peer import N_WORKERS
from .server import Server, url

N_CALLS, LATENCY, CONCURRENCY, N_ROUNDS = 1000, 0.2, 50, 3
#: Environment variable with the website's port.
PORT = "NBSTREAMQ_BENCHMARK_PORT"


async def fetch(number: int) -> int:
    """Return what the website says to a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ[PORT]))
    writer.write(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.rpartition(b"\n")[2])


async def serve() -> None:
    """Be the website, and print the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        await asyncio.sleep(LATENCY)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path[1:]))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def streaq_worker() -> Any:
    """Return streaq's worker, and its task."""
    from streaq import Worker

    worker = Worker(redis_url=url(), concurrency=CONCURRENCY)
    return worker, worker.task(name="fetch")(fetch)


@contextmanager
def process(what: str) -> Iterator[subprocess.Popen[str]]:
    """Start this module in another process: the website, or a worker of streaq."""
    command = [sys.executable, "-m", "benchmarks.coroutines", what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def measure(name: str, run: Callable[[], list[int]]) -> None:
    """Print how long `run` takes; a first, shorter round is not counted."""
    seconds = []
    for _ in range(N_ROUNDS):
        began = time.perf_counter()
        assert run() == list(range(N_CALLS))
        seconds.append(time.perf_counter() - began)
    rounds = " ".join(f"{one:.2f}" for one in seconds)
    print(f"{name:16} {statistics.median(seconds):.2f} s  ({rounds})", flush=True)


def with_gather() -> list[int]:
    """Run the calls in this process."""

    async def run() -> list[int]:
        places = asyncio.Semaphore(N_WORKERS * CONCURRENCY)

        async def one(number: int) -> int:
            async with places:
                return await fetch(number)

        return await asyncio.gather(*map(one, range(N_CALLS)))

    return asyncio.run(run())


def with_nbstreamq() -> None:
    """Measure a map."""
    with TaskQueue("coroutines", workers=N_WORKERS) as queue:
        queue.map(fetch, range(N_WORKERS)).wait()
        many: Any = queue.options(concurrency=CONCURRENCY)
        measure("nbstreamq", lambda: many.map(fetch, range(N_CALLS)).result())


def with_streaq() -> None:
    """Measure its `map`."""

    async def run() -> list[int]:
        worker, task = streaq_worker()
        async with worker:
            tasks = [task.enqueue(number) for number in range(N_CALLS)]
            await worker.enqueue_many(tasks)
            found: list[int] = []
            for first in range(0, N_CALLS, AT_A_TIME):
                some = await asyncio.gather(*(t.result() for t in tasks[first : first + AT_A_TIME]))
                found += [one.result for one in some]
            return found

    Server()
    with process("streaq"), process("streaq"):
        time.sleep(3)
        measure("streaq", lambda: asyncio.run(run()))


def main() -> None:
    """Measure all of them, or be one of the processes."""
    if sys.argv[1:] == ["website"]:
        asyncio.run(serve())
    elif sys.argv[1:] == ["streaq"]:
        streaq_worker()[0].run_sync()
    else:
        with own_server(), process("website") as website:
            assert website.stdout is not None
            os.environ[PORT] = website.stdout.readline().strip()
            measure("asyncio.gather", with_gather)
            with_nbstreamq()
            with_streaq()


if __name__ == "__main__":
    main()
