"""Arguments that are wrong are refused at the call, not in a worker's log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["check_map", "check_options"]


#: Longest name of a job: it is part of what a worker says that it runs.
MAX_NAME = 80
#: Bytes that a worker may use at least: a bit more than one that has run nothing.
MIN_MEMORY = 32 * 2**20


def check_map(
    iterables: tuple[Iterable[Any], ...],
    chunksize: int | str,
    buffersize: int | None,
    name: str | None,
) -> None:
    if not iterables:
        raise TypeError("map() needs at least one iterable")
    if chunksize != "auto" and (not isinstance(chunksize, int) or chunksize < 1):
        raise ValueError(f"chunksize is {chunksize!r}: it must be 'auto' or at least 1")
    if buffersize is not None and buffersize < 1:
        raise ValueError(f"buffersize is {buffersize!r}: it must be None or at least 1")
    if name is not None and buffersize is not None:
        raise ValueError("name and buffersize: a job that is kept keeps all its inputs and results")
    if name is not None and (
        not 0 < len(name) <= MAX_NAME or not name.isprintable() or set(name) & set(" .:{}")
    ):
        raise ValueError(
            f"name is {name!r}: it needs 1 to {MAX_NAME} characters,"
            " and no white space, dots, colons or braces"
        )


def check_options(changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if key == "lane":
            if not value or not isinstance(value, str) or value.startswith("@"):
                raise ValueError(f"lane is {value!r}: it must be a name that does not start with @")
        elif key == "cache":
            if not isinstance(value, bool):
                raise TypeError(f"cache is {value!r}: it must be True or False")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{key} is {value!r}: it must be a number")
        elif not value >= 0:  # nan is not
            raise ValueError(f"{key} is {value!r}: it must be a number that is not negative")
        elif key == "memory_limit" and value < MIN_MEMORY:
            raise ValueError(
                f"memory_limit is {value!r}: it is in bytes, and a worker needs {MIN_MEMORY:,} of"
                " them by itself"
            )
