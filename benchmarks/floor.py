"""Measure how much of a lone call's latency any route through a server needs.

``python -m benchmarks.floor`` measures a call of nbstreamq, one of ProcessPoolExecutor, and a bare
message. The bare message sends the same commands to the same server, from a client to one of two
processes and back, with redis-py's connection. Nothing is pickled, signed, checked or kept, and
there are no other threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import redis

from nbstreamq import TaskQueue

from .arrays import median
from .calls import identity
from .local import ServerUse, own_server, workers_ready

N_CALLS, N_WORKERS = 1000, 2
#: Streams for the bare message, and the message that ends a worker.
LANE, EVENTS, GROUP, END = "floor:lane", "floor:events", "workers", b"end"
BLOCK_MS = 60_000


def connect(path: str) -> Any:
    """Return a bare connection."""
    client = redis.Redis(unix_socket_path=path, protocol=2, socket_timeout=None)
    return client.connection_pool.get_connection()


def exchange(connection: Any, *commands: tuple[Any, ...]) -> Any:
    """Send commands in one message; return the last one's reply."""
    connection.send_packed_command([b"".join(connection.pack_commands(commands))])
    replies = [connection.read_response() for _ in commands]
    return replies[-1]


def serve(path: str, name: str) -> None:
    """Pass each message on, as a worker does: answer, acknowledge and ask for the next."""
    connection = connect(path)
    wait = ("XREADGROUP", "GROUP", GROUP, name, "BLOCK", BLOCK_MS, "STREAMS", LANE, ">")
    reply = exchange(connection, wait)
    while True:
        entry, (_, word) = reply[0][1][0]
        done = ("XACK", LANE, GROUP, entry), ("XDEL", LANE, entry)
        if word == END:
            exchange(connection, *done)
            return
        reply = exchange(connection, ("XADD", EVENTS, "*", "x", word), *done, wait)


def bare(path: str) -> tuple[Callable[[], object], Callable[[], None]]:
    """Start workers; return what sends a message there and back, and what ends the workers."""
    connection = connect(path)
    exchange(connection, ("XGROUP", "CREATE", LANE, GROUP, "$", "MKSTREAM"))
    context = multiprocessing.get_context("spawn")
    names = [f"worker{k}" for k in range(N_WORKERS)]
    workers = [context.Process(target=serve, args=(path, name)) for name in names]
    for worker in workers:
        worker.start()
    last = b"0"

    def call() -> None:
        nonlocal last
        send = ("XADD", LANE, "*", "x", b"1")
        reply = exchange(connection, send, ("XREAD", "BLOCK", BLOCK_MS, "STREAMS", EVENTS, last))
        last = reply[0][1][-1][0]

    def close() -> None:
        for _ in workers:
            exchange(connection, ("XADD", LANE, "*", "x", END))
        for worker in workers:
            worker.join()

    return call, close


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with own_server(), TaskQueue("floor", workers=N_WORKERS) as queue:
        workers_ready(queue, N_WORKERS)
        call, close = bare(ServerUse(queue).path)
        with ProcessPoolExecutor(N_WORKERS) as pool:
            ways: dict[str, Callable[[], object]] = {
                "nbstreamq": lambda: queue.submit(identity, 1).result(),
                "a bare message": call,
                "ProcessPoolExecutor": lambda: pool.submit(identity, 1).result(),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    found[name].append(1e6 * median(way, N_CALLS))
            close()
    for name, us in found.items():
        print(f"{name:24}{statistics.median(us):8.0f} us   ({min(us):.0f} to {max(us):.0f})")


if __name__ == "__main__":
    main()
