"""The ends of a process that a session does not choose: the interpreter's exit, and a fork.

At the exit of an interpreter all calls are waited for that are open, as the standard library's
executors do. A kernel can't wait: what stops it kills it some seconds later.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from typing import Protocol

from ..current import host
from ..errors import QueueClosed

__all__ = ["drop_calls_at_exit", "follow", "forked", "is_exiting", "may_submit", "say"]


class Follower(Protocol):
    """Who wants to know."""

    def is_busy(self) -> bool:
        """Return whether it has open calls, other than those of named jobs."""

    def announce(self) -> None:
        """Say how many they are."""

    def finish(self) -> None:
        """Wait for them."""

    def drop(self) -> int:
        """Cancel them, take no more, and return how many there were."""

    def abandon(self) -> None:
        """The interpreter exits."""

    def forget(self) -> None:
        """This process was forked from the one that the follower belongs to."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()
_drops = _is_exiting = False


def follow(follower: Follower) -> None:
    """Tell `follower` of such an end, if it still lives then."""
    _followers.add(follower)


def drop_calls_at_exit() -> None:
    """Drop open calls when this process ends, instead of waiting for them: it is a kernel."""
    global _drops  # noqa: PLW0603 - a process is a kernel, or none
    _drops = True


def forked(queue: str) -> QueueClosed:
    """Return what is said to who uses the parent's queue after a fork."""
    return QueueClosed(
        f"This TaskQueue ({queue!r}) belongs to the process that this one was forked from."
        " Make another one here."
    )


def say(text: str) -> None:
    """Tell people on standard error, if there still is one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(f"nbstreamq: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for people


def is_exiting() -> bool:
    """Return whether the main thread has ended."""
    return _is_exiting


def may_submit() -> bool:
    """Return whether this thread may submit calls at the exit: callbacks, and threads that end."""
    thread = threading.current_thread()
    return not thread.daemon or thread.name.startswith("nbstreamq-")


def _finish_all() -> None:
    """Wait for all calls that are open; or drop them, where nobody wants to wait."""
    global _is_exiting  # noqa: PLW0603 - as above
    if host() is not None:
        return  # the worker is told to go; what its tasks submitted is run by others
    _is_exiting = True
    if _drops or _ended_by_interrupt():
        _drop_all()
        return
    try:
        for follower in list(_followers):
            follower.announce()
        while busy := [f for f in list(_followers) if f.is_busy()]:
            for follower in busy:
                follower.finish()
    except KeyboardInterrupt:
        _drop_all()


def _drop_all() -> None:
    for follower in list(_followers):
        follower.drop()


def _ended_by_interrupt() -> bool:
    """Return whether Ctrl-C ended the script; at a prompt it only ended a statement."""
    kind = getattr(sys, "last_type", None)
    at_prompt = hasattr(sys, "ps1")
    return not at_prompt and isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _abandon_all() -> None:
    if host() is not None:
        return
    _finish_all()  # threads may have submitted more while the interpreter waited for them
    for follower in list(_followers):
        follower.abandon()


def _forget_all() -> None:
    for follower in list(_followers):
        follower.forget()


# Twice: before all functions of `atexit`, which may take away what the calls need, as it is with
# the standard library's executors; and when the interpreter has waited for the threads.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
atexit.register(_abandon_all)
os.register_at_fork(after_in_child=_forget_all)
