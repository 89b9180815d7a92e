"""Large values that others than this machine's processes read: on the server, or at an fsspec URL.

Both carry the queue's signature, which is checked before anything is unpickled.
"""

from __future__ import annotations

import functools
import os
import pickle
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary, finalize

import xxhash

from ..errors import NbstreamqError, SignatureError, ValueMissing
from ..secret import Address, hide_password, without_frames
from ..wire.signing import SIGNATURE_BYTES, Signer
from ..wire.store import Store
from . import mapped_files

#: Of so many places, so many bytes tell whether a value may be known already; the rest of it is
#: compared only then, as that takes a third of the time of writing it.
SAMPLES, SAMPLE_BYTES = 64, 4096

#: Where a value lies, and how many bytes it has.
ValueAddress = tuple[str, int]


class Place(Protocol):
    """Where large values lie.

    Attributes
    ----------
    large
        Bytes from which a buffer, or a whole pickle, is better there than in a message.
    """

    large: int

    def write(self, data: memoryview) -> str:
        """Keep a copy of `data`; return its address, which is never used again."""

    def read(self, handle: ValueAddress) -> Any:
        """Return a private, writable buffer of what lies there; None if that is gone."""

    def free(self, handle: ValueAddress) -> None:
        """Forget it soon. Called by the garbage collector: in any thread, at any time."""

    def close(self) -> None:
        """Leave nothing behind."""


class Reader(Protocol):
    """Reads what others have laid somewhere: see `Place`."""

    def read(self, handle: ValueAddress) -> Any: ...
    def free(self, handle: ValueAddress) -> None: ...


class ExternalValue:
    """A large value at its place.

    Parameters
    ----------
    handle
        Where.
    digest
        Of the content; that of a file is computed when it is wanted.
    alike
        Those with the same samples: they are known as long as one of them is there.
    """

    __slots__ = ("__weakref__", "_alike", "_digest", "handle")

    def __init__(
        self, handle: ValueAddress, digest: bytes = b"", alike: WeakSet[ExternalValue] | None = None
    ) -> None:
        self.handle = handle
        self._digest = digest
        self._alike = alike

    @property
    def digest(self) -> bytes:
        if not self._digest:
            self._digest = xxhash.xxh3_128_digest(mapped_files.read(self.handle) or b"")
        return self._digest


class MessageWithRefs(bytes):
    """A message that keeps alive what it refers to.

    Attributes
    ----------
    held
        `ExternalValue`s, and whatever else holds some.
    """

    held: Sequence[Any]

    @classmethod
    def around(cls, data: bytes, held: Sequence[Any]) -> bytes:
        """Return `data`, as a parcel if there is something to hold."""
        if not held:
            return data
        parcel = cls(data)
        parcel.held = held
        return parcel

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(self),)


def _blobs_of(data: bytes) -> list[ExternalValue]:
    held = data.held if isinstance(data, MessageWithRefs) else ()
    return [one for one in held if isinstance(one, ExternalValue)]


def handles_of(data: bytes) -> tuple[ValueAddress, ...]:
    """Return where those values lie that a message refers to by itself."""
    return tuple(blob.handle for blob in _blobs_of(data))


def digest_of(data: bytes) -> str:
    """Return a digest of those values, in hex."""
    return xxhash.xxh3_128_hexdigest(b"".join(blob.digest for blob in _blobs_of(data)))


def refers(data: bytes) -> bool:
    """Tell whether a message, or one inside of it, may refer to values elsewhere."""
    return _assemble.__name__.encode() in data


def size_of(data: bytes) -> int:
    """Return the bytes of a message and of what it refers to by itself."""
    return len(data) + sum(size for _, size in handles_of(data))


