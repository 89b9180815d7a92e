"""Settings from the environment, and secrets that must not stay in it."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from .arguments import check_choice, check_secret, check_store, read_seconds, shown
from .errors import ServerStartFailed
from .secret import Address, Secret

#: Variables that hold a secret, or an address that may contain a password.
_SECRETS = ("NBSTREAMQ_SECRET", "NBSTREAMQ_URL", "NBSTREAMQ_STORE")
#: Values that `conceal` removed from the environment, by variable.
_concealed: dict[str, Secret] = {}

#: Longest path of a socket, in bytes.
_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
#: Longest name of a socket in `Settings.runtime_dir`.
WORKERS_SOCKET = "workers-0123456789abcdef.sock"
#: Lines of the logs that our own processes write.
LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"
#: The ways in which a supervisor can start workers.
METHODS = ("fork", "spawn")

T = TypeVar("T")


def _runtime_dir() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return Path(base) / "nbstreamq"
    return Path(tempfile.gettempdir()) / f"nbstreamq-{os.getuid()}"


def _data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "nbstreamq"


def _memory_dir() -> Path | None:
    base = Path("/dev/shm")  # noqa: S108 - a folder of our own in it, which is checked
    return base / f"nbstreamq-{os.getuid()}" if os.access(base, os.W_OK) else None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the ``NBSTREAMQ_*`` environment variables say.

    Attributes
    ----------
    url
        ``NBSTREAMQ_URL``: the server of queues without a URL; None means the embedded server.
    secret
        ``NBSTREAMQ_SECRET``: the key that signs messages. With ``new,old`` the first key signs, and
        both are accepted. None means the key file in `data_dir`.
    server_binary
        ``NBSTREAMQ_SERVER``: path of the server to embed; None means to search for one.
    runtime_dir
        ``NBSTREAMQ_RUNTIME_DIR``: folder of the embedded server's socket and lock.
    data_dir
        ``NBSTREAMQ_DATA_DIR``: folder of the embedded server's data and of the key file.
    memory_dir
        ``NBSTREAMQ_MEMORY_DIR``: folder of local queues' large values; it should be in memory.
    store
        ``NBSTREAMQ_STORE``: fsspec URL, or absolute path of a shared folder, for large values,
        instead of files or the server. Clients and workers need the same.
    server_idle
        ``NBSTREAMQ_SERVER_IDLE``: seconds after which the embedded server stops without clients.
    start_method
        ``NBSTREAMQ_START_METHOD``: how a supervisor starts workers, ``fork`` or ``spawn``;
        None means to fork where that is safe.
    silence
        ``NBSTREAMQ_SILENCE``: seconds without a heartbeat after which the workers of a machine
        count as lost, and other workers run their tasks. Heartbeats are sent four times as often.
    progress
        ``NBSTREAMQ_PROGRESS``: whether a wait of more than a second shows progress; 0 means no.
    """

    url: Address | None
    secret: Secret | None
    server_binary: str | None
    runtime_dir: Path
    data_dir: Path
    memory_dir: Path
    store: Address | None
    server_idle: float
    start_method: str | None
    silence: float
    progress: bool

    @classmethod
    def from_environment(cls) -> Settings:
        """Return the settings that the environment holds now.

        Raises
        ------
        ValueError
            A variable has a value that can't be used; the message says which values can.
        """
        env = os.environ.get
        runtime_dir = _given("NBSTREAMQ_RUNTIME_DIR", _folder) or _runtime_dir()
        memory_dir = _given("NBSTREAMQ_MEMORY_DIR", _resolved) or _memory_dir()
        idle = _given("NBSTREAMQ_SERVER_IDLE", read_seconds)
        return cls(
            url=_address("NBSTREAMQ_URL"),
            secret=_secret("NBSTREAMQ_SECRET", check_secret),
            server_binary=env("NBSTREAMQ_SERVER") or None,
            runtime_dir=runtime_dir,
            data_dir=_given("NBSTREAMQ_DATA_DIR", _folder) or _data_dir(),
            memory_dir=memory_dir or runtime_dir / "values",
            store=_address("NBSTREAMQ_STORE", check_store),
            server_idle=300.0 if idle is None else idle,
            start_method=_given("NBSTREAMQ_START_METHOD", _start_method),
            silence=_given("NBSTREAMQ_SILENCE", _silence) or 4.0,
            progress=_given("NBSTREAMQ_PROGRESS", _switch) != "0",
        )


def _given(variable: str, check: Callable[[str, str], T]) -> T | None:
    """Return the checked value of an environment variable; None if it is empty or not set."""
    text = os.environ.get(variable)
    return check(variable, text) if text else None


