"""How much memory a process uses."""

from __future__ import annotations

from pathlib import Path

__all__ = ["memory_of"]

#: What can't be dropped and read again from a file; the size of such files says nothing.
_OWN = ("RssAnon:", "RssShmem:", "VmSwap:")


def memory_of(pid: int) -> int:
    """Return the bytes that a process uses for itself; 0 where that can't be known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # it has just ended, or this is no Linux
        return 0
    return sum(1024 * int(v.split()[1]) for v in lines.splitlines() if v.startswith(_OWN))
