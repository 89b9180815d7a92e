"""Sizes as people read them."""

from __future__ import annotations

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def in_units(n_bytes: float) -> str:
    """Return a size with its unit, of 1000 bytes and so on.

    Examples
    --------
    >>> in_units(12), in_units(3_456_789), in_units(340e9)
    ('12 bytes', '3.5 MB', '340 GB')
    """
    power = min(len(_UNITS) - 1, (len(str(int(n_bytes))) - 1) // 3)
    size = n_bytes / 1000**power
    digits = 0 if power == 0 or size >= 100 else 1
    return f"{size:,.{digits}f} {_UNITS[power]}"
