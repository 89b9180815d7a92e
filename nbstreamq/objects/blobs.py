"""Large values: they lie outside the message that refers to them, each once, until it is gone.

::

    value ──pickle 5──> body, buffers ──Keeper──> a place: files, the server, or an fsspec URL
                          │                          │
                          └──> message: addresses ───┴──> body, buffers ──> value

A `Parcel` is such a message: bytes, as others are. What it refers to is freed when nobody holds it
any more. So a large value lives as long as what may still be sent, run again, or asked for.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary, finalize

import xxhash

from ..errors import SignatureError, ValueMissing
from ..secret import hide_password
from . import segments

__all__ = [
    "Blob",
    "Blobs",
    "Handle",
    "Keeper",
    "Parcel",
    "Place",
    "digest_of",
    "handles_of",
    "refers",
    "refused",
    "register",
    "size_of",
]

#: Of so many places, so many bytes tell whether a value may be known already; the rest of it is
#: compared only then, as that takes a third of the time of writing it.
SAMPLES, SAMPLE_BYTES = 64, 4096

#: Where a value lies, and how many bytes it has.
Handle = tuple[str, int]


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

    def read(self, handle: Handle) -> Any:
        """Return a private, writable buffer of what lies there; None if that is gone."""

    def free(self, handle: Handle) -> None:
        """Forget it soon. Called by the garbage collector: in any thread, at any time."""

    def close(self) -> None:
        """Leave nothing behind."""


class Reader(Protocol):
    """Reads what others have laid somewhere: see `Place`."""

    def read(self, handle: Handle) -> Any: ...
    def free(self, handle: Handle) -> None: ...


class Blob:
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
        self, handle: Handle, digest: bytes = b"", alike: WeakSet[Blob] | None = None
    ) -> None:
        self.handle = handle
        self._digest = digest
        self._alike = alike

    @property
    def digest(self) -> bytes:
        if not self._digest:
            self._digest = xxhash.xxh3_128_digest(segments.read(self.handle) or b"")
        return self._digest


class Parcel(bytes):
    """A message that keeps alive what it refers to.

    Attributes
    ----------
    held
        `Blob`s, and whatever else holds some.
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


def _blobs_of(data: bytes) -> list[Blob]:
    held = data.held if isinstance(data, Parcel) else ()
    return [one for one in held if isinstance(one, Blob)]


def handles_of(data: bytes) -> tuple[Handle, ...]:
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

    def keep(self, data: memoryview) -> Blob:
        """Write a value."""
        return Blob((self.place.write(data), data.nbytes))

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
            return Parcel.around(body, others)
        blobs = [self.keep(buffer) for buffer in buffers]
        inside: bytes | None = body
        if len(body) >= large:
            blobs.append(self.keep(memoryview(body)))
            inside = None
        handles = [blob.handle for blob in blobs]
        call = _Call(_assemble, (self.session, self._once, what, inside, handles))
        return Parcel.around(pickle.dumps(call, 5), (*blobs, *others))


class Keeper(Blobs):
    """Writes a client's large values, each content once, and frees them with the last parcel."""

    def __init__(self, session: str, place: Place) -> None:
        super().__init__(session, place)
        #: By their samples.
        self._known: WeakValueDictionary[bytes, WeakSet[Blob]] = WeakValueDictionary()

    def keep(self, data: memoryview) -> Blob:
        """Write a value, unless it is there."""
        alike = self._known.setdefault(_sample(data), WeakSet())
        digest = b""
        if alike or not isinstance(self.place, segments.Segments):
            digest = xxhash.xxh3_128_digest(data)
            for known in list(alike):
                if known.digest == digest:
                    return known
        blob = Blob((self.place.write(data), data.nbytes), digest, alike)
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


def _free_at_home(place: Place, handle: Handle, process: int) -> None:
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
    session: str, once: bool, what: str, body: bytes | None, handles: list[Handle]
) -> Any:
    """Return the value that `Blobs.pack` wrote: this is what its messages call."""
    parts = [_read(session, handle, what) for handle in handles]
    if once:  # not before: if one can't be read now, all are read again later
        for handle in handles:
            _place_of(session, handle).free(handle)
    whole = parts.pop() if body is None else body
    return pickle.loads(whole, buffers=parts)


def _place_of(session: str, handle: Handle) -> Any:
    if segments.is_file(handle[0]):
        return segments
    return _readers.get(session) or next(iter(_readers.values()), None)


def _read(session: str, handle: Handle, what: str) -> Any:
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
