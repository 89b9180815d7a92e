"""Large values: kept outside messages, which say where to find them.

::

    ValueWriter.pack ──> ValueBackend.write       a message with addresses ──> pickle.loads
                                                                                    │
                         ValueBackend.read <── ValueReader <── _assemble <──────────┘

There are three backends. `MappedFiles` are in memory that all processes of this machine share. A
`ServerBackend` and a `UrlBackend` can be read from other machines; what they hold carries the
queue's signature, which is checked before anything is unpickled. Workers fetch from these into
`FetchedFiles`, once for each machine.
"""

from __future__ import annotations

import functools
import os
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakSet, WeakValueDictionary, finalize

import xxhash

from ..errors import NbstreamqError, SignatureError, ValueMissing
from ..secret import Address, hide_password, without_frames
from ..sizes import in_units
from ..wire.signing import SIGNATURE_BYTES, Signer
from ..wire.store import Store
from . import mapped_files
from .mapped_files import FetchedFiles, MappedFiles, ValueAddress

#: Bytes from which a value goes to the server, or to a URL, by itself: each costs a round trip.
MIN_EXTERNAL_BYTES = 2**18
#: Bytes of a value in one key. The server serves nobody else while it handles a key, and larger
#: parts are copied through new memory instead of reused memory, which takes twice as long. Smaller
#: parts need more round trips.
PART_BYTES = 4 * 2**20
#: How many samples of a value, of how many bytes, tell whether it may be known. Only then the whole
#: value is hashed, which takes a third of the time of writing it.
SAMPLES, SAMPLE_BYTES = 64, 4096


# -- messages that refer to values -------------------------------------------------------------


class ExternalValue:
    """A large value that was written to a backend.

    Parameters
    ----------
    address
        Where it is, and its size.
    digest
        Of the content; that of a file is computed when it is needed.
    alike
        The values with the same samples; held, so that they are known as long as one of them is.
    """

    __slots__ = ("__weakref__", "_alike", "_digest", "address")

    def __init__(
        self,
        address: ValueAddress,
        digest: bytes = b"",
        alike: WeakSet[ExternalValue] | None = None,
    ) -> None:
        self.address = address
        self._digest = digest
        self._alike = alike

    @property
    def digest(self) -> bytes:
        if not self._digest:
            self._digest = xxhash.xxh3_128_digest(mapped_files.read(self.address) or b"")
        return self._digest


class MessageWithRefs(bytes):
    """A message that keeps the values alive that it refers to.

    Attributes
    ----------
    held
        `ExternalValue`s, and other objects that hold some.
    """

    held: Sequence[Any]

    @classmethod
    def around(cls, data: bytes, held: Sequence[Any]) -> bytes:
        """Return `data`; as a `MessageWithRefs` if there is something to hold."""
        if not held:
            return data
        message = cls(data)
        message.held = held
        return message

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


def _values_of(message: bytes) -> list[ExternalValue]:
    held = message.held if isinstance(message, MessageWithRefs) else ()
    return [one for one in held if isinstance(one, ExternalValue)]


def addresses_of(message: bytes) -> tuple[ValueAddress, ...]:
    """Return the addresses of the values that a message itself refers to."""
    return tuple(value.address for value in _values_of(message))


def digest_of_values(message: bytes) -> str:
    """Return a digest, in hex, of the values that a message itself refers to."""
    return xxhash.xxh3_128_hexdigest(b"".join(value.digest for value in _values_of(message)))


def size_of(message: bytes) -> int:
    """Return the bytes of a message, and of the values that it refers to."""
    if type(message) is bytes:
        return len(message)
    return len(message) + sum(size for _, size in addresses_of(message))


def refers(message: bytes) -> bool:
    """Tell whether a message, or one inside it, may refer to values elsewhere."""
    return _assemble.__name__.encode() in message


def refers_to_server(message: bytes) -> bool:
    """Tell whether a message may refer to values on the server."""
    return b"server:" in message and refers(message)


# -- writing -----------------------------------------------------------------------------------