def _folder(variable: str, text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError(f"{variable} is {shown(text)}: it must be the absolute path of a folder")
    return path


def _resolved(variable: str, text: str) -> Path:
    # The user may name a link. No other link on the way to a large value is followed.
    return _folder(variable, text).resolve()


def _start_method(variable: str, text: str) -> str:
    return check_choice(variable, text, METHODS)


def _switch(variable: str, text: str) -> str:
    return check_choice(variable, text, ("0", "1"))


def _silence(variable: str, text: str) -> float:
    return read_seconds(variable, text, least=0.1)


def _secret(name: str, check: Callable[[str, Any], Secret] | None = None) -> Secret | None:
    """Return the checked value of a variable, or the one that `conceal` removed."""
    if not os.environ.get(name):
        return _concealed.get(name)
    found = Secret(os.environ[name])
    return check(name, found) if check else found


def _address(name: str, check: Callable[[str, Any], Secret] | None = None) -> Address | None:
    found = _secret(name, check)
    return Address(found) if found else None


def _is_secret(name: str, value: str) -> bool:
    return name == "NBSTREAMQ_SECRET" or (
        name in _SECRETS and bool(value) and Address(value).has_password()
    )


def environment_without_secrets() -> dict[str, str]:
    """Return the environment for a new process: this one's, without secrets."""
    return {name: value for name, value in os.environ.items() if not _is_secret(name, value)}


def conceal(**known: Secret | None) -> None:
    """Remove secrets from this process's environment; `Settings` still has them.

    Called before any user code runs, so that neither that code nor its subprocesses see them. The
    copy that the system shows in ``/proc/PID/environ`` is overwritten as well.

    Parameters
    ----------
    **known
        ``url``, ``secret`` and ``store`` of this process's queue, instead of those in the
        environment. An address without a password is written to the environment.
    """
    given = {f"NBSTREAMQ_{field.upper()}": value for field, value in known.items()}
    for name in _SECRETS:
        value = given.get(name) or _secret(name)
        _erase(name)
        if value is None:
            continue
        if name != "NBSTREAMQ_SECRET" and not Address(value).has_password():
            os.environ[name] = value.reveal()
        else:
            _concealed[name] = value


def _erase(name: str) -> None:
    """Delete a variable, and overwrite its value in memory, which the system goes on showing."""
    import ctypes  # slow to import

    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    if place := getenv(name.encode()):
        ctypes.memset(place, 0, len(ctypes.string_at(place)))
    os.environ.pop(name, None)


def hand_over(pipe: IO[bytes] | None, **known: Secret | None) -> None:
    """Write secrets to the standard input of a process that calls `receive`; close it.

    They include this process's key for `multiprocessing`, which its managers ask for.
    """
    import multiprocessing

    if pipe is None:
        raise ValueError("the process was started without a pipe")
    known["authkey"] = Secret(multiprocessing.current_process().authkey.hex())
    # A process that dies as it starts says why in its log.
    with contextlib.suppress(BrokenPipeError), pipe:
        pipe.write(handover(**known))


def handover(**known: Secret | None) -> bytes:
    """Return the line that `receive` reads; nobody else may see it."""
    return json.dumps({k: v.reveal() for k, v in known.items() if v}).encode() + b"\n"


def receive() -> dict[str, Secret]:
    """Return what the first line of the standard input holds, and empty the standard input."""
    import multiprocessing

    with open(0, "rb", buffering=0, closefd=False) as pipe:  # what follows stays in the pipe
        known = {field: Secret(text) for field, text in json.loads(pipe.readline()).items()}
    empty = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(empty, 0)
    os.close(empty)
    if authkey := known.pop("authkey", None):
        multiprocessing.current_process().authkey = bytes.fromhex(authkey.reveal())
    return known


def make_private(folder: Path, variable: str) -> None:
    """Create a folder that only this user can enter; refuse one that another user may have made.

    Parameters
    ----------
    variable
        The environment variable that sets the folder, for the message.
    """
    advice = f"Set {variable} to a folder of your own, where you may write."
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        link, target = folder.lstat(), folder.stat()
    except OSError as error:
        raise ServerStartFailed(
            f"The folder {folder} can't be created or opened: {error.strerror}. {advice}"
        ) from None
    if {link.st_uid, target.st_uid} != {os.getuid()}:
        raise ServerStartFailed(f"The folder {folder} belongs to another user. {advice}")
    if stat.S_IMODE(target.st_mode) & 0o077:
        raise ServerStartFailed(
            f"Other users can enter the folder {folder}, which holds sockets and data of nbstreamq."
            f" Run `chmod 700 {folder}`."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ServerStartFailed(f"The folder {folder} is not writable. {advice}")


def check_sockets(folder: Path) -> None:
    """Raise `ServerStartFailed` if `folder` has a path too long for the sockets in it."""
    most = _SOCKET_BYTES - len(f"/{WORKERS_SOCKET}")
    if (n := len(os.fsencode(folder.absolute()))) > most:
        raise ServerStartFailed(
            f"The path {folder} is too long for sockets: it has {n} bytes, and at most {most} are"
            " possible. Set NBSTREAMQ_RUNTIME_DIR to a folder with a shorter path, such as one in"
            " /tmp."
        )
