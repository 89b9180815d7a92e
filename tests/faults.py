"""Raises an error at the k-th Python call of a thread, whatever that is."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any


class Injected(Exception):
    """What is raised."""


class Fault:
    """A profiler that raises `Injected` once, at the `k`-th call (from 1) after it was armed.

    What raises is as if the called function did so at once. Python then takes the profiler away.

    Parameters
    ----------
    k
        Which call.
    thread
        What the name of the thread begins with; empty: whichever it is installed in.
    """

    def __init__(self, k: int, thread: str = "") -> None:
        self.k = k
        self.thread = thread
        self.is_armed = False
        self.n_calls = 0
        #: Where it was raised; empty: not yet.
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or not self.is_armed or self.place:
            return
        # Not in what the garbage collector finds just now, nor as a thread is started or forgotten.
        if frame.f_code.co_name == "__del__" or _is_around_a_thread(frame):
            return
        if not threading.current_thread().name.startswith(self.thread):
            return
        self.n_calls += 1
        if self.n_calls == self.k:
            code = frame.f_code
            self.place = f"{code.co_filename}:{frame.f_lineno} {code.co_qualname}"
            raise Injected(self.place)


def _is_around_a_thread(frame: FrameType) -> bool:
    """Return whether the interpreter is entering or leaving what a thread is there to run."""
    if threading.current_thread() is threading.main_thread():
        return False
    caller = frame.f_back
    while caller and caller.f_code.co_qualname != "Thread.run":
        caller = caller.f_back
    return caller is None or caller is frame.f_back


def strike(k: int) -> int:
    """Have the k-th call from here on fail in the thread that runs this: a task for a worker."""
    fault = Fault(k)
    fault.is_armed = True
    sys.setprofile(fault)
    return k
