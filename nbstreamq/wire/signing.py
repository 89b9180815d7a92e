"""Which messages were read before, so that a copy of one is known.

A signature tells a message from all others: no process signs the same twice.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import stat
import struct
from hmac import compare_digest
from pathlib import Path

from blake3 import blake3

from ..errors import SecretTooWeak, SignatureError
from ..secret import Secret
from ..settings import Settings

#: 128 bits: forging one takes 2**128 tries on average.
SIGNATURE_BYTES = 16


class Signer:
    """Signs and checks the messages of one queue.

    Parameters
    ----------
    secret
        Shared by all clients and workers of the queue. Several, separated by commas: the first one
        signs, and what any of them has signed is accepted. So a secret can be changed.
    queue
        Name of the queue; a message of another queue is refused, same secret or not.
    """

    def __init__(self, secret: Secret | str, queue: str) -> None:
        secret = Secret(secret)
        self._keyed = [_keyed(one, queue) for one in secret.parts() or [secret]]

    def __repr__(self) -> str:
        return "<Signer>"

    def sign(self, kind: bytes, *parts: bytes | bytearray | memoryview) -> bytes:
        """Return the signature of `parts` as a message of `kind`."""
        # The lengths make the framing unambiguous: no two lists of parts join to the same bytes.
        sizes = struct.pack(f"<{1 + len(parts)}Q", len(kind), *map(len, parts))
        mac = self._keyed[0].copy()
        for piece in (sizes, kind, *parts):
            mac.update(piece)
        return mac.digest(SIGNATURE_BYTES)

    def check(self, signature: bytes, kind: bytes, *parts: bytes | bytearray | memoryview) -> None:
        """Raise `SignatureError` unless `signature` is that of `parts` as a message of `kind`."""
        # As in `sign`, without another call for each message.
        sizes = struct.pack(f"<{1 + len(parts)}Q", len(kind), *map(len, parts))
        for keyed in self._keyed:
            mac = keyed.copy()
            for piece in (sizes, kind, *parts):
                mac.update(piece)
            if compare_digest(signature, mac.digest(SIGNATURE_BYTES)):
                return
        raise SignatureError(
            f"A {kind.decode()} message without this queue's signature was refused."
            " Likely cause: it was written by a process with another secret."
        )

    def seal(self, kind: bytes, name: bytes, data: bytes) -> bytes:
        """Return `data` with its signature in front, bound to `kind` and `name`."""
        return self.sign(kind, name, data) + data

    def unseal(self, kind: bytes, name: bytes, sealed: bytes) -> bytes:
        """Return what `seal` was given; `SignatureError` if it was not sealed with this secret."""
        data = sealed[SIGNATURE_BYTES:]
        self.check(sealed[:SIGNATURE_BYTES], kind, name, data)
        return data

    def fingerprints(self) -> list[bytes]:
        """Return what tells secrets apart without giving any away, in their order."""
        framed = struct.pack("<Q", len(b"fingerprint")) + b"fingerprint"
        return [keyed.copy().update(framed).digest(SIGNATURE_BYTES) for keyed in self._keyed]


def _keyed(secret: Secret, queue: str) -> blake3:
    name = queue.encode()
    return blake3(
        struct.pack("<Q", len(name)) + name, key=blake3(secret.reveal().encode()).digest()
    )


def load_secret(settings: Settings) -> Secret:
    """Return the secret from the environment, or else from the key file, made if there is none.

    Raises
    ------
    PermissionError
        The key file is not a regular file of this user that only this user can read.
    SecretTooWeak
        It does not hold what `new_secret` makes, or something as long.
    """
    if settings.secret:
        return settings.secret
    path = settings.data_dir / "secret"
    try:
        return _read_private(path)
    except (FileNotFoundError, NotADirectoryError):
        try:
            _create_private(path, Secret(secrets.token_hex(32)))
        except OSError as error:
            raise PermissionError(
                f"The key file {path} can't be made: {error.strerror}. Set NBSTREAMQ_DATA_DIR to a"
                " folder of yours where you may write, or set NBSTREAMQ_SECRET."
            ) from None
        return _read_private(path)


def _read_private(path: Path) -> Secret:
    try:
        # Not through a link, and without waiting for who may write to a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise PermissionError(
            f"The key file {path} is a link, and where it leads can be changed unnoticed. Put a"
            " file there, with mode 600, or set NBSTREAMQ_SECRET."
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(
                f"The key file {path} is not a file of this user: remove it, and a new one is made;"
                " or set NBSTREAMQ_SECRET."
            )
        if found.st_mode & 0o077:
            raise PermissionError(
                f"{path} can be read by others; make it private: chmod 600 {path}"
            )
        secret = Secret(file.read().decode(errors="replace").strip())
    if not secret.is_strong():
        raise SecretTooWeak(
            f"The key file {path} is empty, cut off, or holds less than 16 random bytes, so it"
            " could be guessed. Remove it, and a new one is made; or write the output of"
            " `nbstreamq secret` into it."
        )
    return secret


def _create_private(path: Path, secret: Secret) -> None:
    """Write a new 0600 file whole or not at all; the first of several processes wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret.reveal())
            file.flush()
            # Before it has its name: after a power failure there is no empty file of that name.
            os.fsync(descriptor)
        os.link(draft, path)  # unlike a rename, leaves the file of another process alone
        _sync_folder(path.parent)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: How much of a signature is looked at: enough that two in a table are hardly ever the same.
DIGEST_BYTES = 8
#: About how many are remembered, the newest. Each takes 16 bytes, once it is there.
N_SEEN = 2**16


class ReplayCache:
    """The signatures that were read, and where.

    Each has one place in the table, and overwrites what stood there.
    """

    def __init__(self) -> None:
        self._digests = memoryview(mmap.mmap(-1, 8 * N_SEEN)).cast("Q")
        self._places = memoryview(mmap.mmap(-1, 8 * N_SEEN)).cast("q")

    def is_copy(self, signature: bytes, *place: object) -> bool:
        """Return whether a signature was read at another place; after a lost reply it is the same.

        Parameters
        ----------
        signature
            Or what begins with it.
        place
            Which entry of which stream.
        """
        digest, here = int.from_bytes(signature[:DIGEST_BYTES]), hash(place)
        at = digest % N_SEEN
        if self._digests[at] == digest:
            return self._places[at] != here
        self._digests[at], self._places[at] = digest, here
        return False
