"""Sizes, durations and counts as people read them."""

from __future__ import annotations

import re

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_POWERS = {"k": 1, "M": 2, "G": 3, "T": 4}


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


def read_size(parameter: str, text: str) -> int:
    """Return the bytes that a text such as ``500MB`` or ``4GiB`` says; ValueError if none.

    Examples
    --------
    >>> read_size("it", "1.5GB"), read_size("it", "2KiB")
    (1500000000, 2048)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT])(i?)B", text)
    if not found:
        raise ValueError(f"{parameter} is {text!r}: it must be a size such as 500MB or 4GiB")
    number, unit, is_binary = found.groups()
    return int(float(number) * (1024 if is_binary else 1000) ** _POWERS[unit.replace("K", "k")])
