"""`nbstreamq demo`: some calls on this machine, to see that it works."""

from __future__ import annotations

import argparse
import math
import time

from ..cores import n_cores
from .parsing import Commands, add_command, add_server
from .printing import advise, console
from .target import delete_queue, server

#: How many calls the demo makes, and how many seconds each takes.
N_CALLS, SECONDS = 40, 0.05


def add_demo(commands: Commands) -> None:
    """Add the command to the parser."""
    does = "start workers here, run a few seconds of calls on them, and stop them"
    add_server(add_command(commands, "demo", does, "nbstreamq demo", _run))


def slow_root(x: int) -> float:
    """Return the root of `x`, after a while."""
    time.sleep(SECONDS)
    return math.sqrt(x)


def _run(options: argparse.Namespace) -> None:
    from ..public import TaskQueue  # with the progress line of a terminal

    url, secret = server(options)
    name, out = f"demo-{time.time_ns()}", console()
    out.print("q = TaskQueue()  # an embedded server and local workers", style="bold")
    with TaskQueue(name, url, secret=secret, workers=n_cores()) as queue:
        out.print(f"q.map(slow_root, range({N_CALLS}))", style="bold")
        began = time.monotonic()
        roots = queue.map(slow_root, range(N_CALLS)).result()
        took, n_workers = time.monotonic() - began, queue.size
    delete_queue(url, secret, name)
    alone = N_CALLS * SECONDS
    out.print(f"The sum of the roots is {sum(roots):.3f}.")
    out.print(f"{n_workers} workers took {took:.1f} s; one process would take {alone:.1f} s.")
    advise("in a notebook or script, `from nbstreamq import TaskQueue`; `nbstreamq --help`.")