class ValueWriter:
    """Writes large values; somebody else frees them.

    Parameters
    ----------
    session
        The client's session that the values come from, or go to.
    backend
        Where they go.
    once
        Whether a value is freed when it has been read.
    """

    def __init__(self, session: str, backend: ValueBackend, *, once: bool = False) -> None:
        self.session = session
        self.backend = backend
        self._once = once

    @functools.cached_property
    def min_external_bytes(self) -> int:
        """Bytes from which a buffer, or a whole pickle, is kept outside its message."""
        return self.backend.min_external_bytes

    def write(self, data: memoryview) -> ExternalValue:
        """Write a value."""
        return ExternalValue((self.backend.write(data), data.nbytes))

    def pack(
        self,
        body: bytes,
        buffers: Sequence[memoryview],
        what: str,
        *,
        others: Sequence[Any] = (),
        min_external_bytes: int | None = None,
    ) -> bytes:
        """Return a message that stands for a pickle: unpickled, it gives the value itself.

        Parameters
        ----------
        body, buffers
            The pickle, and the buffers that were left out of it.
        what
            The value in words, for the error when a part of it is gone.
        others
            What else the message holds.
        min_external_bytes
            Bytes from which the pickle itself is written to the backend; None: as the backend says.
        """
        least = self.min_external_bytes if min_external_bytes is None else min_external_bytes
        if not buffers and len(body) < least:
            return MessageWithRefs.around(body, others)
        values = [self.write(buffer) for buffer in buffers]
        inside: bytes | None = body
        if len(body) >= least:
            values.append(self.write(memoryview(body)))
            inside = None
        addresses = [value.address for value in values]
        call = _Call(_assemble, (self.session, self._once, what, inside, addresses))
        return MessageWithRefs.around(pickle.dumps(call, 5), (*values, *others))


class _Call:
    """Pickles as a call."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._reduced = fn, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


class ValueStore(ValueWriter):
    """Writes a client's large values, each content once; frees each with the last message of it."""

    def __init__(self, session: str, backend: ValueBackend) -> None:
        super().__init__(session, backend)
        #: By their samples.
        self._known: WeakValueDictionary[bytes, WeakSet[ExternalValue]] = WeakValueDictionary()

    def write(self, data: memoryview) -> ExternalValue:
        """Write a value, unless the same content is there."""
        alike = self._known.setdefault(_sample(data), WeakSet())
        digest = b""
        if alike or not isinstance(self.backend, MappedFiles):
            digest = xxhash.xxh3_128_digest(data)
            for known in list(alike):
                if known.digest == digest:
                    return known
        value = ExternalValue((self.backend.write(data), data.nbytes), digest, alike)
        finalize(value, _free_at_home, self.backend, value.address, os.getpid()).atexit = False
        alike.add(value)
        return value

    def has(self, address: ValueAddress) -> bool:
        """Return whether a value is there that was written to this address."""
        known = [value for alike in list(self._known.values()) for value in list(alike)]
        return any(value.address == address for value in known)

    def forget(self) -> None:
        """Write each value again when it is needed next: what was written may be gone."""
        self._known.clear()

    def close(self) -> None:
        """Free all values."""
        for alike in list(self._known.values()):
            for value in list(alike):
                self.backend.free(value.address)
        self.backend.close()


