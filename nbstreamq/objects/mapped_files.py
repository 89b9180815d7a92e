"""Large values in files that are mapped into memory, so that readers need no copy.

Each session has a folder with one file for each value, and a folder ``free`` with files that hold
no value. A value is freed by moving its file there; a small file is deleted instead. A reader holds
a shared lock on a file as long as any view of it lives. So a file in ``free`` that can be locked is
unused, and is written again, which is faster than new pages. It stays in ``free``, locked, while it
is written; a writer that dies leaves one more free file.

Files are not signed. So each file is opened through the descriptors of folders that belong to this
user, that only this user can enter, and that are not links: see `_entered`.

A file in a session's folder proves by its name that nbstreamq made the folder, and by its lock that
the session lives. Other processes delete only folders that are proved to be a dead session's, and
in them only files with the names that nbstreamq uses.

Workers keep what they fetch from other machines in one more such folder, which all workers on this
machine share: see `FetchedFiles`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import mmap
import os
import re
import resource
import socket
import stat
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import FolderRefused, NbstreamqError, NoRoom
from ..settings import Settings
from ..sizes import in_units

#: Most bytes, and largest part of the free memory, that free files of a session may keep. More
#: saves the first touch of new pages, which takes longer than the copy; less leaves more memory.
MAX_FREE, MAX_FREE_PART = 2**30, 0.25
#: Most free files of a session; each is tried when a file is needed.
MAX_FREE_FILES = 64
#: Bytes from which a file is kept to be written again. To search for a smaller one takes longer
#: than new pages.
MIN_FREE = 2**20
#: How much larger or smaller than needed a free file may be.
MISFIT = 2
#: Most bytes, and largest part of the free memory, of fetched values that no process uses now. More
#: saves fetching them again; less leaves more memory.
MAX_FETCHED, MAX_FETCHED_PART = 2**34, 0.25
_FREE, _DRAFT = "free", "draft"
#: Names of values, and of files that hold none.
_VALUE, _FREE_FILE = re.compile(r"[0-9a-f]{32}"), re.compile(r"\d+-\d+-\d+")
#: The name of a value with this end: a file that is locked while the value is fetched.
_FETCHING = ".fetching"
#: Follow no links, and do not wait for pipes.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_FULL = {errno.ENOSPC, errno.EDQUOT}

#: Where a value is, and how many bytes it has.
ValueAddress = tuple[str, int]

_numbers = itertools.count()
#: Most mapped files: each takes a file descriptor. Further values are copied.
_MAX_MAPPED = max(16, min(30_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def is_file(address: str) -> bool:
    """Tell whether a value is in a file on this machine."""
    return address.startswith("/")


def read(address: ValueAddress) -> Any:
    """Return a private, writable view of a file's first bytes; None if it is gone."""
    path, size = address
    folder, name = os.path.split(path)
    try:
        there = _entered(folder)
        file = os.open(name, _READ, dir_fd=there.at)
    except FileNotFoundError:
        return None
    try:
        # If it was freed since it was opened, it may be written again: then it is locked, or has
        # another name.
        if not (_lock(file, fcntl.LOCK_SH) and _is_at(file, name, there.at)):
            return None
        return _map(file, size)
    finally:
        os.close(file)


def _map(file: int, size: int) -> Any:
    if len(_mapped) >= _MAX_MAPPED:
        with mmap.mmap(file, size, access=mmap.ACCESS_READ) as view:
            return bytearray(view)
    view = mmap.mmap(file, size, access=mmap.ACCESS_COPY)  # its descriptor keeps the lock
    _mapped.add(view)
    return view


def free(address: ValueAddress) -> None:
    """Free a value: its file is written again when no reader is left, or is deleted."""
    folder, name = os.path.split(address[0])
    with contextlib.suppress(FileNotFoundError):  # the session's files may all be gone
        there = _entered(folder)
        size = os.stat(name, dir_fd=there.at, follow_symlinks=False).st_size
        if size >= MIN_FREE and _make_room(there.at, size):
            os.rename(name, f"{_FREE}/{_new_name()}", src_dir_fd=there.at, dst_dir_fd=there.at)
        else:
            os.unlink(name, dir_fd=there.at)


