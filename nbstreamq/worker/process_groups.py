"""Find and end processes that tasks have started and left behind.

Each worker leads a session (in the sense of POSIX), and processes that its tasks start belong to it
even after the worker has died. One that is started with ``start_new_session=True`` is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

#: Resolution of the start times of processes, in seconds.
_COARSE = 0.02
#: Seconds between a guard's SIGTERM and SIGKILL, and between its looks.
_GRACE, _LOOK = 1.0, 0.05


def members(leaders: Collection[int]) -> dict[int, list[int]]:
    """Return the living processes of the sessions whose leaders have died.

    Returns
    -------
    dict
        Leader -> process ids, if there are any. Where the system does not tell, the process group
        of the leader instead: ``[-leader]``, as `os.kill` takes it.
    """
    if sys.platform != "linux":
        return {leader: [-leader] for leader in leaders if _is_group(leader)}
    found: dict[int, list[int]] = {}
    for process, session, _ in _processes():
        if session in leaders:
            found.setdefault(session, []).append(process)
    # If there is a process with the id of a leader again, it is a new one.
    return {leader: pids for leader, pids in found.items() if leader not in pids}


def has_started(seconds: float) -> bool:
    """Return whether a process runs that a task of this one started in the last `seconds`.

    Where the system does not tell when it started, return whether there is any child.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    if sys.platform != "linux":
        return True
    me, since = os.getpid(), time.clock_gettime(time.CLOCK_BOOTTIME) - seconds - _COARSE
    return any(
        process != me and session == me and born > since for process, session, born in _processes()
    )


def _processes() -> Iterator[tuple[int, int, float]]:
    """Yield id, session and start time, in seconds since boot, of all living processes."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has just ended.
            stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
            # After the name, which may contain anything, and its closing bracket.
            fields = stat.rpartition(")")[2].split()
            if fields[0] not in "ZX":
                yield int(folder.name), int(fields[3]), int(fields[19]) / ticks


def _is_group(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except OSError:
        return False
    return True


class Guard:
    """A process that ends the processes of tasks when their supervisor is killed.

    The kernel kills the workers then, and nobody else knows of their sessions. The guard hears of
    them by a pipe, whose end tells that the supervisor has gone, however it ended.

    Parameters
    ----------
    forget
        Gives up, in the guard, what is open and belongs to the supervisor.
    """

    def __init__(self, forget: Callable[[], object]) -> None:
        read, self._pipe = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            try:
                signal.set_wakeup_fd(-1)
                os.close(self._pipe)
                forget()
                _guard(read)
            finally:
                os._exit(0)
        os.close(read)

    def add(self, leader: int) -> None:
        """Watch over the session of a new worker."""
        self._tell(f"+{leader}\n")

    def remove(self, leader: int) -> None:
        """Forget a session whose end the supervisor has seen."""
        self._tell(f"-{leader}\n")

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # Somebody has killed it.
            os.write(self._pipe, line.encode())

    def forget(self) -> None:
        """Close the pipe in a forked worker: the guard belongs to the supervisor."""
        os.close(self._pipe)

    def end(self) -> None:
        """End the guard, when there are no workers left."""
        os.close(self._pipe)
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _guard(pipe: int) -> None:
    os.setsid()  # A signal to the supervisor's process group must not reach the guard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    leaders: set[int] = set()
    with os.fdopen(pipe) as lines:
        for line in lines:
            change = leaders.add if line[0] == "+" else leaders.discard
            change(int(line[1:]))
    _end_all(leaders)


def _end_all(leaders: set[int]) -> None:
    """End the rest of sessions whose leaders die now: SIGTERM, and SIGKILL later."""
    begun, asked = time.monotonic(), set[int]()
    while time.monotonic() < begun + 3 * _GRACE:
        living = _living(leaders)  # first: what one leaves that dies now is seen then
        left = {process for found in members(leaders).values() for process in found}
        if not left and not living:
            return
        is_late = time.monotonic() > begun + _GRACE
        for process in left if is_late else left - asked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL if is_late else signal.SIGTERM)
        asked |= left
        time.sleep(_LOOK)


def _living(leaders: set[int]) -> set[int]:
    """Return which leaders are alive; a zombie is not."""
    if sys.platform == "linux":
        return leaders & {process for process, _, _ in _processes()}
    return {leader for leader in leaders if _is_group(leader)}
