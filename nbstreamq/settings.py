"""Settings read from the environment, once per use and frozen."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import ServerStartFailed

__all__ = ["Settings", "make_private", "n_cores"]


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
        ``NBSTREAMQ_URL``: server for queues that name none; None means the embedded server.
    secret
        ``NBSTREAMQ_SECRET``: key that signs messages; in ``new,old`` the first one signs, and all
        are accepted. None means the key file in `data_dir`.
    server_binary
        ``NBSTREAMQ_SERVER``: path of the server to embed, instead of searching for one.
    runtime_dir
        ``NBSTREAMQ_RUNTIME_DIR``: folder of the embedded server's socket and lock.
    data_dir
        ``NBSTREAMQ_DATA_DIR``: folder of the embedded server's data and of the key file.
    memory_dir
        ``NBSTREAMQ_MEMORY_DIR``: folder of local queues' large values; it should be in memory.
    store
        ``NBSTREAMQ_STORE``: fsspec URL where large values lie, instead; clients and workers need
        the same.
    server_idle
        ``NBSTREAMQ_SERVER_IDLE``: seconds that the embedded server outlives its last user.
    start_method
        ``NBSTREAMQ_START_METHOD``: how a supervisor starts workers, ``fork`` or ``spawn``;
        None means fork where that is safe.
    silence
        ``NBSTREAMQ_SILENCE``: seconds without a sign of life after which a machine's workers are
        given up, and what they held is run by others. Signs are sent four times as often.
    """

    url: str | None
    secret: str | None
    server_binary: str | None
    runtime_dir: Path
    data_dir: Path
    memory_dir: Path
    store: str | None
    server_idle: float
    start_method: str | None
    silence: float

    @classmethod
    def from_environment(cls) -> Settings:
        """Return the settings that the environment holds now.

        Raises
        ------
        ValueError
            ``NBSTREAMQ_SERVER_IDLE`` or ``NBSTREAMQ_SILENCE`` is not a number of seconds.
        """
        env = os.environ.get
        runtime_dir = Path(env("NBSTREAMQ_RUNTIME_DIR") or _runtime_dir())
        memory_dir = env("NBSTREAMQ_MEMORY_DIR") or _memory_dir() or runtime_dir / "values"
        return cls(
            url=env("NBSTREAMQ_URL") or None,
            secret=env("NBSTREAMQ_SECRET") or None,
            server_binary=env("NBSTREAMQ_SERVER") or None,
            runtime_dir=runtime_dir,
            data_dir=Path(env("NBSTREAMQ_DATA_DIR") or _data_dir()),
            memory_dir=Path(memory_dir).absolute(),
            store=env("NBSTREAMQ_STORE") or None,
            server_idle=float(env("NBSTREAMQ_SERVER_IDLE") or 300),
            start_method=env("NBSTREAMQ_START_METHOD") or None,
            silence=float(env("NBSTREAMQ_SILENCE") or 4),
        )


def make_private(folder: Path) -> None:
    """Make a folder that only this user can enter; refuse one that others could have planted."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    link, target = folder.lstat(), folder.stat()
    if {link.st_uid, target.st_uid} != {os.getuid()}:
        raise ServerStartFailed(
            f"{folder} belongs to another user: set NBSTREAMQ_RUNTIME_DIR or NBSTREAMQ_DATA_DIR."
        )
    if stat.S_IMODE(target.st_mode) & 0o077:
        raise ServerStartFailed(f"{folder} is open to other users: run `chmod 700 {folder}`.")


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