class Blobs:
    """Writes large values, and leaves them to others.

    Parameters
    ----------
    session
        Of the client that they come from, or go to.
    place
        Where they are to lie.
    once
        Whether they are free when they have been read.
    """

    def __init__(self, session: str, place: Place, *, once: bool = False) -> None:
        self.session = session
        self.place = place
        self._once = once

    @functools.cached_property
    def large(self) -> int:
        """Bytes from which a buffer, or a whole pickle, lies outside its message."""
        return self.place.large

    def keep(self, data: memoryview) -> ExternalValue:
        """Write a value."""
        return ExternalValue((self.place.write(data), data.nbytes))

    def pack(
        self,
        body: bytes,
        buffers: Sequence[memoryview],
        what: str,
        *,
        others: Sequence[Any] = (),
        large: int | None = None,
    ) -> bytes:
        """Return a message that stands for a pickle: when unpickled, it gives the value itself.

        Parameters
        ----------
        body, buffers
            The pickle, and what was left out of it.
        what
            The value in words, for the error when a part of it is gone.
        others
            What the message holds besides.
        large
            From how many bytes on the pickle itself lies outside; None: as the place has it.
        """
        large = self.large if large is None else large
        if not buffers and len(body) < large:
            return MessageWithRefs.around(body, others)
        blobs = [self.keep(buffer) for buffer in buffers]
        inside: bytes | None = body
        if len(body) >= large:
            blobs.append(self.keep(memoryview(body)))
            inside = None
        handles = [blob.handle for blob in blobs]
        call = _Call(_assemble, (self.session, self._once, what, inside, handles))
        return MessageWithRefs.around(pickle.dumps(call, 5), (*blobs, *others))


class ValueStore(Blobs):
    """Writes a client's large values, each content once, and frees them with the last parcel."""

    def __init__(self, session: str, place: Place) -> None:
        super().__init__(session, place)
        #: By their samples.
        self._known: WeakValueDictionary[bytes, WeakSet[ExternalValue]] = WeakValueDictionary()

    def keep(self, data: memoryview) -> ExternalValue:
        """Write a value, unless it is there."""
        alike = self._known.setdefault(_sample(data), WeakSet())
        digest = b""
        if alike or not isinstance(self.place, mapped_files.Segments):
            digest = xxhash.xxh3_128_digest(data)
            for known in list(alike):
                if known.digest == digest:
                    return known
        blob = ExternalValue((self.place.write(data), data.nbytes), digest, alike)
        finalize(blob, _free_at_home, self.place, blob.handle, os.getpid()).atexit = False
        alike.add(blob)
        return blob

    def forget(self) -> None:
        """Write each value again when it is wanted next: what was written may be gone."""
        self._known.clear()

    def close(self) -> None:
        """Free all that is left."""
        for alike in list(self._known.values()):
            for blob in list(alike):
                self.place.free(blob.handle)
        self.place.close()


