"""Conditions and events that no exception can leave locked.

In the standard library, a condition takes and releases its lock in methods written in Python. An
exception that is raised as such a method is entered - by Ctrl-C, a signal handler, a profiler, a
lack of memory - leaves the lock held forever, and all other threads wait for it.
"""

from __future__ import annotations

import operator
import threading
from typing import Any


class Condition(threading.Condition):
    """A `threading.Condition` whose `with` calls the methods of the lock, which are in C."""

    __enter__: Any = property(operator.attrgetter("_lock.__enter__"))
    __exit__: Any = property(operator.attrgetter("_lock.__exit__"))


class Event(threading.Event):
    """A `threading.Event` with such a condition."""

    def __init__(self) -> None:
        super().__init__()
        self._cond = Condition()
