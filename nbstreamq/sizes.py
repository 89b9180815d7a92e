"""Sizes, durations and counts as people read them."""

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


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``0.42 s``, ``3 min 20 s``, ``2 h 5 min``, ``7 days``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    return f"{hours} h {minutes_left} min" if hours < 48 else f"{round(hours / 24)} days"


def plural(n: int, noun: str) -> str:
    """Return a number of things: ``1 worker``, ``1,200 workers``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
