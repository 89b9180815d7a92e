"""Workers on this machine: one supervisor for each kernel and queue, which starts it.

::

    LocalWorkers ──control socket──> supervisor ──fork──> workers

Workers have the folder, interpreter, `sys.path` and environment that their kernel has when the
supervisor starts. Each session of the kernel has a connection, and says when it leaves. When the
last session has left, or the kernel is dead, the supervisor stops its workers and exits. When the
supervisor dies, a thread of a session starts it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ServerError
from ..home import Home
from ..locks import Event
from ..secret import Address, Secret
from ..settings import Settings, check_sockets, environment_without_secrets, hand_over, make_private
from ..tracebacks import warn
from .control_socket import ANSWER_TIMEOUT, Connection, is_open
from .python import python_command

logger = logging.getLogger(__name__)

#: Seconds in which a new supervisor must open its control socket.
START_TIMEOUT = 20.0
#: Seconds in which new workers join, on a machine that is busy. Longer tells later that none come.
STARTING = 5.0
#: Seconds in which a supervisor must stop its workers.
STOP_TIMEOUT = 10.0
#: Seconds in which a supervisor may die, or fail to start, `MAX_RESTARTS` times. Then it is started
#: again when they are over: a supervisor that can't run here must not keep the machine busy.
RESTART_SPAN = 60.0
MAX_RESTARTS = 5
#: Seconds until the next attempt, if the supervisor could not be started.
RETRY = 1.0
#: Seconds for which the log of a dead supervisor is kept.
LOG_LIFETIME = 7 * 86_400.0
#: Characters that `LocalWorkers.read_log` returns at most.
MAX_LOG = 20_000

#: Pattern of the names of supervisors' files, without what follows the dot.
_STEM = "workers-" + 16 * "[0-9a-f]"
#: See `LocalWorkers._digest`.
_SALT = os.urandom(16)


class LocalWorkers:
    """The local workers of a queue, which this kernel has started.

    Parameters
    ----------
    url, queue, secret
        What the workers connect to.
    home
        Of this kernel.
    session
        Id of the client: its unfinished calls are dropped when it is gone.
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
        self._closing = Event()
        self._watcher: threading.Thread | None = None
        self.n_workers = 0
        self._wear: tuple[int, int] | None = None
        self._asked_at = -math.inf
        self._trouble = ""

    @property
    def are_starting(self) -> bool:
        """Whether they, or others in their place, were asked for a moment ago.

        They may not have joined yet.
        """
        return self.n_workers > 0 and time.monotonic() < self._asked_at + STARTING

    @property
    def trouble(self) -> str:
        """Why there are no workers for now; empty if they seem to be fine."""
        if self._trouble and self._lock.acquire(blocking=False):  # else a thread is busy with it
            try:
                if self._connection is not None and self._connection.has_caught_up():
                    self._trouble = ""
            finally:
                self._lock.release()
        return self._trouble

    def _digest(self) -> str:
        """Return a digest that is the same for all queues of this process that share workers.

        It is part of a command line, which all users can read. The salt keeps them from guessing
        the secret.
        """
        store = self._store and self._store.reveal()
        shared = [self._url.reveal(), self._queue, self._secret.reveal(), self._home.calls, store]
        return hashlib.blake2b(json.dumps(shared).encode(), key=_SALT, digest_size=8).hexdigest()

    @property
    def log(self) -> Path:
        """Where the supervisor and its workers write what they log."""
        return self._stem.with_suffix(".log")

    def read_log(self) -> str:
        """Return the end of what the supervisor and its workers have logged."""
        try:
            return self.log.read_text(errors="replace")[-MAX_LOG:]
        except FileNotFoundError:
            return ""

    def scale(self, n_workers: int, wear: tuple[int, int] | None = None) -> None:
        """Run `n_workers` local workers.

        Parameters
        ----------
        wear
            After how many calls, and above how many bytes, an idle worker is replaced; 0: never.
            None: as before.

        Raises
        ------
        ServerError
            The supervisor did not start; the message quotes its log.
        """
        with self._lock:
            self.n_workers, self._asked_at = n_workers, time.monotonic()
            self._wear = self._wear if wear is None else wear
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
            Return only when they are gone, or other sessions still use them.
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
            # If the connection was lost, the supervisor waits for us as long as we live.
            found = connection or self._connect()
            if found is None:
                break
            try:
                return bool(found.ask({"leave": True}).get("others") == 0)
            except TimeoutError:  # it reads the message when it goes on
                break
            except (OSError, ValueError):
                continue
            finally:
                if found is not self._connection:
                    found.close()
        return False

    def forget(self) -> None:
        """Close the connection without leaving: it belongs to the process this was forked from."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._process, self._lock = None, None, threading.Lock()
        self._closing = Event()
        self._closing.set()

    # -- the supervisor ------------------------------------------------------------------------

    def _ask(self) -> dict[str, Any]:
        """Ask for the workers; start a supervisor if there is none."""
        request = self._request()
        if self._connection is not None:
            with contextlib.suppress(ConnectionError, ValueError):
                return self._put(self._connection, request)
        return self._put(self._open(), request)

    def _request(self) -> dict[str, Any]:
        wear = {} if self._wear is None else {"wear": self._wear}
        return {"session": self._session, "scale": self.n_workers, **wear}

    def _put(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = connection.ask(request)
        except TimeoutError:
            # It is not dead and will do it when it goes on; another supervisor would make it worse.
            process = f" (process {connection.peer})" if connection.peer else ""
            self._trouble = (
                f"the supervisor of the local workers{process} has not answered for"
                f" {ANSWER_TIMEOUT:g} s: it is stopped, or the machine is too busy. It does what it"
                " was told as soon as it goes on."
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
                connection = self._connect()  # another process may have started it
                if connection is None:
                    self._tidy()
                    self._spawn()
                    connection = self._await_supervisor()
        if self._connection is not None:  # its supervisor has died; the watcher closes it
            self._connection.end()
        self._connection = connection
        return connection

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from starting a supervisor."""
        with (self._stem.parent / "workers.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Delete the sockets of dead supervisors, and their logs if these are old."""
        folder = self._stem.parent  # other files may be in it
        for path in folder.glob(f"{_STEM}.sock"):
            if path.is_socket() and not is_open(path):
                path.unlink(missing_ok=True)
        for log in folder.glob(f"{_STEM}.log"):
            is_old = time.time() > log.stat().st_mtime + LOG_LIFETIME
            if is_old and not log.with_suffix(".sock").exists():
                log.unlink()

    def _connect(self) -> Connection | None:
        """Return a connection to the supervisor; None if there is none."""
        try:
            connection = Connection(self._stem.with_suffix(".sock"))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except BlockingIOError as error:
            raise ServerError(
                "The supervisor of the local workers accepts no connections: it is stopped, or too"
                " busy, and too many clients are waiting. Wait until the machine is less busy, or"
                " restart the kernel."
            ) from error
        try:
            connection.ask({"session": self._session})
        except TimeoutError:
            return connection  # it reads this request, and those that follow, when it goes on
        except (OSError, ValueError):
            connection.close()
            return None
        return connection

    def _spawn(self) -> None:
        command = python_command("nbstreamq", "worker", "--queue", self._queue)
        command += ["-n", str(self.n_workers)]
        command += ["--control-socket", os.fspath(self._stem.with_suffix(".sock"))]
        command += ["--homes", *self._home.tags]
        if self._process is not None:  # else it stays as a zombie, which looks alive
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        with self.log.open("wb" if self._process is None else "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=environment_without_secrets(),
                cwd=self._home.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in this terminal must not reach it
            )
        hand_over(self._process.stdin, url=self._url, secret=self._secret, store=self._store)

    def _await_supervisor(self) -> Connection:
        process, deadline = self._process, time.monotonic() + START_TIMEOUT
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            connection = self._connect()
            if connection is not None:
                return connection
            time.sleep(0.005)
        if process is not None:  # nothing else would end one that takes longer
            process.kill()
            process.wait()
        log = self.log.read_text(errors="replace")[-2000:].strip()
        raise ServerError(
            "The supervisor of the local workers did not start; its log may say why. It is"
            f" {self.log}:\n{log or '(empty)'}"
        )

    # -- its death -----------------------------------------------------------------------------

    def _watch(self) -> None:
        """Start the supervisor again each time it dies, until we leave."""
        while (connection := self._connection) is not None:
            try:
                connection.wait_for_end()
                while self._is_lost(connection):
                    self._restart(connection)
                connection.close()
            except Exception:  # this thread must go on: nothing else starts the supervisor again
                logger.exception("Watching the local workers failed; trying again")
                self._closing.wait(RETRY)
                continue
            if self._connection is connection:
                break
        if self._process is not None:  # other sessions may use it long after we have left
            self._process.wait()

    def _is_lost(self, connection: Connection) -> bool:
        """Return whether a connection has ended and was not replaced yet."""
        return self._connection is connection and not self._closing.is_set()

    def _restart(self, connection: Connection) -> None:
        self._brake(connection)
        self._asked_at = time.monotonic()
        try:
            with self._lock:
                if self._is_lost(connection):
                    self._reopen()
        except Exception as error:  # noqa: BLE001 - this thread must try again
            self._trouble = f"the local workers can't be restarted (still trying): {error}"
            self._closing.wait(RETRY)

    def _reopen(self) -> None:
        connection = self._open()
        self._trouble = ""
        if self.n_workers:  # other sessions of the kernel ask for theirs themselves
            self._put(connection, self._request())

    def _brake(self, connection: Connection) -> None:
        """Wait if the supervisor has died too often, until the first of these deaths is old."""
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if t > now - RESTART_SPAN]
        if len(self._restarts) >= MAX_RESTARTS:
            until = self._restarts.pop(0) + RESTART_SPAN
            at = time.strftime("%H:%M:%S", time.localtime(time.time() + until - now))
            self._trouble = (
                f"the supervisor of the local workers has died {MAX_RESTARTS + 1} times within"
                f" {RESTART_SPAN:g} s. It will be restarted at {at}; q.run(n) restarts it at once."
                f" Its log may say why: {self.log}"
            )
            while self._is_lost(connection) and (left := until - time.monotonic()) > 0:
                self._closing.wait(min(left, RETRY))
        self._restarts.append(time.monotonic())
