"""The ends of a process that a session does not choose: the interpreter's exit, and a fork."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

from ..errors import QueueClosed

__all__ = ["follow", "forked"]


class Follower(Protocol):
    """Who wants to know."""

    def abandon(self) -> None:
        """The interpreter exits."""

    def forget(self) -> None:
        """This process was forked from the one that the follower belongs to."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def follow(follower: Follower) -> None:
    """Tell `follower` of such an end, if it still lives then."""
    _followers.add(follower)


def forked(queue: str) -> QueueClosed:
    """Return what is said to who uses the parent's queue after a fork."""
    return QueueClosed(
        f"This TaskQueue ({queue!r}) belongs to the process that this one was forked from."
        " Make another one here."
    )


@atexit.register
def _abandon_all() -> None:
    for follower in list(_followers):
        follower.abandon()


def _forget_all() -> None:
    for follower in list(_followers):
        follower.forget()


os.register_at_fork(after_in_child=_forget_all)