def _sample(data: memoryview) -> bytes:
    """Return a digest of the size and of samples of the content; of all of it if that is little."""
    found = xxhash.xxh3_128(data.nbytes.to_bytes(8, "little"))
    for start in range(0, data.nbytes, max(SAMPLE_BYTES, data.nbytes // SAMPLES)):
        found.update(data[start : start + SAMPLE_BYTES])
    return found.digest()


def _free_at_home(backend: ValueBackend, address: ValueAddress, process: int) -> None:
    if os.getpid() == process:  # a fork has a copy of each value that its parent holds
        backend.free(address)


# -- reading -----------------------------------------------------------------------------------

#: Session -> where this process reads the session's values, unless they are files.
_readers: WeakValueDictionary[str, ValueReader] = WeakValueDictionary()


def register(session: str, reader: ValueReader) -> None:
    """Read the values of a session by `reader`, as long as that lives.

    The first reader also reads the values of sessions that have none.
    """
    _readers[session] = reader


def _assemble(
    session: str, once: bool, what: str, body: bytes | None, addresses: list[ValueAddress]
) -> Any:
    """Return the value that `ValueWriter.pack` wrote. Its messages call this when unpickled."""
    parts = [_read(session, address, what) for address in addresses]
    if once:  # only now: if one part can't be read yet, all are read again later
        for address in addresses:
            _source(session, address).free(address)
    whole = parts.pop() if body is None else body
    return pickle.loads(whole, buffers=parts)


def _source(session: str, address: ValueAddress) -> Any:
    """Return what reads and frees the value at an address; None if this process has nothing."""
    if mapped_files.is_file(address[0]):
        return mapped_files
    return _readers.get(session) or next(iter(_readers.values()), None)


def _read(session: str, address: ValueAddress, what: str) -> Any:
    source = _source(session, address)
    try:
        found = None if source is None else source.read(address)
        if found is None and source is mapped_files:  # a file of another machine
            found = _read_copy(session, address)
    except SignatureError as error:
        raise refused(what) from error
    if found is None:
        missing = ValueMissing(
            f"{what} is no longer available: {in_units(address[1])} of it are gone from"
            f" {hide_password(address[0])}. The queue that sent it was shut down, its kernel has"
            " ended, the server lost its data, or it is a Ref of another queue. Submit the call"
            " again."
        )
        missing.address = address
        raise missing
    return found


def copy_of(address: ValueAddress) -> ValueAddress:
    """Return the address on the server of the copy of a file, for other machines."""
    return f"server:{os.path.basename(address[0])}", address[1]  # noqa: PTH119 - quick


def _read_copy(session: str, address: ValueAddress) -> Any:
    reader = _readers.get(session) or next(iter(_readers.values()), None)
    return reader and reader.read(copy_of(address))


def refused(what: str) -> SignatureError:
    """Return the error for something that was fetched and carries a wrong signature."""
    return SignatureError(
        f"Refused to unpickle {what}: the data found at its address does not carry this queue's"
        " signature, so somebody has changed it. q.dead() lists such data. Find out who else can"
        " write there, then create a new TaskQueue, which sends the data again."
    )


class ValueReader:
    """Reads and frees values on the server and at a URL.

    Parameters
    ----------
    server
        For values on the server.
    url
        For all others; None if this process was given no such URL.
    """

    def __init__(self, server: ServerBackend, url: UrlBackend | None) -> None:
        self._server = server
        self._url = url

    def read(self, address: ValueAddress) -> Any:
        """Return the value in memory of the caller's own; None if it is gone."""
        return self._backend(address).read(address)

    def free(self, address: ValueAddress) -> None:
        """Delete the value soon."""
        self._backend(address).free(address)

    def _backend(self, address: ValueAddress) -> ServerBackend | UrlBackend:
        if address[0].startswith("server:"):
            return self._server
        if self._url is None:
            raise NbstreamqError(
                f"A large value is at {hide_password(address[0])}, but this process has no URL for"
                " large values. Set NBSTREAMQ_STORE to the same URL for all clients and workers."
            )
        return self._url


class SharedReader(ValueReader):
    """Reads values once for this machine: further readers map what the first one has fetched.

    Parameters
    ----------
    server, url
        As those of a `ValueReader`.
    signer
        Of the queue: no other queue reads the same files.
    files
        Where fetched values are kept.
    """

    def __init__(
        self, server: ServerBackend, url: UrlBackend | None, signer: Signer, files: FetchedFiles
    ) -> None:
        super().__init__(server, url)
        self._signer = signer
        self._files = files

    def read(self, address: ValueAddress) -> Any:
        backend = self._backend(address)
        # Only a process with the queue's secret can tell the name.
        name = self._signer.sign(b"fetched", address[0].encode()).hex()
        return self._files.read(name, address[1], lambda: backend.read(address))


# -- the server --------------------------------------------------------------------------------

#: Asks the server something, and returns its answer.
Ask = Callable[[Callable[[Store], Any]], Any]
#: Carries something out at the server; the number is about how many bytes that sends.
Tell = Callable[[Callable[[Store], object], int], object]


class ServerBackend:
    """Keeps values on the server, for a week at most.

    Parameters
    ----------
    ask
        Returns the server's answer.
    tell
        Carries something out there before anything that is told, or submitted, later.
    free
        Carries something out there soon, and never waits.
    session
        The client's session that the values come from, or go to.
    """

    min_external_bytes = MIN_EXTERNAL_BYTES

    def __init__(self, ask: Ask, tell: Tell, free: Tell, session: str = "") -> None:
        self._ask = ask
        self._tell = tell
        self._free = free
        self._session = session

    def write(self, data: memoryview) -> str:
        """Keep a copy of `data`; return its address, which is never used again."""
        name = uuid.uuid4().hex
        self.keep(name, data)
        return f"server:{name}"

    def keep(self, name: str, data: memoryview) -> None:
        """Keep a copy of `data` under a name, the last part last."""
        for k, part in enumerate(_parts(data.nbytes)):
            self._put(f"{name}.{k}", bytes(data[part]))

    def _put(self, name: str, data: bytes) -> None:
        self._tell(lambda store: store.put_value(name, data), len(data))

    def read(self, address: ValueAddress) -> bytearray | None:
        """Return the value in a buffer of the caller's own; None if it is gone."""
        found = bytearray(address[1])
        for name, part in zip(_part_names(address), _parts(len(found)), strict=True):
            data = self._get(name)
            if data is None:
                return None
            found[part] = data
        return found

    def _get(self, name: str) -> bytes | None:
        data: bytes | None = self._ask(lambda store: store.get_value(name))
        return data

    def free(self, address: ValueAddress) -> None:
        """Delete the value soon. The garbage collector calls this: in any thread, at any time."""
        self._free(lambda store: store.drop_values(self._session, _part_names(address)), 0)

    def close(self) -> None:
        """Do nothing: what is left expires."""


class DurableValues(ServerBackend):
    """Keeps values on the server for a week from their last use, each content once.

    Its address is made of its content. So another kernel that sends the same value, such as one
    that resumes a named job, finds it there.
    """

    def write(self, data: memoryview) -> str:
        """Keep a copy of `data`, unless the server has one; return its address."""
        content = xxhash.xxh3_128_digest(data)
        name: str = self._ask(lambda store: store.value_name(content))
        address = f"server:{name}", data.nbytes
        if not self._ask(lambda store: store.renew_values(_part_names(address))):
            self.keep(name, data)
        return address[0]


class ServerResults(ServerBackend):
    """Keeps large results of a session, which deletes at its end those that it has not read."""

    def _put(self, name: str, data: bytes) -> None:
        self._tell(lambda store: store.put_result(self._session, name, data), len(data))


def _parts(size: int) -> Iterator[slice]:
    return (slice(begin, begin + PART_BYTES) for begin in range(0, size, PART_BYTES))


def server_parts(addresses: Iterable[ValueAddress]) -> list[str]:
    """Return the names of all parts of those values that are on the server."""
    on_server = [address for address in addresses if address[0].startswith("server:")]
    return [name for address in on_server for name in _part_names(address)]


def last_part(address: ValueAddress) -> str:
    """Return the name of the part of a value on the server that is written last."""
    return _part_names(address)[-1]


def _part_names(address: ValueAddress) -> list[str]:
    name = address[0].partition(":")[2]
    return [f"{name}.{k}" for k, _ in enumerate(_parts(address[1]))]


# -- fsspec URLs -------------------------------------------------------------------------------


def _has_buckets(fs: Any) -> bool:
    """Return whether files need no folders; making one would make the bucket, misspelt or not."""
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"s3", "gs", "az"}.isdisjoint(names)


class UrlBackend:
    """Keeps values under an fsspec URL, such as ``s3://bucket/folder`` or ``file:///mnt/shared``.

    Parameters
    ----------
    url
        Of a folder.
    session
        The client's session; its values are in a folder of that name.
    signer
        Signs what is written and checks what is read.
    free
        Carries something out soon, and never waits.
    """

    min_external_bytes = MIN_EXTERNAL_BYTES

    def __init__(self, url: Address, session: str, signer: Signer, free: Tell) -> None:
        self._root = url
        self._session = session
        self._signer = signer
        self._free = free

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the session's folder; opened late, since some take a second."""
        from fsspec.core import url_to_fs

        try:
            fs, folder = url_to_fs(self._root.reveal())
        except Exception as error:  # noqa: BLE001 - every kind of URL has errors of its own
            raise NbstreamqError(
                f"fsspec can't open {self._root}: {error}. Check the URL, and install the package"
                " that fsspec needs for this kind of URL."
            ) from without_frames(error)
        return fs, f"{folder}/{self._session}"

    def check(self) -> None:
        """Raise `NbstreamqError` if the URL can't be opened."""
        _ = self._opened

    def write(self, data: memoryview) -> str:
        """Keep a copy of `data`; return its address, which is never used again."""
        fs, folder = self._opened
        name = uuid.uuid4().hex
        try:
            if not _has_buckets(fs):
                fs.makedirs(folder, exist_ok=True)
            with fs.open(f"{folder}/{name}", "wb") as file:
                file.write(self._signer.sign(b"value", name.encode(), data))
                file.write(data)
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failed("write", error) from without_frames(error)
        # Without the password, which a reader has in its own URL.
        return hide_password(f"{self._root.reveal().rstrip('/')}/{self._session}/{name}")

    def read(self, address: ValueAddress) -> bytearray | None:
        """Return the value in a buffer of the caller's own; None if it is gone."""
        url, size = address
        found, fs, path = bytearray(size), self._opened[0], self._path(url)
        fs.invalidate_cache()  # Others write there, too.
        try:
            with fs.open(path, "rb") as file:
                signature = file.read(SIGNATURE_BYTES)
                n_read = 0
                while n := file.readinto(memoryview(found)[n_read : n_read + PART_BYTES]):
                    n_read += n
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failed("read", error) from without_frames(error)
        self._signer.check(signature, b"value", url.rpartition("/")[2].encode(), found)
        return found

    def _failed(self, what: str, error: Exception) -> NbstreamqError:
        return NbstreamqError(
            f"A large value can't be {'written to' if what == 'write' else 'read from'}"
            f" {self._root}: {type(error).__name__}: {error}. Check that clients and workers may"
            f" {what} there, and that there is room."
        )

    def _path(self, url: str) -> Any:
        return self._opened[0]._strip_protocol(url)  # noqa: SLF001 - as fsspec's own tools do it

    def free(self, address: ValueAddress) -> None:
        """Delete the value soon. The garbage collector calls this: in any thread, at any time."""
        self._free(lambda _: self._remove(self._path(address[0])), 0)

    def close(self) -> None:
        """Delete the session's folder."""
        self._free(lambda _: self._remove(self._opened[1], recursive=True), 0)

    def _remove(self, path: str, *, recursive: bool = False) -> None:
        fs = self._opened[0]
        try:
            fs.invalidate_cache()
            fs.rm(path, recursive=recursive)
        except FileNotFoundError:
            return
        except Exception as error:  # noqa: BLE001 - as above
            warnings.warn(f"Large values at {path} can't be deleted: {error!r}", stacklevel=2)


#: Where large values go.
ValueBackend = MappedFiles | ServerBackend | UrlBackend


def check_fsspec(parameter: str, url: Address) -> None:
    """Raise ValueError if fsspec does not know this kind of URL, or lacks a library for it.

    Parameters
    ----------
    parameter
        What the URL was given as, for the message: ``"store"``, ``"NBSTREAMQ_STORE"``.
    """
    try:
        from fsspec import get_filesystem_class

        for kind in url.reveal().partition("://")[0].split("::"):
            get_filesystem_class(kind)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{parameter} must be a URL that fsspec can open: {error}. Run `pip install"
            " 'nbstreamq[fsspec]'`, or 'nbstreamq[s3]' for S3, and install the package that fsspec"
            " needs for another URL, here and where workers run."
        ) from None
