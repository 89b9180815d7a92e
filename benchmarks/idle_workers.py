"""What idle workers cost: a lone call beside many of them, and how soon a burst reaches them all.

``python -m benchmarks.idle_workers`` prints it. Of each supervisor's idle workers one waits on the
server, so most of 1,000 workers are connections that do nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time

from nbstreamq import TaskQueue

from .arrays import median
from .calls import identity
from .capacity import QUEUE, simulated
from .local import ServerUse, own_server, workers_ready

#: Supervisors, and the workers of each, in the simulation; and real workers.
N_NODES, N_EACH = 16, 63
N_WORKERS = (2, 64, 2, 64)
N_LONE, PAUSES, N_BURSTS = 300, (0.0, 0.005, 0.05), 9


def reach(seconds: float) -> tuple[int, float]:
    """Stay in one worker; return which one, and when the call began, by the wall clock."""
    began = time.time()
    time.sleep(seconds)
    return os.getpid(), began


def real(queue: TaskQueue, use: ServerUse, n: int) -> str:
    """Return what `n` workers cost the server and the caller, in words."""
    workers_ready(queue, n)
    time.sleep(1.5)  # They rest, and so does their supervisor.
    found = []
    for pause in PAUSES:
        use.start()
        n_calls = N_LONE if pause < 0.05 else 40
        us = median(lambda: queue.submit(identity, 1).result(), n_calls, pause) * 1e6
        found.append(f"{use.seconds() / n_calls * 1e6:4.0f} {us:5.0f}")
    return f"{n:3} workers: server and latency, us, every 0, 5, 50 ms: {' | '.join(found)}"


def burst(queue: TaskQueue, n: int) -> tuple[float, int]:
    """Return after how many seconds a burst of `n` calls has reached `n` workers."""
    time.sleep(1.5)
    begun = time.time()
    futures = [queue.submit(reach, 0.5) for _ in range(n)]
    found = [future.result() for future in futures]
    return max(began for _, began in found) - begun, len({pid for pid, _ in found})


def main() -> None:
    with own_server(), TaskQueue(QUEUE, workers=2) as queue:
        use = ServerUse(queue)
        for n in N_WORKERS:
            print(real(queue, use, n))
        queue.submit(reach, 0.5).result()  # Long calls do not share a message.
        bursts = [burst(queue, N_WORKERS[-1]) for _ in range(N_BURSTS)]
        times = sorted(seconds * 1e3 for seconds, _ in bursts)
        print(
            f"a burst of {N_WORKERS[-1]} reaches {min(n for _, n in bursts)} workers in"
            f" {statistics.median(times):.0f} ms ({times[0]:.0f} to {times[-1]:.0f})"
        )
        queue.run(0)
        time.sleep(1.0)
        for n_waiting in (N_NODES * N_EACH, N_NODES):
            n_idle = N_NODES * N_EACH - n_waiting
            with contextlib.ExitStack() as stack:
                for _ in range(n_idle):
                    idle = stack.enter_context(socket.socket(socket.AF_UNIX))
                    idle.connect(use.path)
                cost = simulated(use, n_waiting)[1]
            print(f"{n_waiting} simulated workers wait, {n_idle} do not: {cost:.0f} us a message")


if __name__ == "__main__":
    main()
