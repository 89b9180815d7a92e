"""Workers on this machine: one supervisor for each kernel and queue, which starts it.

::

    LocalWorkers ──socket──> door of the supervisor ──fork──> workers

Workers have the folder, interpreter, `sys.path` and environment of their kernel, as these are when
the supervisor starts. Each session of the kernel has a connection: while one is open the supervisor
lives; when the last one ends, however it ends, it stops its workers and exits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ServerError
from ..home import Home
from ..secret import Address, Secret
from ..settings import Settings, environment_without_secrets, hand_over, make_private
from .python import python_command

__all__ = ["LocalWorkers"]

#: Seconds in which a supervisor must open its door.
START_TIMEOUT = 20.0
#: Seconds that a supervisor may take to stop its workers.
STOP_TIMEOUT = 10.0
#: Restarts of a supervisor that dies, within a minute: more means that it can't live here.
MAX_RESTARTS = 5
#: Seconds for which the log of a supervisor that is gone is kept.
LOG_LIFETIME = 7 * 86_400.0


class LocalWorkers:
    """The local workers of a queue that this kernel has started.

    Parameters
    ----------
    url, queue, secret
        For the workers' connections.
    home
        Of this kernel.
    session
        Id of the client: what it leaves undone is dropped when it is gone.
    settings
        Where the sockets are.
    """

    def __init__(
        self,
        url: Address | str,
        queue: str,
        secret: Secret | str,
        *,
        home: Home,
        session: str,
        settings: Settings,
    ) -> None:
        self._url = url = Address(url)
        self._queue = queue
        self._secret = secret = Secret(secret)
        self._home = home
        self._session = session
        make_private(settings.runtime_dir)
        self._store = settings.store
        key = hashlib.sha256(
            json.dumps(
                [
                    url.reveal(),
                    queue,
                    secret.reveal(),
                    home.calls,
                    self._store and self._store.reveal(),
                ]
            ).encode()
        )
        self._stem = settings.runtime_dir / f"workers-{key.hexdigest()[:16]}"
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._restarts: list[float] = []
        self._closing = False
        self.n_workers = 0

    @property
    def log(self) -> Path:
        """Where the supervisor writes what went wrong."""
        return self._stem.with_suffix(".log")

    def scale(self, n_workers: int) -> None:
        """See to it that there are `n_workers` local workers.

        Raises
        ------
        ServerError
            The supervisor did not start; the message quotes its log.
        """
        with self._lock:
            self.n_workers = n_workers
            if self._connection is None:
                self._open()
            answer = self._ask({"session": self._session, "scale": n_workers})
        if note := answer.get("note"):
            warnings.warn(f"nbstreamq: {note}", stacklevel=2)

    def close(self, *, wait: bool) -> None:
        """Leave; the last to leave stops the workers.

        Parameters
        ----------
        wait
            Return when they are gone, or others still use them.
        """
        with self._lock:
            self._closing = True
            connection, self._connection = self._connection, None
            if connection is None:
                return
            stopping = False
            with contextlib.suppress(OSError, ValueError):
                stopping = _converse(connection, {"leave": True})["others"] == 0
            connection.close()
            if wait and stopping and self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT)

    def forget(self) -> None:
        """Drop the connection without a word: it belongs to the process this was forked from."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._process, self._closing = None, None, True

    # -- the supervisor ------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask, once more if the supervisor has gone meanwhile."""
        try:
            return _converse(self._connected(), request)
        except (OSError, ValueError):
            self._open()
            return _converse(self._connected(), request)

    def _connected(self) -> socket.socket:
        if self._connection is None:
            raise ConnectionError("no connection to the supervisor")
        return self._connection

    def _open(self) -> None:
        """Connect to the supervisor; start it if there is none."""
        connection = self._connect()
        if connection is None:
            with self._locked():
                connection = self._connect()  # somebody else may have started it
                if connection is None:
                    self._tidy()
                    self._spawn()
                    connection = self._await_door()
        if self._connection is not None:  # to one that has died
            self._connection.close()
        self._connection = connection

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from starting a supervisor."""
        with (self._stem.parent / "workers.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Remove what supervisors that are gone left: their sockets, and empty or old logs."""
        for door in self._stem.parent.glob("workers-*.sock"):
            if not _is_open(door):
                door.unlink(missing_ok=True)
        for log in self._stem.parent.glob("workers-*.log"):
            about = log.stat()
            is_old = time.time() > about.st_mtime + LOG_LIFETIME
            if (is_old or not about.st_size) and not log.with_suffix(".sock").exists():
                log.unlink()

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(os.fspath(self._stem.with_suffix(".sock")))
            _converse(connection, {"session": self._session})
        except (OSError, ValueError):
            connection.close()
            return None
        return connection

    def _spawn(self) -> None:
        command = python_command("nbstreamq", "worker", "--queue", self._queue)
        command += ["-n", str(self.n_workers), "--door", os.fspath(self._stem.with_suffix(".sock"))]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=environment_without_secrets(),
                cwd=self._home.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in this terminal is not for it
            )
        hand_over(self._process.stdin, url=self._url, secret=self._secret, store=self._store)
        # It may end long after we have left it to others: somebody must wait for it, or it stays
        # as a zombie.
        threading.Thread(
            target=self._process.wait, name=f"nbstreamq-supervisor-{self._queue}", daemon=True
        ).start()

    def _await_door(self) -> socket.socket:
        process, deadline = self._process, time.monotonic() + START_TIMEOUT
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            connection = self._connect()
            if connection is not None:
                return connection
            time.sleep(0.005)
        log = self.log.read_text(errors="replace")[-2000:].strip()
        raise ServerError(
            f"The local workers' supervisor did not start. Its log, {self.log}:\n{log}"
        )

    def revive(self) -> bool:
        """Start the supervisor again, with as many workers, if it has died; return whether."""
        if self._closing or not self.n_workers or self._alive():
            return False
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if t > now - 60] + [now]
        if len(self._restarts) > MAX_RESTARTS:
            return False
        self.scale(self.n_workers)
        return True

    def _alive(self) -> bool:
        """Return whether the connection stands; it carries nothing but answers."""
        with self._lock:
            if self._connection is None:
                return False
            # Its timeout would be waited for even with MSG_DONTWAIT.
            self._connection.setblocking(False)
            try:
                return bool(self._connection.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                return True
            except OSError:
                return False


def _is_open(door: Path) -> bool:
    """Return whether a supervisor listens at `door`."""
    with socket.socket(socket.AF_UNIX) as visitor:
        try:
            visitor.connect(os.fspath(door))
        except ConnectionRefusedError:
            return False
        except OSError:  # it is busy
            return True
    return True


def _converse(connection: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    """Send a line and return the answer; ValueError or OSError if the other side is gone."""
    connection.settimeout(STOP_TIMEOUT)
    connection.sendall(json.dumps(request).encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("the supervisor closed the connection")
        answer += data
    reply: dict[str, Any] = json.loads(answer)
    return reply
