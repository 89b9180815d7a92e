"""Workers on this machine: one supervisor for each kernel and queue, which starts it.

::

    LocalWorkers ──socket──> door of the supervisor ──fork──> workers

Workers have the folder, interpreter, `sys.path` and environment of their kernel, as these are when
the supervisor starts. Each session of the kernel has a connection, and says when it leaves. When
the last one has left, or the kernel is dead, the supervisor stops its workers and exits. When it
dies, a thread of each session notices and starts it again, whatever the session does meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ServerError
from ..home import Home
from ..secret import Address, Secret
from ..settings import Settings, check_sockets, environment_without_secrets, hand_over, make_private
from ..tracebacks import warn
from .python import python_command

logger = logging.getLogger(__name__)

#: Seconds in which a supervisor must open its door.
START_TIMEOUT = 20.0
#: Seconds that a supervisor may take to stop its workers.
STOP_TIMEOUT = 10.0
#: Seconds in which it may die, or fail to start, `MAX_RESTARTS` times: then it is started again
#: when they are over. More burns the machine with what can't live here.
RESTART_SPAN = 60.0
MAX_RESTARTS = 5
#: Seconds after which it is tried again, when it could not be started.
RETRY = 1.0
#: Seconds for which the log of a supervisor that is gone is kept.
LOG_LIFETIME = 7 * 86_400.0

#: Pattern of the names of supervisors' files, without what follows the dot.
_STEM = "workers-" + 16 * "[0-9a-f]"
#: See `LocalWorkers._digest`.
_SALT = os.urandom(16)


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
        make_private(settings.runtime_dir, "NBSTREAMQ_RUNTIME_DIR")
        self._store = settings.store
        self._stem = settings.runtime_dir / f"workers-{self._digest()}"
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._restarts: list[float] = []
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self.n_workers = 0
        self._trouble = ""
        #: Whether the supervisor has died, and will soon be there again.
        self.is_restarting = False

    @property
    def trouble(self) -> str:
        """Why there are none for now; empty: there are, as far as is known."""
        if self._trouble and self._lock.acquire(blocking=False):  # else it is being dealt with
            try:
                if self._connection is not None and self._connection.has_caught_up():
                    self._trouble = ""
            finally:
                self._lock.release()
        return self._trouble

    def _digest(self) -> str:
        """Return what is the same for all queues of this process that share workers.

        It is part of a command line, which all users can read: the salt keeps them from guessing
        the secret.
        """
        store = self._store and self._store.reveal()
        shared = [self._url.reveal(), self._queue, self._secret.reveal(), self._home.calls, store]
        return hashlib.blake2b(json.dumps(shared).encode(), key=_SALT, digest_size=8).hexdigest()

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
            answer = self._ask()
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name=f"nbstreamq-supervisor-{self._queue}", daemon=True
                )
                self._watcher.start()
        if note := answer.get("note"):
            warn(f"nbstreamq: {note}", UserWarning)

    def close(self, *, wait: bool) -> None:
        """Leave; the last to leave stops the workers.

        Parameters
        ----------
        wait
            Return when they are gone, or others still use them.
        """
        self._closing.set()
        with self._lock:
            if self._connection is None:
                return
            stopping = self._leave()
            self._connection.end()
        if wait and stopping and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)

    def _leave(self) -> bool:
        """Tell the supervisor that this session ends; return whether it was the last one."""
        for connection in (self._connection, None):
            # Where the connection was lost the supervisor waits for us, as long as we live.
            found = connection or self._connect()
            if found is None:
                break
            try:
                return bool(found.ask({"leave": True}).get("others") == 0)
            except TimeoutError:  # it reads that when it goes on
                break
            except (OSError, ValueError):
                continue
            finally:
                if found is not self._connection:
                    found.close()
        return False

    def forget(self) -> None:
        """Drop the connection without a word: it belongs to the process this was forked from."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._process, self._lock = None, None, threading.Lock()
        self._closing = threading.Event()
        self._closing.set()

    # -- the supervisor ------------------------------------------------------------------------

    def _ask(self) -> dict[str, Any]:
        """Ask for the workers; start a supervisor if there is none."""
        request = {"session": self._session, "scale": self.n_workers}
        if self._connection is not None:
            with contextlib.suppress(ConnectionError, ValueError):
                return self._put(self._connection, request)
        return self._put(self._open(), request)

    def _put(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = connection.ask(request)
        except TimeoutError:
            # It is not dead, and does it when it goes on: another one would make it worse.
            self._trouble = (
                f"the supervisor of the local workers{connection.peer} has not answered for"
                f" {STOP_TIMEOUT:g} s: it is stopped, or the machine is too busy. It goes on with"
                " what it was told as soon as it can."
            )
            return {}
        self._trouble = ""
        return answer

    def _open(self) -> Connection:
        """Connect to the supervisor; start it if there is none."""
        check_sockets(self._stem.parent)
        connection = self._connect()
        if connection is None:
            with self._locked():
                connection = self._connect()  # somebody else may have started it
                if connection is None:
                    self._tidy()
                    self._spawn()
                    connection = self._await_door()
        if self._connection is not None:  # to one that has died; the watcher closes it
            self._connection.end()
        self._connection = connection
        return connection

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from starting a supervisor."""
        with (self._stem.parent / "workers.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Remove what supervisors that are gone left: their sockets, and empty or old logs."""
        folder = self._stem.parent  # which may hold something else
        for door in folder.glob(f"{_STEM}.sock"):
            if door.is_socket() and not _is_open(door):
                door.unlink(missing_ok=True)
        for log in folder.glob(f"{_STEM}.log"):
            about = log.stat()
            is_old = time.time() > about.st_mtime + LOG_LIFETIME
            if (is_old or not about.st_size) and not log.with_suffix(".sock").exists():
                log.unlink()

    def _connect(self) -> Connection | None:
        """Return a connection to the supervisor; None if there is none."""
        try:
            connection = Connection(self._stem.with_suffix(".sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except BlockingIOError as error:
            raise ServerError(
                "The supervisor of the local workers lets nobody in: it is stopped, or too busy,"
                " and many wait at its door already."
            ) from error
        try:
            connection.ask({"session": self._session})
        except TimeoutError:
            return connection  # it will read that, and what follows, when it goes on
        except (OSError, ValueError):
            connection.close()
            return None
        return connection

    def _spawn(self) -> None:
        command = python_command("nbstreamq", "worker", "--queue", self._queue)
        command += ["-n", str(self.n_workers), "--door", os.fspath(self._stem.with_suffix(".sock"))]
        command += ["--homes", *self._home.tags]
        if self._process is not None:  # else it stays as a zombie, which seems to live
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
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

    def _await_door(self) -> Connection:
        process, deadline = self._process, time.monotonic() + START_TIMEOUT
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            connection = self._connect()
            if connection is not None:
                return connection
            time.sleep(0.005)
        if process is not None:  # nobody else would end one that takes longer
            process.kill()
            process.wait()
        log = self.log.read_text(errors="replace")[-2000:].strip()
        raise ServerError(
            f"The local workers' supervisor did not start. Its log, {self.log}:\n{log}"
        )

    # -- its death -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start the supervisor again whenever it dies, until we leave."""
        while (connection := self._connection) is not None:
            try:
                connection.wait_for_end()
                while self._is_lost(connection):
                    self._restart(connection)
                connection.close()
            except Exception:  # else nobody would ever start it again
                logger.exception("watching the local workers goes on after a fault")
                self._closing.wait(RETRY)
                continue
            if self._connection is connection:
                break
        if self._process is not None:  # it may end long after we have left it to others
            self._process.wait()

    def _is_lost(self, connection: Connection) -> bool:
        """Return whether there is no other one in the place of a connection that has ended."""
        return self._connection is connection and not self._closing.is_set()

    def _restart(self, connection: Connection) -> None:
        self._brake(connection)
        self.is_restarting = True
        try:
            with self._lock:
                if self._is_lost(connection):
                    self._reopen()
        except Exception as error:  # noqa: BLE001 - else nobody would ever try again
            self._trouble = f"the local workers can't be started again, which is tried on: {error}"
            self._closing.wait(RETRY)
        finally:
            self.is_restarting = False

    def _reopen(self) -> None:
        connection = self._open()
        self._trouble = ""
        if self.n_workers:  # how many others of the kernel want is not known here
            self._put(connection, {"session": self._session, "scale": self.n_workers})

    def _brake(self, connection: Connection) -> None:
        """Wait, if it has died too often, until the first of these deaths is long ago."""
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if t > now - RESTART_SPAN]
        if len(self._restarts) >= MAX_RESTARTS:
            until = self._restarts.pop(0) + RESTART_SPAN
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + until - now))
            self._trouble = (
                f"the supervisor of the local workers has died {MAX_RESTARTS + 1} times within"
                f" {RESTART_SPAN:g} s. It is started again at {at}; q.run(n) starts it at once."
                f" Its log: {self.log}"
            )
            while self._is_lost(connection) and (left := until - time.monotonic()) > 0:
                self._closing.wait(min(left, RETRY))
        self._restarts.append(time.monotonic())


