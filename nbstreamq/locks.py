"""Conditions and events that no exception can leave locked.

In the standard library a condition takes and gives back its lock in a method of its own. What is
raised as that method is entered - by Ctrl-C, a signal's handler, a profiler, a lack of memory -
leaves the lock held for good, and everybody else waiting for it.
"""

from __future__ import annotations

import operator
import threading
from typing import Any


class Condition(threading.Condition):
    """A `threading.Condition`; `with` finds the lock's own methods, which are written in C."""

    __enter__: Any = property(operator.attrgetter("_lock.__enter__"))
    __exit__: Any = property(operator.attrgetter("_lock.__exit__"))


class Event(threading.Event):
    """A `threading.Event` with such a condition."""

    def __init__(self) -> None:
        super().__init__()
        self._cond = Condition()
