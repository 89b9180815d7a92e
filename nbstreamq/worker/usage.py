"""How much memory and processor time a process uses."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from .slot import NO_ITEM, RunningTask

#: What can't be dropped and read again from a file; the size of such files says nothing.
_OWN = ("RssAnon:", "RssShmem:", "VmSwap:")


def memory_of(pid: int) -> int:
    """Return the bytes that a process uses for itself; 0 where that can't be known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has just ended, or this is no Linux
        return 0
    return sum(1024 * int(v.split()[1]) for v in lines.splitlines() if v.startswith(_OWN))


class Meter:
    """Tells how busy a process was since it was asked last.

    Parameters
    ----------
    pid
        Of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = (time.monotonic(), _processor_seconds(pid))

    def share(self) -> float:
        """Return the share of one processor's time: 1.0 for a process that always computes."""
        at, used = time.monotonic(), _processor_seconds(self._pid)
        (before, used_before), self._last = self._last, (at, used)
        return max(0.0, used - used_before) / max(1e-3, at - before)


def _processor_seconds(pid: int) -> float:
    """Return the seconds that a process has computed; 0 where that can't be known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    # Behind the name, which may hold anything but a closing bracket after its own.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def over_memory(pid: int, levels: Sequence[RunningTask]) -> RunningTask | None:
    """Return the innermost item that runs and whose memory limit its worker exceeds."""
    limited = [v for v in levels if v.memory_limit and v.item != NO_ITEM]
    used = memory_of(pid) if limited else 0
    return next((v for v in reversed(limited) if used > v.memory_limit), None)
