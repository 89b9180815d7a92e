"""The supervisor's local socket: kernels on this machine come in here, and are seen to leave.

Line-wise JSON. A kernel says ``{"session": id}`` once, ``{"scale": n}`` when it wants n workers,
and ``{"leave": true}`` before it goes; each is answered by the number of other kernels here, and by
a note for the user, such as that there is no room for so many workers. A connection may be lost:
the session is dead when its process is, and waited for until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Bytes of a C int.
INT = 4
#: Of <sys/un.h> on macOS.
SOL_LOCAL, LOCAL_PEERPID = 0, 2
#: No process has this id.
NOBODY = 2**30


@dataclass
class LocalClient:
    """A session of a kernel at the door."""

    connection: socket.socket
    process: Process
    session: str = ""
    unread: bytes = b""


class Process:
    """The process at the other end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._pid, self._file = _peer(connection), -1
        if self._pid and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # it is dead, or the system does not allow it
                self._file = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        """Return what can be read when the process has ended; negative if there is no such file."""
        return self._file

    def lives(self) -> bool:
        """Return whether it lives; where that can't be known, a lost connection means that not."""
        if self._file >= 0:
            poll = select.poll()
            poll.register(self._file, select.POLLIN)
            return not poll.poll(0)
        try:
            os.kill(self._pid or NOBODY, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


HasFile = socket.socket | Process


class ControlSocket:
    """Listens on a unix socket.

    Parameters
    ----------
    path
        Of the socket; an old one is replaced: who starts supervisors holds a lock meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users: list[LocalClient] = []
        #: Sessions whose connection was lost -> their process, as long as that lives.
        self._lost: dict[str, Process] = {}
        #: Whether anybody ever came.
        self.visited = False
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)

    def sockets(self) -> list[HasFile]:
        """Return what to wait for."""
        ends = [process for process in self._lost.values() if process.fileno() >= 0]
        return [*self._sockets(), *ends]

    def _sockets(self) -> list[socket.socket]:
        return [self._listener, *(user.connection for user in self.users)]

    def serve(self, ready: Collection[int], scale: Callable[[int], str]) -> list[str]:
        """Serve the sockets that can be read; return the sessions whose process has died.

        Parameters
        ----------
        ready
            Descriptors of those that can be read.
        scale
            Called with the number of workers that a user asks for; returns what to say to that.
        """
        if self._listener.fileno() in ready:
            self._accept()
        for user in [u for u in self.users if u.connection.fileno() in ready]:
            if not self._read(user, scale):
                self._part(user)
        return self._dead()

    @property
    def in_use(self) -> bool:
        """Whether there are sessions, or may be again."""
        return bool(self.users or self._lost)

    def _part(self, user: LocalClient) -> None:
        self.users.remove(user)
        user.connection.close()
        if user.session and user.session not in {u.session for u in self.users}:
            self._lost[user.session] = user.process
        else:
            user.process.close()

    def _dead(self) -> list[str]:
        """Return the sessions whose process has ended, once."""
        dead = [session for session, process in self._lost.items() if not process.lives()]
        for session in dead:
            self._lost.pop(session).close()
        return dead

    def _come(self, user: LocalClient, session: str) -> None:
        """Take note of who a user is; one whose connection was lost is back."""
        user.session = session
        if lost := self._lost.pop(session, None):
            lost.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)  # one that does not read must not hold everybody up
            self.users.append(LocalClient(connection, Process(connection)))
            self.visited = True

    def _read(self, user: LocalClient, scale: Callable[[int], str]) -> bool:
        """Answer what the user asks; return whether it is still there."""
        try:
            data = user.connection.recv(65536)
            if not data:
                return False
            *lines, user.unread = (user.unread + data).split(b"\n")
            for line in lines:
                request = _request(line)
                if session := request.get("session"):
                    self._come(user, session)
                note = scale(request["scale"]) if "scale" in request else ""
                if "leave" in request:
                    user.session = ""
                answer = {"others": len(self.users) - 1, "note": note}
                user.connection.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Let nobody in any more."""
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Give up the sockets, in a forked process: the other one goes on with them."""
        for open_socket in self._sockets():
            open_socket.close()
        for process in (*(user.process for user in self.users), *self._lost.values()):
            process.close()
        self.users, self._lost = [], {}


def _peer(connection: socket.socket) -> int:
    """Return the process id at the other end; 0 if the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * INT)
        return int.from_bytes(data[:INT], sys.byteorder)
    if sys.platform == "darwin":
        data = connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID, INT)
        return int.from_bytes(data, sys.byteorder)
    return 0


def _request(line: bytes) -> dict[str, Any]:
    """Return the request; ValueError where it is none: nonsense must not harm the supervisor."""
    request = json.loads(line)
    match request:
        case {"session": session} if not isinstance(session, str):
            pass
        case {"scale": n_workers} if not isinstance(n_workers, int) or n_workers < 0:
            pass
        case dict():
            return request
    raise ValueError(f"not a request: {line!r}")
