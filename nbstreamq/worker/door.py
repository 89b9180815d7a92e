"""The supervisor's local socket: kernels on this machine come in here, and are seen to leave.

Line-wise JSON. A kernel says ``{"session": id}`` once, ``{"scale": n}`` when it wants n workers,
and ``{"leave": true}`` before it goes; each is answered by the number of other kernels here, and by
a note for the user, such as that there is no room for so many workers. Its connection is its life:
when that ends without a word, the kernel is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Door", "User"]


@dataclass
class User:
    """A kernel at the door."""

    connection: socket.socket
    session: str = ""
    unread: bytes = b""


class Door:
    """Listens on a unix socket.

    Parameters
    ----------
    path
        Of the socket; an old one is replaced: who starts supervisors holds a lock meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users: list[User] = []
        #: Whether anybody ever came.
        self.visited = False
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)

    def sockets(self) -> list[socket.socket]:
        """Return what to wait for."""
        return [self._listener, *(user.connection for user in self.users)]

    def serve(self, ready: Collection[int], scale: Callable[[int], str]) -> list[str]:
        """Serve the sockets that can be read; return the sessions of those who left without a word.

        Parameters
        ----------
        ready
            Descriptors of those that can be read.
        scale
            Called with the number of workers that a user asks for; returns what to say to that.
        """
        if self._listener.fileno() in ready:
            self._accept()
        left = [
            u for u in self.users if u.connection.fileno() in ready and not self._read(u, scale)
        ]
        for user in left:
            self.users.remove(user)
            user.connection.close()
        return [user.session for user in left if user.session]

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            self.users.append(User(connection))
            self.visited = True

    def _read(self, user: User, scale: Callable[[int], str]) -> bool:
        """Answer what the user asks; return whether it is still there."""
        try:
            data = user.connection.recv(65536)
            if not data:
                return False
            *lines, user.unread = (user.unread + data).split(b"\n")
            for line in lines:
                request = _request(line)
                user.session = request.get("session", user.session)
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
        for open_socket in self.sockets():
            open_socket.close()
        self.users = []


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
