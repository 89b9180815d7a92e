"""The watchdog: parent of the embedded server, which it stops when no client is left.

::

    ensure_server ──starts──> watchdog ──forks──> valkey-server
                                 └──INFO, every few seconds──┘

It runs as ``python -m nbstreamq.launch.server_watchdog SOCKET IDLE COMMAND...``. Watchdog and
server inherit the locks of `launch.server` as file descriptors. The operating system frees the
locks when both processes are gone, however they ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from . import CLOSING, disk_limit

if TYPE_CHECKING:
    from ..wire.connection import Wire


#: Most seconds between two looks at the server's clients. Longer costs less while nothing happens;
#: shorter stops an idle server more precisely.
LONGEST_INTERVAL = 5.0
#: Least seconds between two looks.
SHORTEST_INTERVAL = 0.05
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Start the server that the command line names, and watch it until it ends."""
    socket_path, idle, *command = sys.argv[1:]
    # No signal may arrive before the fork listens. The fork can't inherit the wakeup descriptor:
    # since Python 3.12 asyncio, which other modules import, takes it away from forks.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # The starter waits for this process. So init adopts the fork, and it leaves no zombie.
    if os.fork():
        os._exit(0)
    signals = _listen_for_signals()
    server = _start(command)
    usage = Usage(socket_path, disk_limit.setting(command, "requirepass "))
    limit = int(disk_limit.setting(command, disk_limit.LINE) or 0)
    folder = command[command.index("--dir") + 1]
    disk = disk_limit.DiskLimit(limit, folder, usage.wire) if limit else None
    status = os.waitstatus_to_exitcode(
        watch(server, usage=usage, idle=float(idle), signals=signals, disk=disk)
    )
    if status:
        how = f"was killed by signal {-status}" if status < 0 else f"exited with code {status}"
        sys.stderr.write(f"The server {how}.\n")


def watch(
    server: int,
    *,
    usage: Usage,
    idle: float,
    signals: int,
    disk: disk_limit.DiskLimit | None = None,
) -> int:
    """Stop the server when it is idle, or on SIGTERM; return its wait status when it has ended.

    Parameters
    ----------
    server
        Process id; a child of this process.
    usage
        Who uses it.
    idle
        Seconds without any other client after which the server is told to exit; infinite: never.
    signals
        File descriptor on which each signal of this process arrives as one byte.
    disk
        The limit of its files; None: there is none.
    """
    longest = disk_limit.LOOK if disk else LONGEST_INTERVAL
    interval = max(SHORTEST_INTERVAL, min(idle / 4, longest))
    stopping = False
    while True:
        arrived = _wait(signals, interval)
        pid, status = os.waitpid(server, os.WNOHANG)
        if pid:
            return status
        if disk:
            disk.keep()
        stopping = stopping or signal.SIGTERM in arrived
        stopping = stopping or (idle < math.inf and usage.idle() >= idle and usage.shut())
        if stopping:
            # Repeated in each round, because a server that writes its first AOF refuses to exit.
            os.kill(server, signal.SIGTERM)


class Usage:
    """Finds out when another process last used the server.

    Parameters
    ----------
    socket_path
        Where the server listens.
    password
        What it wants first; empty: nothing.
    """

    def __init__(self, socket_path: str, password: str = "") -> None:
        self._socket_path, self._password = socket_path, password
        self._folder = socket_path.rpartition("/")[0]
        self._last_used = time.monotonic()
        self._n_connections = -1
        self._wire: Wire | None = None

    def idle(self) -> float:
        """Return for how many seconds no other process was connected."""
        if self._in_use():
            self._last_used = time.monotonic()
        return time.monotonic() - self._last_used

    def wire(self) -> Wire:
        """Return the watchdog's only connection to the server."""
        if self._wire is None:
            self._wire = _open(self._socket_path, self._password)
        return self._wire

    def _in_use(self) -> bool:
        self._touch()
        counts = _count(self.wire())
        if counts is None:
            # A server that is loading or runs a script is in use; one that never listened is not.
            return os.path.exists(self._socket_path)  # noqa: PTH110 - pathlib is slow to import
        # The count of all connections shows clients that came and went between two looks.
        n_connected, n_made = counts
        before, self._n_connections = self._n_connections, n_made
        return n_connected > 1 or n_made != before

    def shut(self) -> bool:
        """Accept no new clients; return False if a client came at the last moment.

        Clients that come later find no server, and start another one when this one is gone. Without
        this, a server that was told to exit would still answer for 100 ms.
        """
        aside = f"{self._folder}/{CLOSING}"
        try:
            os.rename(self._socket_path, aside)  # noqa: PTH104 - pathlib is slow to import
        except OSError:  # it never listened, or clients can't reach its socket
            return True
        # The server accepts clients in the order in which they came: earlier ones are counted.
        wire = _open(aside, self._password)
        counts = _count(wire)
        wire.close()
        if counts is not None and counts[1] == self._n_connections + 1:
            return True
        with contextlib.suppress(OSError):
            os.rename(aside, self._socket_path)  # noqa: PTH104
        return False

    def _touch(self) -> None:
        """Touch the socket and the lock, so that a cleaner of /tmp does not delete them by age."""
        for path in (self._socket_path, f"{self._folder}/lock"):
            try:
                os.utime(path)
            except OSError:
                continue


def _open(socket_path: str, password: str) -> Wire:
    # Imported at the first look: earlier, the imports would delay the server's start.
    from urllib.parse import quote

    from ..wire.addresses import open_client
    from ..wire.connection import Wire

    login = f":{quote(password, safe='')}@" if password else ""
    return Wire(open_client(f"unix://{login}{quote(socket_path)}"), "", ())


def _count(wire: Wire) -> tuple[int, int] | None:
    """Return how many clients are connected, and how many ever were; None without an answer."""
    from ..errors import ServerError

    try:
        clients, stats = wire.call(("INFO", "clients"), ("INFO", "stats"))
    except ServerError:
        return None
    return _read(clients, "connected_clients"), _read(stats, "total_connections_received")


def _read(info: bytes, field: str) -> int:
    return int(info.partition(f"\n{field}:".encode())[2].partition(b"\r")[0])


def _listen_for_signals() -> int:
    """Return a descriptor that reports SIGTERM and SIGCHLD; signals of a terminal are ignored."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # All signals were blocked until now; those that arrived meanwhile are reported at once.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read


def _wait(signals: int, seconds: float) -> bytes:
    poll = select.poll()  # unlike select(), it accepts descriptors above 1024
    poll.register(signals, select.POLLIN)
    return os.read(signals, 64) if poll.poll(seconds * 1000) else b""


def _start(command: list[str]) -> int:
    """Return the process id of a new server, which gets SIGTERM when this process dies."""
    watchdog = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        _die_with_parent(watchdog)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted
    except BaseException as error:  # noqa: BLE001 - in any case, never go on as a second watchdog
        os.write(2, f"{command[0]} can't be executed: {error}\n".encode())
    finally:
        os._exit(127)


def _die_with_parent(parent: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # The parent died before the call above, so no signal will come.
        os._exit(1)


if __name__ == "__main__":
    main()
