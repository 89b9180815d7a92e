"""How much memory and processor time a process uses."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

#: What can't be dropped and read again from a file; the size of such files says nothing.
_OWN = ("RssAnon:", "RssShmem:", "VmSwap:")


def memory_of(pid: int) -> int:
    """Return the bytes that a process uses for itself; 0 where that can't be known."""
    return memory_and_peak(pid)[0]


def memory_and_peak(pid: int) -> tuple[int, int]:
    """Return the bytes that a process uses for itself, and the most that it had resident.

    On Linux the first are all that it can't read again from a file, in memory or swapped out.
    Elsewhere it is the resident set, with the files that the process maps. What can't be known is
    0: the second one, anywhere but on Linux.
    """
    if sys.platform == "linux":
        # psutil tells neither what was swapped out nor what is shared, unless it walks through all
        # mappings of the process, which takes twenty times as long.
        try:
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:  # it has just ended
            return 0, 0
        found = [line.split() for line in lines.splitlines() if line.endswith(" kB")]
        sizes = {name: 1024 * int(n) for name, n, *_ in found}
        return sum(sizes.get(name, 0) for name in _OWN), sizes.get("VmHWM:", 0)
    import psutil  # takes 15 ms

    try:
        return int(psutil.Process(pid).memory_info().rss), 0
    except psutil.Error:
        return 0, 0


class Meter:
    """Tells how busy a process was since it was asked last.

    Parameters
    ----------
    pid
        Of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._process: psutil.Process | None = None
        self._last = (time.monotonic(), 0.0)

    def share(self) -> float:
        """Return the share of one processor's time: 1.0 for a process that always computes."""
        at, used = time.monotonic(), self._seconds()
        (before, used_before), self._last = self._last, (at, used)
        return max(0.0, used - used_before) / max(1e-3, at - before)

    def _seconds(self) -> float:
        """Return for how long the process has computed; 0 where that can't be known."""
        import psutil

        try:
            self._process = self._process or psutil.Process(self._pid)
            times = self._process.cpu_times()
        except psutil.Error:  # it has just ended
            return 0.0
        return float(times.user + times.system)