def _make_room(at: int, size: int) -> bool:
    """Delete the oldest free files until one more may be kept; return False if it is too large."""
    room = os.statvfs(at)
    limit = min(MAX_FREE, int(room.f_bavail * room.f_frsize * MAX_FREE_PART))
    sizes = dict(_free_files(at))
    while sizes and (sum(sizes.values()) + size > limit or len(sizes) >= MAX_FREE_FILES):
        oldest = min(sizes)
        del sizes[oldest]
        _delete(at, oldest)
    return size <= limit


def _delete(at: int, name: str) -> None:
    """Delete a free file, unless it is being written; its readers keep their views."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(name, _READ, dir_fd=at)
        if _lock(file, fcntl.LOCK_SH):
            os.unlink(name, dir_fd=at)
        os.close(file)


def _delete_free_files(at: int) -> None:
    for name, _ in _free_files(at):
        _delete(at, name)


def _free_files(at: int) -> list[tuple[str, int]]:
    """Return the path, in the session's folder, and size of each file that holds no value."""
    found = []
    with contextlib.suppress(FileNotFoundError), _opened(_FREE, at) as there:
        for name in filter(_FREE_FILE.fullmatch, os.listdir(there)):  # noqa: PTH208 - a descriptor
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(name, dir_fd=there, follow_symlinks=False).st_size
                found.append((f"{_FREE}/{name}", size))
    return found


def _is_at(file: int, name: str, at: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(name, dir_fd=at, follow_symlinks=False))
    except FileNotFoundError:
        return False


# -- private folders ----------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folder: str, at: int | None = None) -> Iterator[int]:
    """Open a folder that only this user can enter; relative to the folder `at`, if given.

    Raises
    ------
    FolderRefused
        It is a link, another user's, or open to others.
    """
    try:
        name = folder if at is None else os.path.basename(folder)  # noqa: PTH119 - quick
        there = os.open(name, _READ | os.O_DIRECTORY, dir_fd=at)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise FolderRefused(
            f"{folder} must be a folder of nbstreamq for large values, but is a link or a file."
            " Remove it, or set NBSTREAMQ_MEMORY_DIR to another folder."
        ) from error
    try:
        found = os.fstat(there)
        if found.st_uid != os.getuid():
            raise FolderRefused(
                f"The folder {folder} belongs to another user (uid {found.st_uid}), who could"
                " change large values in it. Remove it, or set NBSTREAMQ_MEMORY_DIR to a folder of"
                " your own."
            )
        if found.st_mode & 0o077:
            raise FolderRefused(
                f"The folder {folder} is open to other users, who could read or change large values"
                f" in it. Run `chmod 700 {folder}`, or set NBSTREAMQ_MEMORY_DIR to a private one."
            )
        yield there
    finally:
        os.close(there)


class _Opened:
    """A descriptor of a folder that was checked, or of a file; closed when it is no longer used."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.at)


# Each process checks a folder once: to open it again for each value takes 20 us. A descriptor stays
# that of the same folder even if its path is changed.
@functools.lru_cache(maxsize=4)
def _entered(folder: str) -> _Opened:
    """Open and check a session's folder, and the folder around it."""
    with _opened(os.path.dirname(folder)) as around, _opened(folder, around) as there:  # noqa: PTH120
        return _Opened(os.dup(there))


