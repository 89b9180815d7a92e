"""All processes of a session carry a mark in their environment: so none is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

__all__ = ["MARK", "end", "ours"]

#: Environment variable that all processes of a session inherit.
MARK = "NBSTREAMQ_BENCHMARK"
#: Seconds to clean up after SIGTERM, before SIGKILL.
GRACE = 0.5


def ours(mark: str | None = None) -> Iterator[psutil.Process]:
    """Yield all living processes with `mark`; None: this process's own."""
    mark = mark or os.environ[MARK]
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                yield process
        except (psutil.Error, OSError):
            continue  # it is gone, or another user's


def end(mark: str) -> None:
    """End all processes of a session, however they were started."""
    processes = list(ours(mark))
    for process in processes:
        _send(process.terminate)
    psutil.wait_procs(processes, GRACE)
    while processes := list(ours(mark)):  # again: one may have started another meanwhile
        for process in processes:
            _send(process.kill)
        psutil.wait_procs(processes, GRACE)


def _send(signal: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        signal()
