"""Large values as files that are mapped into memory: no copy for whoever reads them.

Each session has a folder; in it one file for each value, and in ``free`` those that hold none. To
free a value is to move its file there, or to delete a small one. Who reads a file has a shared lock
on it as long as any view of it lives, and with it the process. So a file in ``free`` that can be
locked is nobody's: it is written again, which is quicker than new pages are. While it is written it
stays there, locked; a writer that dies leaves just one free file more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import resource
import shutil
import time
import uuid
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import NbstreamqError, NoRoom
from ..settings import Settings, make_private

__all__ = ["Segments", "SessionFolder", "free", "is_file", "read", "sweep"]

#: Bytes, and part of the room that is left, that free files of a session may keep. More save the
#: first touch of new pages, which takes longer than the copy; less leaves more to others.
MAX_FREE, MAX_FREE_PART = 2**30, 0.25
#: Free files of a session; each is tried when a file is needed.
MAX_FREE_FILES = 64
#: Bytes from which a file is kept to be written again: to look for a smaller one among the others
#: takes longer than its new pages do.
MIN_FREE = 2**20
#: How much larger or smaller than needed a free file may be.
MISFIT = 2
_FREE, _OWNER = "free", "owner"
_FULL = {errno.ENOSPC, errno.EDQUOT}

_numbers = itertools.count()
#: Each mapped file costs a descriptor: of so many at most, the rest is copied.
_MAX_MAPPED = max(16, min(30_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def is_file(address: str) -> bool:
    """Tell whether a value lies in a file of this machine."""
    return address.startswith("/")


def read(handle: tuple[str, int]) -> Any:
    """Return a private, writable view of a file's first bytes; None if it is gone."""
    path, size = handle
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Freed since it was opened, it may be written anew: then it is locked, or has another name.
        if not (_lock(file, fcntl.LOCK_SH) and _is_at(file, path)):
            return None
        if len(_mapped) >= _MAX_MAPPED:
            return _copy(file, size)
        view = mmap.mmap(file, size, access=mmap.ACCESS_COPY)  # has the lock: a descriptor of it
        _mapped.add(view)
    finally:
        os.close(file)
    return view


def _copy(file: int, size: int) -> bytearray:
    found = bytearray(size)
    n_read = 0
    while n_read < size:
        n_read += os.preadv(file, [memoryview(found)[n_read:]], n_read)
    return found


def free(handle: tuple[str, int]) -> None:
    """Give a file up: to be written again, when nobody reads it any more."""
    path = handle[0]
    folder = os.path.dirname(path) + "/" + _FREE  # noqa: PTH120 - quicker than pathlib
    with contextlib.suppress(FileNotFoundError):  # all of the session's files are gone
        size = os.stat(path).st_size  # noqa: PTH116
        if size >= MIN_FREE and _make_room(folder, size):
            os.rename(path, f"{folder}/{_new_name()}")  # noqa: PTH104
        else:
            os.unlink(path)  # noqa: PTH108


def _make_room(folder: str, size: int) -> bool:
    """Delete the oldest free files until one more may be kept; False if it never may."""
    room = os.statvfs(folder)
    limit = min(MAX_FREE, int(room.f_bavail * room.f_frsize * MAX_FREE_PART))
    sizes = dict(_free_files(folder))
    while sizes and (sum(sizes.values()) + size > limit or len(sizes) >= MAX_FREE_FILES):
        oldest = min(sizes)
        del sizes[oldest]
        _delete(oldest)
    return size <= limit


def _delete(path: str) -> None:
    """Delete a free file, unless it is being written; who reads it keeps it as long as he wants."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if _lock(file, fcntl.LOCK_SH):
            os.unlink(path)  # noqa: PTH108
        os.close(file)


def _free_files(folder: str) -> Iterator[tuple[str, int]]:
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield entry.path, entry.stat().st_size


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False


class Segments:
    """The files of a session, for whoever writes some.

    Parameters
    ----------
    session
        Of the client.
    settings
        Where files may lie.
    """

    #: A file takes as long as that many bytes in a message do, which are copied ten times.
    large = 2**16

    def __init__(self, session: str, settings: Settings) -> None:
        self.folders = tuple(os.fspath(root / session) for root in _roots(settings))

    def exist(self) -> bool:
        """Tell whether the session keeps files on this machine."""
        return os.path.isdir(self.folders[0])  # noqa: PTH112

    def read(self, handle: tuple[str, int]) -> Any:
        return read(handle)

    def free(self, handle: tuple[str, int]) -> None:
        free(handle)

    def close(self) -> None:
        """Do nothing: the files are the client's."""

    def write(self, data: memoryview) -> str:
        """Copy `data` into a file; return its path.

        Raises
        ------
        NoRoom
            Neither the memory nor the disk has room for it.
        """
        full: list[str] = []
        for folder in self.folders:
            if full:
                os.makedirs(f"{folder}/{_FREE}", mode=0o700, exist_ok=True)  # noqa: PTH103
            try:
                path = _write(folder, data)
            except FileNotFoundError as error:
                raise NbstreamqError(
                    f"There is no {folder} for a large value: its queue was shut down, or the"
                    " kernel that made it has ended. Nobody waits for it."
                ) from error
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                full.append(os.path.dirname(folder))  # noqa: PTH120
                continue
            if full:
                _warn_once(f"{full[0]} is full: large values go to {folder}, which is slower.")
            return path
        raise NoRoom(
            f"{data.nbytes / 2**20:,.0f} MB have no room: {' and '.join(full)} are full. Drop"
            " futures, Refs and arrays that you don't need any more, or set NBSTREAMQ_MEMORY_DIR to"
            " a folder with more room."
        )


