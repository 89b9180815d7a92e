"""The supervisor's local socket: kernels on this machine connect to it, and their end is noticed.

`ControlSocket` is the supervisor's end, and `Connection` a kernel's. They speak JSON, a line for
each message. A kernel sends ``{"session": id}`` once, ``{"scale": n}`` to have n workers, and
``{"leave": true}`` before it leaves. Each answer has the number of other kernels here, and a note
for the user, for example that there is no room for so many workers. A lost connection does not end
a session: that ends with its process.
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

from .lifeline import Lifeline

#: Seconds in which a supervisor must answer.
ANSWER_TIMEOUT = 10.0
#: Bytes of a C int.
INT = 4
#: Of <sys/un.h> on macOS.
SOL_LOCAL, LOCAL_PEERPID = 0, 2
#: No process has this id.
NOBODY = 2**30


class Connection:
    """A connection to a supervisor's control socket. Requests and answers are lines, in order."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_TIMEOUT)
        self._unread = self._answer = b""
        #: How many answers have not come yet; some may be late.
        self._n_owed = 0
        try:
            self._socket.connect(os.fspath(path))
        except BaseException:
            self._socket.close()
            raise

    @property
    def peer(self) -> int:
        """The process that it leads to; 0 if the system does not tell."""
        return _peer(self._socket)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises
        ------
        TimeoutError
            It has not come in time; it comes later if the supervisor lives.
        OSError, ValueError
            The supervisor is gone.
        """
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        self._n_owed += 1
        while self._n_owed:
            self._receive()
        answer: dict[str, Any] = json.loads(self._answer)
        return answer

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the supervisor closed the connection")
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._n_owed -= len(lines)
        if lines:
            self._answer = lines[-1]

    def has_caught_up(self) -> bool:
        """Return whether the supervisor lives, and all late answers have come."""
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
            while poll.poll(0):
                self._receive()
        except (OSError, ValueError):  # it has ended, or was closed
            return False
        return not self._n_owed

    def wait_for_end(self) -> None:
        """Return when the supervisor is gone, or `end` was called."""
        if self._socket.fileno() < 0:
            return
        poll = select.poll()
        poll.register(self._socket, 0)  # errors and the end are always reported
        while not poll.poll():
            pass

    def end(self) -> None:
        """End it; the thread in `wait_for_end` closes it."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def is_open(path: Path) -> bool:
    """Return whether a supervisor listens at a socket."""
    with socket.socket(socket.AF_UNIX) as visitor:
        try:
            visitor.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # it is busy
            return True
    return True


@dataclass
class LocalClient:
    """A kernel's session that is connected."""

    connection: socket.socket
    process: Process
    session: str = ""
    unread: bytes = b""


class Process:
    """The process at the other end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._pid, self._file = _peer(connection), -1
        if self._pid and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # It is dead, or the system forbids it.
                self._file = os.pidfd_open(self._pid)

    def fileno(self) -> int:
        """Return a descriptor that can be read when the process has ended; negative: none."""
        return self._file

    def lives(self) -> bool:
        """Return whether it lives; False where the system does not tell."""
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


HasFile = socket.socket | Process | Lifeline


#: Takes a number of workers, and when they are replaced; returns a note for the user.
Scale = Callable[[int, tuple[int, int] | None], str]


class ControlSocket:
    """Accepts kernels at a unix socket, and notices when they have died.

    Parameters
    ----------
    path
        Of the socket. It replaces an old one: a lock keeps others from starting supervisors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clients: list[LocalClient] = []
        #: Sessions whose connection was lost -> their process, while it lives.
        self._lost: dict[str, Process] = {}
        #: Whether a kernel has ever connected.
        self.visited = False
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)

    def sockets(self) -> list[HasFile]:
        """Return the sockets, and the ends of processes, to wait for."""
        ends = [process for process in self._lost.values() if process.fileno() >= 0]
        return [*self._sockets(), *ends]

    def _sockets(self) -> list[socket.socket]:
        return [self._listener, *(client.connection for client in self.clients)]

    def serve(self, ready: Collection[int], scale: Scale) -> list[str]:
        """Serve the sockets that can be read; return the sessions whose process has died.

        Parameters
        ----------
        ready
            Descriptors of those that can be read.
        scale
            Called with the number of workers that a client asks for, and after how many calls and
            above how many bytes they are replaced; returns the note for the user.
        """
        if self._listener.fileno() in ready:
            self._accept()
        for client in [c for c in self.clients if c.connection.fileno() in ready]:
            if not self._read(client, scale):
                self._remove(client)
        return self._dead()

    @property
    def in_use(self) -> bool:
        """Whether there are sessions, connected or not."""
        return bool(self.clients or self._lost)

    def _remove(self, client: LocalClient) -> None:
        self.clients.remove(client)
        client.connection.close()
        if client.session and client.session not in {c.session for c in self.clients}:
            self._lost[client.session] = client.process
        else:
            client.process.close()

    def _dead(self) -> list[str]:
        """Return each session whose process has ended, once."""
        dead = [session for session, process in self._lost.items() if not process.lives()]
        for session in dead:
            self._lost.pop(session).close()
        return dead

    def _identify(self, client: LocalClient, session: str) -> None:
        """Note the session of a client; one whose connection was lost is back."""
        client.session = session
        if lost := self._lost.pop(session, None):
            lost.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)  # A client that does not read must not block others.
            self.clients.append(LocalClient(connection, Process(connection)))
            self.visited = True

    def _read(self, client: LocalClient, scale: Scale) -> bool:
        """Answer the requests of a client; return whether it is still connected."""
        try:
            data = client.connection.recv(65536)
            if not data:
                return False
            *lines, client.unread = (client.unread + data).split(b"\n")
            for line in lines:
                request = _request(line)
                if session := request.get("session"):
                    self._identify(client, session)
                note = ""
                if "scale" in request:
                    wear = request.get("wear")
                    note = scale(request["scale"], wear and (wear[0], wear[1]))
                if "leave" in request:
                    client.session = ""
                answer = {"others": len(self.clients) - 1, "note": note}
                client.connection.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Close the socket, and remove its file."""
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Close the sockets in a forked process: the supervisor goes on with them."""
        for open_socket in self._sockets():
            open_socket.close()
        for process in (*(client.process for client in self.clients), *self._lost.values()):
            process.close()
        self.clients, self._lost = [], {}


def _peer(connection: socket.socket) -> int:
    """Return the process id at the other end; 0 if the system does not tell."""
    if hasattr(socket, "SO_PEERCRED"):
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * INT)
        return int.from_bytes(data[:INT], sys.byteorder)
    if sys.platform == "darwin":
        data = connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID, INT)
        return int.from_bytes(data, sys.byteorder)
    return 0


def _is_wear(value: Any) -> bool:
    """Return whether a value is a number of calls and one of bytes."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and 0 <= n < 2**63 for n in value)
    )


def _request(line: bytes) -> dict[str, Any]:
    """Return the request in a line; ValueError if there is none."""
    request = json.loads(line)
    match request:
        case {"session": session} if not isinstance(session, str):
            pass
        case {"scale": n_workers} if not isinstance(n_workers, int) or n_workers < 0:
            pass
        case {"wear": wear} if not _is_wear(wear):
            pass
        case dict():
            return request
    raise ValueError(f"not a request: {line!r}")