class MappedFiles:
    """The files of a session, for processes that write some.

    Parameters
    ----------
    session
        Of the client.
    settings
        Where files may be.
    """

    #: A file takes as long as a message of this size, which is copied ten times.
    min_external_bytes = 2**16

    def __init__(self, session: str, settings: Settings) -> None:
        self.folders = tuple(os.fspath(root / session) for root in _roots(settings))

    def exist(self) -> bool:
        """Tell whether the session keeps files on this machine."""
        return os.path.isdir(self.folders[0])  # noqa: PTH112 - a writer checks whose it is

    read, free = staticmethod(read), staticmethod(free)

    def close(self) -> None:
        """Do nothing: the client deletes the files."""

    def write(self, data: memoryview) -> str:
        """Copy `data` into a file; return its path.

        Raises
        ------
        NoRoom
            Neither the memory nor the disk has room for it.
        """
        full: list[str] = []
        for folder in self.folders:
            try:
                path = _write(folder, data)
            except FileNotFoundError as error:
                raise NbstreamqError(
                    f"A large value can't be written, because the folder {folder} is gone: its"
                    " queue was shut down, or its kernel has ended. Nothing waits for this value."
                ) from error
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                full.append(os.path.dirname(folder))  # noqa: PTH120
                continue
            if full:
                _warn_once(
                    f"{full[0]} is full: large values are written to {folder}, which is slower."
                )
            return path
        raise NoRoom(
            f"There is no room for a value of {in_units(data.nbytes)}: {' and '.join(full)} are"
            " full. Delete futures, Refs and arrays that you no longer need, or set"
            " NBSTREAMQ_MEMORY_DIR to a folder with more room."
        )


def _write(folder: str, data: memoryview) -> str:
    there, name = _entered(folder), uuid.uuid4().hex
    try:
        _write_once(there.at, name, data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _delete_free_files(there.at)
        _write_once(there.at, name, data)
    return f"{folder}/{name}"


def _write_once(at: int, name: str, data: memoryview) -> None:
    size = data.nbytes
    file, draft = _claim(at, size)
    try:
        os.ftruncate(file, min(size, os.fstat(file).st_size))
        written = 0
        while written < size:
            # Not through a mapping: without room that would kill the process.
            written += os.pwrite(file, data[written:], written)
        os.rename(draft, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=at)
        raise
    finally:
        os.close(file)


def _claim(at: int, size: int) -> tuple[int, str]:
    """Return a locked free file of about this size, or a new one, and its name."""
    free_files = _free_files(at) if size >= MIN_FREE else ()
    fitting = [(n, name) for name, n in free_files if size / MISFIT <= n <= size * MISFIT]
    for _, name in sorted(fitting, key=lambda one: abs(one[0] - size)):
        with contextlib.suppress(FileNotFoundError):
            file = os.open(name, _WRITE, dir_fd=at)
            if _lock(file) and _is_at(file, name, at):
                return file, name
            os.close(file)
    while True:
        name = f"{_FREE}/{_new_name()}"
        file = os.open(name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=at)
        if _lock(file) and _is_at(file, name, at):  # it may have been deleted to make room
            return file, name
        os.close(file)


def _new_name() -> str:
    """Return a unique name for a free file, later in the alphabet than all earlier ones."""
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


class SessionFolder(MappedFiles):
    """The files of this process's own session, which exist until it is closed or dies.

    Raises
    ------
    FolderRefused
        Other users could change files there, or a folder can't be created.
    """

    def __init__(self, session: str, settings: Settings) -> None:
        super().__init__(session, settings)
        try:
            sweep(settings)
            self._owners = [_make(folder) for folder in self.folders]
        except FolderRefused:
            raise
        except OSError as error:
            memory, values = _roots(settings)
            raise FolderRefused(
                f"A folder for large values, {memory} or {values}, can't be created or used:"
                f" {error}. Set NBSTREAMQ_MEMORY_DIR or NBSTREAMQ_DATA_DIR to a folder of your own,"
                " where you may write."
            ) from None

    def close(self) -> None:
        """Delete all files; views of them stay valid."""
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError), _opened(os.path.dirname(folder)) as root:  # noqa: PTH120
                _remove(root, os.path.basename(folder))  # noqa: PTH119
        self.forget()

    def forget(self) -> None:
        """Give up the files in a forked process: they belong to its parent."""
        for owner in self._owners:
            owner.close()


