"""Measure the server memory of waiting calls, and whether memory grows over a million calls.

``python benchmarks/memory.py`` submits single calls that wait, and then runs a million in rounds.
After each round it prints how much the server's memory has grown since before the first. One call
runs from the first round to the last, so its entry stays in the stream among deleted ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

#: Calls in a round.
N_CALLS = 100_000
#: Seconds between two checks of a server that is still busy.
PAUSE = 0.1


def identity(x: int) -> int:
    return x


def main(n_rounds: int) -> None:
    import redis

    from nbstreamq import TaskQueue

    with TaskQueue("memory", workers=0) as queue:
        address = queue.status().server.partition("unix://")[2].partition("?")[0]
        server = redis.Redis(unix_socket_path=address)

        def used() -> int:
            return int(server.info("memory")["used_memory"])

        def n_waiting() -> int:
            return sum(lane.waiting for lane in queue.status().lanes)

        lane = f"nbq2:{{{queue.name}}}:lane:default"
        held = queue.submit(time.sleep, 3600)
        warm = queue.submit(identity, 0)
        before = used()
        futures = [queue.submit(identity, i) for i in range(N_CALLS)]
        while n_waiting() < N_CALLS:
            time.sleep(PAUSE)
        print(f"{(used() - before) / N_CALLS:.0f} bytes for each of {N_CALLS:,} waiting calls")
        queue.run(2)
        warm.result()
        for number in range(1, n_rounds + 1):
            for future in futures:
                future.result()
            time.sleep(PAUSE)
            more = (used() - before) / 2**20
            n_bytes = (server.memory_usage(lane, samples=0) or 0) / 1024
            text = f"{more:+.1f} MB; its lane has {n_bytes:.1f} kB"
            print(f"{number * N_CALLS:,} calls done: {text}", flush=True)
            if number < n_rounds:
                futures = [queue.submit(identity, i) for i in range(N_CALLS)]
        held.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbq-") as folder:
        # Start a separate server, so that other queues on this machine are not affected.
        os.environ["NBSTREAMQ_RUNTIME_DIR"] = os.environ["NBSTREAMQ_DATA_DIR"] = folder
        os.environ["NBSTREAMQ_SERVER_IDLE"] = "1"
        main(arguments.rounds)
