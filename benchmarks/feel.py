"""Measure how fast nbstreamq feels in a notebook: time the messages of a real kernel.

    python benchmarks/feel.py [--rounds 5]

Each round starts a fresh kernel and a fresh embedded server. The output shows medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import start_new_kernel

FIRST = """\
%load_ext nbstreamq
from nbstreamq import TaskQueue
q = TaskQueue()
q.submit(abs, -1).result()
"""


def seconds_until(client: Any, code: str, kinds: set[str], interrupt: Any = None) -> float:
    """Return the seconds from sending a cell to the first message of one of these kinds."""
    begun = time.perf_counter()
    request = client.execute(code)
    if interrupt:
        time.sleep(1)
        begun = time.perf_counter()
        interrupt()
    found = 0.0
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] in kinds and not found:
            found = time.perf_counter() - begun
        status = message["content"].get("execution_state")
        if message["msg_type"] == "status" and status == "idle":
            return found


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="nbq-") as folder:
        os.environ["NBSTREAMQ_RUNTIME_DIR"] = os.environ["NBSTREAMQ_DATA_DIR"] = folder
        os.environ["NBSTREAMQ_SERVER_IDLE"] = "1"
        manager, client = start_new_kernel(kernel_name="python3")
        try:
            first = seconds_until(client, FIRST, {"execute_result"})
            view = seconds_until(client, "import time; q.map(time.sleep, [1])", {"display_data"})
            again = seconds_until(client, "q.map(time.sleep, [1])", {"display_data"})
            cell = "q.submit(time.sleep, 30).result()"
            stop = seconds_until(client, cell, {"error"}, manager.interrupt_kernel)
            client.execute("q.shutdown(cancel_futures=True)", reply=True)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
        while (Path(folder) / "server.sock").exists():  # the folder goes when the server is gone
            time.sleep(0.1)
    return {
        "%load_ext to the first result, server and workers started": first,
        "the first job's view": view,
        "another job's view": again,
        "Ctrl-C to the end of the cell": stop,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = [measure() for _ in range(parser.parse_args().rounds)]
    for name in rounds[0]:
        print(f"{statistics.median(r[name] for r in rounds) * 1e3:8.0f} ms  {name}")


if __name__ == "__main__":
    main()
