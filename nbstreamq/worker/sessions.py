"""Which processes the tasks of a worker have started, and left behind.

Each worker leads a session, and what its tasks start belongs to that, also when the worker has
died. Who starts a process with ``start_new_session=True`` takes it out on purpose.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

__all__ = ["members"]


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
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:  # it has just ended
            continue
        # Behind the name, which may hold anything but a closing bracket after its own.
        state, _, _, session = stat.rpartition(")")[2].split()[:4]
        if int(session) in leaders and state not in "ZX":
            found.setdefault(int(session), []).append(int(folder.name))
    # A number that has a process again is another's.
    return {leader: pids for leader, pids in found.items() if leader not in pids}


def _is_group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except OSError:
        return False
    return True