def _write(folder: str, data: memoryview) -> str:
    try:
        return _write_once(folder, data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
    for path, _ in _free_files(f"{folder}/{_FREE}"):
        _delete(path)
    return _write_once(folder, data)


def _write_once(folder: str, data: memoryview) -> str:
    size = data.nbytes
    file, draft = _claim(f"{folder}/{_FREE}", size)
    try:
        os.ftruncate(file, min(size, os.fstat(file).st_size))
        written = 0
        while written < size:
            # Not through a mapping: where there is no room that would kill the process.
            written += os.pwrite(file, data[written:], written)
        path = f"{folder}/{uuid.uuid4().hex}"
        os.rename(draft, path)  # noqa: PTH104
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)  # noqa: PTH108
        raise
    finally:
        os.close(file)
    return path


def _claim(folder: str, size: int) -> tuple[int, str]:
    """Return a locked free file of about that size, or a new one; and its path."""
    free_files = _free_files(folder) if size >= MIN_FREE else ()
    fitting = [(n, path) for path, n in free_files if size / MISFIT <= n <= size * MISFIT]
    for _, path in sorted(fitting, key=lambda one: abs(one[0] - size)):
        with contextlib.suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if _lock(file) and _is_at(file, path):
                return file, path
            os.close(file)
    while True:
        path = f"{folder}/{_new_name()}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if _lock(file) and _is_at(file, path):  # not deleted in between, to make room
            return file, path
        os.close(file)


def _new_name() -> str:
    """Return a name for a free file that nobody else has, later in the alphabet than all before."""
    return f"{time.time_ns()}-{next(_numbers)}-{os.getpid()}"


def _lock(file: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=2)


# -- sessions -----------------------------------------------------------------------------------


class SessionFolder(Segments):
    """The files of this process's own session: they are there until it is closed, or dies."""

    def __init__(self, session: str, settings: Settings) -> None:
        super().__init__(session, settings)
        memory = settings.memory_dir
        make_private(memory)
        with _alone(memory):
            _sweep(settings)
            os.makedirs(f"{self.folders[0]}/{_FREE}", mode=0o700)  # noqa: PTH103
            owner = f"{self.folders[0]}/{_OWNER}"
            # An object: it is closed once, and its number may be another's then.
            self._owner = os.fdopen(os.open(owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            _lock(self._owner.fileno())

    def close(self) -> None:
        """Delete all files; views of them stay as they are."""
        _remove(self.folders)
        self.forget()

    def forget(self) -> None:
        """Leave the files alone, in a forked process: they are its parent's."""
        self._owner.close()


def sweep(settings: Settings) -> None:
    """Delete the files of sessions whose processes are dead."""
    if settings.memory_dir.is_dir():
        with _alone(settings.memory_dir):
            _sweep(settings)


def _roots(settings: Settings) -> tuple[Path, Path]:
    """Return where sessions have their folders: in memory, and for what has no room there."""
    return settings.memory_dir, settings.data_dir / "values"


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep sweepers from folders whose owner is about to lock them."""
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(settings: Settings) -> None:
    memory, disk = _roots(settings)
    sessions = {path.name for root in (memory, disk) for path in root.glob("*/")}
    for session in sessions:
        if not _is_alive(memory / session / _OWNER):
            _remove([os.fspath(memory / session), os.fspath(disk / session)])


def _is_alive(owner: Path) -> bool:
    try:
        file = os.open(owner, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _lock(file)
    finally:
        os.close(file)


def _remove(folders: Sequence[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