class Connection:
    """A connection to a supervisor's door, which answers each request by a line, in order."""

    def __init__(self, door: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(STOP_TIMEOUT)
        self._unread = self._answer = b""
        #: Answers that have not come yet: some may be late.
        self._n_owed = 0
        try:
            self._socket.connect(os.fspath(door))
        except BaseException:
            self._socket.close()
            raise

    @property
    def peer(self) -> str:
        """Which process it leads to, for people."""
        if not hasattr(socket, "SO_PEERCRED"):
            return ""
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return f" (process {int.from_bytes(data[:4], sys.byteorder)})"

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises
        ------
        TimeoutError
            It has not come in time; it will, if the supervisor lives.
        OSError, ValueError
            The other side is gone.
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
        """Return whether the other side lives, and all late answers have come."""
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
            while poll.poll(0):
                self._receive()
        except (OSError, ValueError):  # it has ended, or was closed
            return False
        return not self._n_owed

    def wait_for_end(self) -> None:
        """Return when the other side is gone, or `end` was called."""
        if self._socket.fileno() < 0:
            return
        poll = select.poll()
        poll.register(self._socket, 0)  # what is always told: errors, and its end
        while not poll.poll():
            pass

    def end(self) -> None:
        """End it; who waits for the end closes it."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


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
