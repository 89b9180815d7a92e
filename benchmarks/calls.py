"""The functions that are called. Workers import them, so this module imports next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["CALLS", "describe", "identity", "increment", "pick", "sleep", "spin"]


def identity(x: Any) -> Any:
    return x


def describe(x: int) -> dict[str, Any]:
    """Return what calls often do: something with a structure."""
    return {"number": x, "names": [str(x), "some"], "square": x * x}


def spin(seconds: float) -> float:
    """Be busy, as a calculation is; what it takes from the processor nobody else has."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def increment(array: Any) -> Any:
    """Return another array: what has not changed need not travel back."""
    return array + 1


def pick(pair: tuple[Any, int]) -> float:
    array, i = pair
    return float(array[i])


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


#: What the queues register with their workers.
CALLS: tuple[Callable[[Any], Any], ...] = (identity, describe, spin, increment, pick)
