"""Arguments that are wrong are refused at the call, not in a worker's log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["check_map", "check_options"]


def check_map(
    iterables: tuple[Iterable[Any], ...], chunksize: int | str, buffersize: int | None
) -> None:
    if not iterables:
        raise TypeError("map() needs at least one iterable")
    if chunksize != "auto" and (not isinstance(chunksize, int) or chunksize < 1):
        raise ValueError(f"chunksize is {chunksize!r}: it must be 'auto' or at least 1")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize is {buffersize!r}: it must be None or at least 1")


def check_options(changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if key == "lane":
            if not value or not isinstance(value, str) or value.startswith("@"):
                raise ValueError(f"lane is {value!r}: it must be a name that does not start with @")
        elif not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{key} is {value!r}: it must be a number that is not negative")