def _make(folder: str) -> IO[bytes]:
    """Create a session's folder; return the locked file that proves that the session lives."""
    root, session = os.path.split(folder)
    _make_root(root)
    with _opened(root) as around:
        os.mkdir(session, 0o700, dir_fd=around)
        with _opened(folder, around) as at:
            os.mkdir(_FREE, 0o700, dir_fd=at)
            owner = os.open(_DRAFT, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=at)
            _lock(owner)
            # Locked before it gets its name: else another process could take the session for dead.
            os.rename(_DRAFT, _owner_name(session), src_dir_fd=at, dst_dir_fd=at)
    # A file object is closed only once: later, its number may be another file's.
    return os.fdopen(owner, "rb")


def _make_root(root: str) -> None:
    os.makedirs(os.path.dirname(root), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    _make_folder(root)


def _owner_name(session: str) -> str:
    """Return the name of the file that proves which session a folder belongs to.

    The name proves it and not the content, because an empty file needs no room. It has the
    machine's name, because another machine that shares the folder may not see the lock.
    """
    return f"nbstreamq-{session}@{socket.gethostname()}"


def sweep(settings: Settings) -> None:
    """Delete the files of sessions whose processes are dead, and fetched ones that nobody uses.

    Raises
    ------
    FolderRefused
        Other users could change files there; nothing was deleted.
    """
    for root in dict.fromkeys(_roots(settings)):
        with contextlib.suppress(FileNotFoundError), _opened(os.fspath(root)) as around:
            for name in os.listdir(around):  # noqa: PTH208 - a descriptor
                # It may be another file, or another process was faster.
                with contextlib.suppress(OSError):
                    _sweep_folder(around, name)


def _sweep_folder(root: int, name: str) -> None:
    """Delete the files of a folder if it is proved to belong to a dead session."""
    proof = _owner_name(name)
    with _opened(name, root) as at:
        owner = os.open(proof, _WRITE | os.O_NONBLOCK, dir_fd=at)
        try:
            # Locked until all is deleted: no process can begin to use the folder meanwhile.
            is_dead = stat.S_ISREG(os.fstat(owner).st_mode) and _lock(owner)
            if is_dead and _is_at(owner, proof, at):
                _remove(root, name)
        finally:
            os.close(owner)


def _remove(root: int, name: str) -> None:
    """Delete the files of a session, and its folder if nothing else is in it."""
    with _opened(name, root) as at:
        for path, _ in _free_files(at):
            _try(os.unlink, path, at)
        # While this folder exists, another process may write a value. Then the proof stays, too,
        # and the next sweep deletes the rest.
        is_closed = _try(os.rmdir, _FREE, at)
        for file in os.listdir(at):  # noqa: PTH208 - a descriptor
            if _VALUE.fullmatch(file.removesuffix(_FETCHING)):
                _try(os.unlink, file, at)
        if is_closed:
            _try(os.unlink, _owner_name(name), at)
    _try(os.rmdir, name, root)


def _try(delete: Callable[..., None], name: str, at: int) -> bool:
    """Return whether the file or folder is gone."""
    try:
        delete(name, dir_fd=at)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _roots(settings: Settings) -> tuple[Path, Path]:
    """Return where sessions have their folders: in memory, and on disk when memory is full."""
    return settings.memory_dir, settings.data_dir.absolute() / "values"


# -- values from elsewhere ----------------------------------------------------------------------


class FetchedFiles:
    """Values from a server or a URL: one process of this machine fetches each, and all map it.

    The folder is like a session's, but it belongs to all processes that have read from it. Each of
    them holds a shared lock on the file that proves that the folder is in use.

    A process that fetches a value holds a lock meanwhile, for which the others wait. If it is
    killed, the system frees the lock, and the next one fetches. A file gets the name of its value
    when it is complete, so nobody sees a part of one.

    Parameters
    ----------
    settings
        Where files may be.
    """

    def __init__(self, settings: Settings) -> None:
        name = f"fetched@{socket.gethostname()}"  # machines may share the folder on disk
        self._paths = tuple(os.fspath(root / name) for root in _roots(settings))

    @functools.cached_property
    def _joined(self) -> list[tuple[_Opened, _Opened]]:
        """The folders in memory and on disk, if they can be used, and what proves their use."""
        found = []
        for path in self._paths:
            with contextlib.suppress(FolderRefused, OSError):
                found.append(_join(path))
        return found

    def read(self, name: str, size: int, fetch: Callable[[], bytearray | None]) -> Any:
        """Return a private, writable view of a value; None if it is gone.

        Parameters
        ----------
        name
            32 hexadecimal digits that no other value has.
        size
            Bytes of the value.
        fetch
            Returns the checked value, or None if it is gone. Called if no process has fetched it
            yet, and in one process at a time.
        """
        if not self._joined:
            return fetch()
        view = self._find(name, size)
        if view is not None:
            return view
        with _lock_of(self._joined[0][0].at, name + _FETCHING):
            view = self._find(name, size)  # another process may have fetched it meanwhile
            if view is None and (data := fetch()) is not None:
                self._keep(name, memoryview(data))
                view = self._find(name, size) or data
        return view

    def _find(self, name: str, size: int) -> Any:
        for there, _ in self._joined:
            try:
                file = os.open(name, _READ, dir_fd=there.at)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_SH)  # its writer closes it soon
                if _is_at(file, name, there.at):
                    os.utime(file)
                    return _map(file, size)
            finally:
                os.close(file)
        return None

    def _keep(self, name: str, data: memoryview) -> None:
        """Write a value for the others, if there is room."""
        for there, _ in self._joined:
            for keep_unused in (True, False):
                _evict(there.at, data.nbytes, keep_unused=keep_unused)
                try:
                    return _write_once(there.at, name, data)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
        return None


