"""Large values that others than this machine's processes read: on the server, or at an fsspec URL.

Both carry the queue's signature, which is checked before anything is unpickled.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import NbstreamqError
from ..protocol.signing import SIGNATURE_BYTES, Signer
from ..protocol.store import Store
from ..secret import Address, hide_password, without_frames
from .blobs import refers

__all__ = [
    "LARGE",
    "Ask",
    "Everywhere",
    "ResultsOnServer",
    "ServerPlace",
    "Tell",
    "UrlPlace",
    "check_fsspec",
    "refers_to_server",
]

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
