"""Arguments that are wrong are refused at the call, not in a worker's log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ..arguments import (
    MAX_RETRIES,
    check_bytes,
    check_callable,
    check_count,
    check_count_or_auto,
    check_flag,
    check_iterable,
    check_job_name,
    check_lane,
    check_seconds,
    check_seed,
    check_timeout,
)
from ..protocol.keys import DAY

__all__ = ["MapArguments", "check_map", "check_options"]

#: Bytes that a worker may use at least: a bit more than one that has run nothing.
MIN_MEMORY = 32 * 2**20
#: Longest delay of a call, in seconds: the server keeps functions for a week.
MAX_DELAY = 6 * DAY
#: Longest pause before a first retry, in seconds: pauses grow to a day.
MAX_BACKOFF = DAY


class MapArguments(NamedTuple):
    """The arguments of a map that say how it is done."""

    timeout: float | None
    chunksize: int | Literal["auto"]
    buffersize: int | None
    name: str | None
    replace: bool
    seed: int | Sequence[int] | None


def check_map(fn: Any, iterables: tuple[Any, ...], how: MapArguments) -> MapArguments:
    """Return `how` a map is done, in the form that it uses.

    Raises
    ------
    TypeError, ValueError
        An argument can't be used; nothing was taken of the iterables.
    """
    check_callable("fn", fn)
    for number, one in enumerate(iterables, 1):
        check_iterable(f"iterable {number} of map()", one)
    chunksize = check_count_or_auto("chunksize", how.chunksize, least=1)
    buffersize, name = how.buffersize, how.name
    if buffersize is not None:
        buffersize = check_count("buffersize", buffersize, least=1, instead="None")
    if name is not None:
        name = check_job_name("name", name)
    if name is not None and buffersize is not None:
        raise ValueError("name and buffersize: a job that is kept keeps all its inputs and results")
    timeout = check_timeout("timeout", how.timeout)
    replace = check_flag("replace", how.replace)
    seed = None if how.seed is None else check_seed("seed", how.seed)
    return MapArguments(timeout, chunksize, buffersize, name, replace, seed)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": lambda key, value: check_count(key, value, most=MAX_RETRIES),
    "backoff": lambda key, value: check_seconds(key, value, most=MAX_BACKOFF),
    "time_limit": lambda key, value: check_seconds(key, value, above=0),
    "memory_limit": lambda key, value: check_bytes(key, value, least=MIN_MEMORY),
    "lane": check_lane,
    "delay": lambda key, value: check_seconds(key, value, most=MAX_DELAY),
    "cache": check_flag,
}


def check_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not None, in the form that messages carry."""
    return {key: _CHECKS[key](key, value) for key, value in given.items() if value is not None}
