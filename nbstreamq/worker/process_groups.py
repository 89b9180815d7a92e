"""Which processes the tasks of a worker have started, and left behind.

Each worker leads a session, and what its tasks start belongs to that, also when the worker has
died. Who starts a process with ``start_new_session=True`` takes it out on purpose.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

#: Seconds by which the clock of processes is coarse.
_COARSE = 0.02
#: Seconds between a guard's request to end and its kill, and between its looks.
_GRACE, _LOOK = 1.0, 0.05


def members(leaders: Collection[int]) -> dict[int, list[int]]:
    """Return the living processes of the sessions whose leaders have died.

    Returns
    -------
    dict
        Leader -> process ids; without those that have none. Where the system does not tell, its
        process group stands for them: ``[-leader]``, as `os.kill` takes it.
    """
    if sys.platform != "linux":
        return {leader: [-leader] for leader in leaders if _is_group(leader)}
    found: dict[int, list[int]] = {}
    for process, session, _ in _processes():
        if session in leaders:
            found.setdefault(session, []).append(process)
    # A number that has a process again is another's.
    return {leader: pids for leader, pids in found.items() if leader not in pids}


def has_started(seconds: float) -> bool:
    """Return whether processes run that this one, or its children, started so many seconds ago.

    Where the system does not tell since when they run, whether it has any children.
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
    """Yield number, session and begin, in seconds since the machine's, of all that are alive."""
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
            # Behind the name, which may hold anything but a closing bracket after its own.
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
    """A process that ends what tasks have started when their supervisor is killed.

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
        """Forget a session that the supervisor has seen the end of."""
        self._tell(f"-{leader}\n")

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # somebody has killed it
            os.write(self._pipe, line.encode())

    def forget(self) -> None:
        """Leave it to the supervisor, in a worker that was forked from that."""
        os.close(self._pipe)

    def end(self) -> None:
        """Have it end, when there are no workers any more."""
        os.close(self._pipe)
        with suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _guard(pipe: int) -> None:
    os.setsid()  # who kills the supervisor's process group does not mean this one
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
    """End what is left in sessions whose leaders die now: it is asked to, and then killed."""
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
    """Return which of the leaders are alive; zombies wait for nothing but their new parent."""
    if sys.platform == "linux":
        return leaders & {process for process, _, _ in _processes()}
    return {leader for leader in leaders if _is_group(leader)}
