"""The states of a task, and which verb moves it from one to another.

::

    submit ──> WAITING ──take──> RUNNING ──finish──> DONE | FAILED
       │        ^  ^                │
       │        │  └── slice, release, retry, requeue
       └──> DELAYED <── retry (with backoff)
    cancel: WAITING, DELAYED, RUNNING ──> CANCELLED

Every step away from RUNNING is one run of ``settle.lua``: only who can still acknowledge the
entry may write what follows from it.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["State"]


class State(StrEnum):
    """What has become of a task.

    A task is ``waiting`` in a lane, ``delayed`` until it is due, ``running`` in a worker, or
    over: ``done``, ``failed`` or ``cancelled``.
    """

    WAITING = "waiting"
    DELAYED = "delayed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
