"""What becomes of open calls when the interpreter exits, and of sessions in a forked process."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time

from ..worker_context import WorkerContext
from .progress import LongWait, Waits
from .session import PATIENCE, Session, count_calls, say

#: Seconds after which the exit no longer waits for a lost server: time for a warning.
LAST_PATIENCE = 2 * PATIENCE
#: Seconds after which the exit says again what it waits for, and why.
REMINDER = 60.0
#: Seconds between two looks whether a callback is over, or all is sent.
PAUSE = 0.01

_drops = False


def drop_calls_at_exit() -> None:
    """Drop open calls when this process ends, instead of waiting for them: it is a kernel."""
    global _drops  # noqa: PLW0603 - a process is a kernel, or none
    _drops = True


def _finish_all() -> None:
    """Wait for all open calls; drop them in a kernel, or after Ctrl-C."""
    if WorkerContext.current is not None:
        return  # the worker is told to go; what its tasks submitted is run by others
    Session.interpreter_exits = True
    if _drops or _ended_by_interrupt():
        _drop_all()
        return
    try:
        for session in list(Session.all):
            _announce(session)
        while busy := [session for session in list(Session.all) if session.is_busy()]:
            for session in busy:
                _finish(session)
    except KeyboardInterrupt:
        _drop_all()


def _drop_all() -> None:
    for session in list(Session.all):
        session.drop()


def _ended_by_interrupt() -> bool:
    """Return whether Ctrl-C ended the script; at a prompt it only ended a statement."""
    kind = getattr(sys, "last_type", None)
    at_prompt = hasattr(sys, "ps1")
    return not at_prompt and isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _announce(session: Session) -> None:
    """Say that the exit waits, and for how much; daemon threads can submit nothing more."""
    session.begin_exit()
    if n := sum(what.n_open for what in session.unnamed()):
        say(
            f"waiting for {count_calls(n)} of queue {session.queue!r} before Python exits."
            " Ctrl-C drops what is open."
        )


def _finish(session: Session) -> None:
    """Return when there are no open calls; say why, where nothing can run them.

    Those of named jobs run without us, once they are sent. A server that is lost is waited for no
    longer than it takes to say so.
    """
    said = set[str]()
    told = heard = time.monotonic()
    while session.is_busy():
        if session.trouble is None or not (session.is_sending or session.unnamed()):
            heard = time.monotonic()
        if _await_some(session):
            continue
        if time.monotonic() > heard + LAST_PATIENCE:
            say(f"can't wait any longer: {session.trouble}")
            session.drop()
            return
        if time.monotonic() > told + REMINDER:
            said, told = set(), time.monotonic()
            _announce(session)
        if (reason := _reason(session)) and reason not in said:
            said.add(reason)
            say(reason)


def _await_some(session: Session) -> bool:
    """Wait for the calls of a job, a callback, or the sender; return whether one is done."""
    if not (found := session.unnamed()):
        until = time.monotonic() + PATIENCE
        while (is_busy := session.is_busy()) and time.monotonic() < until:
            time.sleep(PAUSE)
        return not is_busy
    first, began = found[0], time.monotonic()
    waits = Waits.begin(session, first)
    long_wait = LongWait(waits, session, first, began, lambda: None, math.inf)
    try:
        while (left := began + PATIENCE - time.monotonic()) > 0:
            if first.wait(lambda: not first.n_open, min(long_wait.go_on(), left)):
                return True
        return False
    finally:
        waits.add(first, time.monotonic() - began)
        long_wait.end()


def _reason(session: Session) -> str:
    """Return why nothing may run; empty if something may."""
    open_now = session.unnamed()
    for what in open_now:
        if reason := session.survey(what)[1]:
            return f"waiting for {what.name}: {reason}"
    if session.is_delivering and not open_now:
        return f"waiting for a callback of queue {session.queue!r} to return. Ctrl-C ends the wait."
    return ""


def _abandon_all() -> None:
    if WorkerContext.current is not None:
        return
    _finish_all()  # threads may have submitted more while the interpreter waited for them
    for session in list(Session.all):
        session.abandon()


def _forget_all() -> None:
    for session in list(Session.all):
        session.forget()


def end_sessions_with_process() -> None:
    """Finish open calls before the interpreter exits, and detach sessions after a fork."""
    # Twice: before all functions of `atexit`, which may take away what the calls need, as it is
    # with the standard library's executors; and when the interpreter has waited for the threads.
    threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
    atexit.register(_abandon_all)
    os.register_at_fork(after_in_child=_forget_all)
