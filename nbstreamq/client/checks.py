"""Arguments that are wrong are refused at the call, not in a worker's log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["check_map", "check_options"]


#: Longest name of a job: it is part of what a worker says that it runs.
MAX_NAME = 80


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
        elif not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{key} is {value!r}: it must be a number that is not negative")
