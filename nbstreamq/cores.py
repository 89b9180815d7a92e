"""How many cores this process may use."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

#: The CPU quota of a process that has none: more cores than any machine has.
_NO_QUOTA = 2.0**31


def n_cores(
    cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int:
    """Return how many cores this process may use, at least 1.

    ``PYTHON_CPU_COUNT`` or ``-X cpu_count`` decide, if they are set. Otherwise it is the number of
    cores that the process may run on, or its CPU quota, rounded up, if that is less. A container
    with a limit of 2 CPUs on a machine of 64 cores has 2.

    Parameters
    ----------
    cgroups
        Where the control groups are mounted, version 1 or 2.
    membership
        The file that says which of them this process belongs to.

    Examples
    --------
    >>> n_cores() >= 1
    True
    """
    chosen = str(sys._xoptions.get("cpu_count") or os.environ.get("PYTHON_CPU_COUNT") or "")  # noqa: SLF001 - it is documented
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    affinity = getattr(os, "sched_getaffinity", None)
    n = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(n, math.ceil(_cpu_quota(cgroups, membership))))


def _cpu_quota(cgroups: Path, membership: Path) -> float:
    """Return the time, in cores, that the control groups of this process allow."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # this is no Linux
        return _NO_QUOTA
    quotas = [_NO_QUOTA]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_read_quota(f / "cpu.max") for f in _folders(cgroups, path)]
        elif "cpu" in controllers.split(","):
            for folder in _folders(cgroups / controllers, path) + _folders(cgroups / "cpu", path):
                quota = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
                quotas.append(_read_quota(*quota))
    return min(quotas)


def _folders(root: Path, path: str) -> list[Path]:
    """Return the folders of a group and of all groups around it; the least of their limits holds.

    A container may see its own group as the root, but its path as it is outside.
    """
    group = root / path.lstrip("/")
    return [root, *(folder for folder in (group, *group.parents) if root in folder.parents)]


def _read_quota(*files: Path) -> float:
    """Return quota / period, which are in one file or in two."""
    try:
        quota, period = " ".join(f.read_text(encoding="ascii") for f in files).split()
        # No limit is written as "max", or as -1.
        return int(quota) / int(period) if int(quota) > 0 else _NO_QUOTA
    except (OSError, ValueError, ZeroDivisionError):
        return _NO_QUOTA