def _sample(data: memoryview) -> bytes:
    """Return a digest of the size, and of some of the content: of all of it, if that is little."""
    found = xxhash.xxh3_128(data.nbytes.to_bytes(8, "little"))
    for start in range(0, data.nbytes, max(SAMPLE_BYTES, data.nbytes // SAMPLES)):
        found.update(data[start : start + SAMPLE_BYTES])
    return found.digest()


def _free_at_home(place: Place, handle: ValueAddress, process: int) -> None:
    if os.getpid() == process:  # a forked one has copies of all its parent holds
        place.free(handle)


class _Call:
    """Pickles as a call."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._reduced = fn, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduced


#: Session -> where this process reads its values from, unless they are files.
_readers: WeakValueDictionary[str, Reader] = WeakValueDictionary()


def register(session: str, reader: Reader) -> None:
    """Have the values of a session read by `reader`, while that lives; the first reads the rest."""
    _readers[session] = reader


def _assemble(
    session: str, once: bool, what: str, body: bytes | None, handles: list[ValueAddress]
) -> Any:
    """Return the value that `Blobs.pack` wrote: this is what its messages call."""
    parts = [_read(session, handle, what) for handle in handles]
    if once:  # not before: if one can't be read now, all are read again later
        for handle in handles:
            _place_of(session, handle).free(handle)
    whole = parts.pop() if body is None else body
    return pickle.loads(whole, buffers=parts)


def _place_of(session: str, handle: ValueAddress) -> Any:
    if mapped_files.is_file(handle[0]):
        return mapped_files
    return _readers.get(session) or next(iter(_readers.values()), None)


def _read(session: str, handle: ValueAddress, what: str) -> Any:
    address, size = handle
    place = _place_of(session, handle)
    try:
        found = None if place is None else place.read(handle)
    except SignatureError as error:
        raise refused(what) from error
    if found is None:
        raise ValueMissing(
            f"{what} can't be had: {size:,} bytes of it are not at {hide_password(address)} any"
            " more. The queue that sent it was shut down, its kernel has ended, or the server lost"
            " it; or it is a Ref of another queue. Submit the call again."
        )
    return found


def refused(what: str) -> SignatureError:
    """Return what is said when something that was fetched carries a wrong signature."""
    return SignatureError(
        f"Refused, and not unpickled: {what}. What lies in its place does not carry this queue's"
        " signature. Somebody changed it there, see q.dead(). Make another TaskQueue, which sends"
        " it anew, and look who else can write there."
    )


#: Bytes of a value in one key: the server serves nobody else meanwhile. What all on the way copy is
#: memory that is used again: it is new with larger parts, which take twice as long. Smaller ones
#: need more round trips.
PART_BYTES = 4 * 2**20

#: Bytes that are worth a way of their own to the server, or to a URL, each time.
LARGE = 2**18

#: Asks the server something, and returns its answer.
Ask = Callable[[Callable[[Store], Any]], Any]
#: Carries something out at the server; the number is about how many bytes that sends.
Tell = Callable[[Callable[[Store], object], int], object]


class ServerPlace:
    """On the server, for a week at most.

    Parameters
    ----------
    ask
        Returns the server's answer.
    tell
        Has something done there before whatever is told, or submitted, next.
    free
        Has something done there soon, and never waits.
    session
        Of the client that the values come from, or go to.
    """

    large = LARGE

    def __init__(self, ask: Ask, tell: Tell, free: Tell, session: str = "") -> None:
        self._ask = ask
        self._tell = tell
        self._free = free
        self._session = session

    def write(self, data: memoryview) -> str:
        name = uuid.uuid4().hex
        for k, part in enumerate(_parts(data.nbytes)):
            self._put(f"{name}.{k}", bytes(data[part]))
        return f"server:{name}"

    def _put(self, name: str, data: bytes) -> None:
        self._tell(lambda store: store.put_blob(name, data), len(data))

    def read(self, handle: tuple[str, int]) -> bytearray | None:
        found = bytearray(handle[1])
        for name, part in zip(_names(handle), _parts(len(found)), strict=True):
            data = self._get(name)
            if data is None:
                return None
            found[part] = data
        return found

    def _get(self, name: str) -> bytes | None:
        data: bytes | None = self._ask(lambda store: store.get_blob(name))
        return data

    def free(self, handle: tuple[str, int]) -> None:
        self._free(lambda store: store.drop_values(self._session, _names(handle)), 0)

    def close(self) -> None:
        """Do nothing: what is left expires."""


class ResultsOnServer(ServerPlace):
    """Where a worker lays the large results of a session: that deletes what it has not read."""

    def _put(self, name: str, data: bytes) -> None:
        self._tell(lambda store: store.put_result(self._session, name, data), len(data))


def refers_to_server(data: bytes) -> bool:
    """Tell whether a message may refer to values that lie on the server."""
    return b"server:" in data and refers(data)


def _parts(size: int) -> Iterator[slice]:
    return (slice(begin, begin + PART_BYTES) for begin in range(0, size, PART_BYTES))


def _names(handle: tuple[str, int]) -> list[str]:
    name = handle[0].partition(":")[2]
    return [f"{name}.{k}" for k, _ in enumerate(_parts(handle[1]))]


def check_fsspec(parameter: str, url: Address) -> None:
    """Raise ValueError if fsspec has nothing for such a URL, or lacks a library for it.

    Parameters
    ----------
    parameter
        Where it was given, for the message: ``"store"``, ``"NBSTREAMQ_STORE"``.
    """
    try:
        from fsspec import get_filesystem_class

        for kind in url.reveal().partition("://")[0].split("::"):
            get_filesystem_class(kind)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{parameter} must be a URL that fsspec can open: {error}. Run `pip install"
            " 'nbstreamq[fsspec]'`, and what fsspec wants for this URL, here and where workers run."
        ) from None


class UrlPlace:
    """Under an fsspec URL, such as ``s3://bucket/folder`` or ``file:///mnt/shared``.

    Parameters
    ----------
    url
        Of a folder.
    session
        Of the client.
    signer
        Signs what is written and checks what is read.
    """

    large = LARGE

    def __init__(self, url: Address, session: str, signer: Signer, free: Tell) -> None:
        from fsspec.core import url_to_fs

        try:
            self._fs, folder = url_to_fs(url.reveal())
        except Exception as error:  # noqa: BLE001 - every kind of URL has errors of its own
            raise NbstreamqError(
                f"{url} can't be opened by fsspec: {error}. Look at the URL, and whether the"
                " package that fsspec wants for that kind of URL is installed."
            ) from without_frames(error)
        self._folder = f"{folder}/{session}"
        self._url = Address(f"{url.reveal().rstrip('/')}/{session}")
        self._signer = signer
        self._free = free

    def write(self, data: memoryview) -> str:
        name = uuid.uuid4().hex
        self._fs.makedirs(self._folder, exist_ok=True)
        with self._fs.open(f"{self._folder}/{name}", "wb") as file:
            file.write(self._signer.sign(b"blob", name.encode(), data))
            file.write(data)
        return f"{self._url}/{name}"  # without the password, which a reader has in its own URL

    def read(self, handle: tuple[str, int]) -> bytearray | None:
        address, size = handle
        path = self._fs._strip_protocol(address)  # noqa: SLF001 - that is how fsspec's own tools do it
        name = address.rpartition("/")[2]
        found = bytearray(size)
        try:
            with self._fs.open(path, "rb") as file:
                signature = file.read(SIGNATURE_BYTES)
                n_read = 0
                while n := file.readinto(memoryview(found)[n_read:]):
                    n_read += n
        except FileNotFoundError:
            return None
        self._signer.check(signature, b"blob", name.encode(), found)
        return found

    def free(self, handle: tuple[str, int]) -> None:
        path = self._fs._strip_protocol(handle[0])  # noqa: SLF001
        self._free(lambda _: self._remove(path), 0)

    def close(self) -> None:
        """Delete the session's folder."""
        self._free(lambda _: self._remove(self._folder), 0)

    def _remove(self, path: str) -> None:
        try:
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)
        except Exception as error:  # noqa: BLE001 - every kind of URL has errors of its own
            warnings.warn(f"{path} can't be deleted: {error!r}", stacklevel=2)


class Everywhere:
    """Reads values from wherever they lie.

    Parameters
    ----------
    server
        For what is on the server.
    url
        For the rest; None if this process was given no such URL.
    """

    def __init__(self, server: ServerPlace, url: UrlPlace | None) -> None:
        self._server = server
        self._url = url

    def _place(self, handle: tuple[str, int]) -> ServerPlace | UrlPlace:
        if handle[0].startswith("server:"):
            return self._server
        if self._url is None:
            raise NbstreamqError(
                f"A value lies at {hide_password(handle[0])}, and this process was not told of"
                " such a place. Set NBSTREAMQ_STORE for all clients and workers alike."
            )
        return self._url

    def read(self, handle: tuple[str, int]) -> bytearray | None:
        return self._place(handle).read(handle)

    def free(self, handle: tuple[str, int]) -> None:
        self._place(handle).free(handle)