def _join(folder: str) -> tuple[_Opened, _Opened]:
    """Create a folder if it is missing; return it, and the locked file that proves its use."""
    root, name = os.path.split(folder)
    _make_root(root)
    with _opened(root) as around:
        while True:
            _make_folder(name, around)
            # A sweep may delete it before we have the lock.
            with contextlib.suppress(FileNotFoundError), _opened(folder, around) as at:
                _make_folder(_FREE, at)
                proof = os.open(_owner_name(name), _WRITE | os.O_CREAT, 0o600, dir_fd=at)
                owner = _Opened(proof)
                fcntl.flock(proof, fcntl.LOCK_SH)
                if _is_at(proof, _owner_name(name), at):
                    return _Opened(os.dup(at)), owner


def _make_folder(name: str, at: int | None = None) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=at)


@contextlib.contextmanager
def _lock_of(at: int, name: str) -> Iterator[None]:
    """Hold the lock of a file that exists meanwhile; wait until no other process has it."""
    while True:
        file = os.open(name, _WRITE | os.O_CREAT, 0o600, dir_fd=at)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, name, at):
                try:
                    yield
                    return
                finally:
                    os.unlink(name, dir_fd=at)
        finally:
            os.close(file)


def _evict(at: int, size: int, *, keep_unused: bool) -> None:
    """Delete values that no process uses, the longest unused first, to make room for one more."""
    _delete_free_files(at)
    unused = sorted(_unused(at), reverse=True)
    room = os.statvfs(at)
    kept = sum(n for _, n, _ in unused)
    limit = min(MAX_FETCHED, int((room.f_bavail * room.f_frsize + kept) * MAX_FETCHED_PART))
    while unused and (not keep_unused or kept + size > limit):
        _, n, name = unused.pop()
        kept -= n
        _delete(at, name)


def _unused(at: int) -> Iterator[tuple[int, int, str]]:
    """Yield when each value was last used that no process maps now, its size and its name."""
    for name in filter(_VALUE.fullmatch, os.listdir(at)):
        with contextlib.suppress(FileNotFoundError):
            file = os.open(name, _READ, dir_fd=at)
            try:
                if _lock(file):
                    found = os.fstat(file)
                    yield found.st_mtime_ns, found.st_size, name
            finally:
                os.close(file)
