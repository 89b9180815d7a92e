"""Which processes the tasks of a worker have started, and left behind.

Each worker leads a session, and what its tasks start belongs to that, also when the worker has
died. Who starts a process with ``start_new_session=True`` takes it out on purpose.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["has_started", "members"]

#: Seconds by which the clock of processes is coarse.
_COARSE = 0.02


def members(leaders: Collection[int]) -> dict[int, list[int]]:
    """Return the living processes of the sessions whose leaders have died.

    Returns
    -------
    dict
        Leader -> process ids; without those that have none. Where the system does not tell, its
        process group stands for them: ``[-leader]``, as `os.kill` takes it.
    """
    if sys.platform != "linux":
        return {leader: [-leader] for leader in leaders if _is_group(leader)}
    found: dict[int, list[int]] = {}
    for process, session, _ in _processes():
        if session in leaders:
            found.setdefault(session, []).append(process)
    # A number that has a process again is another's.
    return {leader: pids for leader, pids in found.items() if leader not in pids}


def has_started(seconds: float) -> bool:
    """Return whether processes run that this one, or its children, started so many seconds ago.

    Where the system does not tell since when they run, whether it has any children.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    if sys.platform != "linux":
        return True
    me, since = os.getpid(), time.clock_gettime(time.CLOCK_BOOTTIME) - seconds - _COARSE
    return any(
        process != me and session == me and born > since for process, session, born in _processes()
    )


def _processes() -> Iterator[tuple[int, int, float]]:
    """Yield number, session and begin, in seconds since the machine's, of all that are alive."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
            # Behind the name, which may hold anything but a closing bracket after its own.
            fields = stat.rpartition(")")[2].split()
            if fields[0] not in "ZX":
                yield int(folder.name), int(fields[3]), int(fields[19]) / ticks


def _is_group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except OSError:
        return False
    return True
