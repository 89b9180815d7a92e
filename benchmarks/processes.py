"""Find all processes of a session by its folder, so that none is forgotten.

The folder is in their environment. A server overwrites its environment with its title, but its
working directory is the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

__all__ = ["MARK", "end", "ours"]

#: Environment variable with the session's folder, which all its processes inherit.
MARK = "NBSTREAMQ_BENCHMARK"
#: Seconds to clean up after SIGTERM, before SIGKILL.
GRACE = 0.5


def ours(folder: str | None = None) -> Iterator[psutil.Process]:
    """Yield all living processes of a session; None: of the one this process belongs to."""
    folder = folder or os.environ[MARK]
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == folder or process.cwd().startswith(folder):
                yield process
        except (psutil.Error, OSError):
            continue  # it is gone, or another user's


def end(folder: str) -> None:
    """End all processes of a session, however they were started."""
    processes = list(ours(folder))
    for process in processes:
        _send(process.terminate)
    psutil.wait_procs(processes, GRACE)
    while processes := list(ours(folder)):  # again: one may have started another meanwhile
        for process in processes:
            _send(process.kill)
        psutil.wait_procs(processes, GRACE)


def _send(signal: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        signal()
