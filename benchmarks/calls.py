"""The functions that are called. Workers import this module, so it imports almost nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


def identity(x: Any) -> Any:
    return x


def describe(x: int) -> dict[str, Any]:
    """Return a small structure, as many calls do."""
    return {"number": x, "names": [str(x), "some"], "square": x * x}


def spin(seconds: float) -> float:
    """Keep the processor busy, as a calculation does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def increment(array: Any) -> Any:
    """Return a new array: an unchanged one need not travel back."""
    return array + 1


def pick(pair: tuple[Any, int]) -> float:
    array, i = pair
    return float(array[i])


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Counter:
    """Counts the Python functions that this thread enters."""

    n_entered = 0

    @classmethod
    def start(cls) -> None:
        def count(_frame: object, event: str, _arg: object) -> None:
            if event == "call":
                cls.n_entered += 1

        sys.setprofile(count)


def n_entered() -> int:
    """Return how many functions this process's main thread has entered, this one included."""
    return Counter.n_entered


#: What the queues register with their workers.
CALLS: tuple[Callable[[Any], Any], ...] = (identity, describe, spin, increment, pick)
