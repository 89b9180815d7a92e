"""Functions and large values: each under a key of its own, signed, for a week."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import SignatureError
from .connection import MessageTooLarge
from .keys import WEEK
from .refusal import PIECE_BYTES, Refusal
from .replies import mapping

__all__ = ["Values"]

#: Seconds that a large value may take on its way.
LARGE_TIMEOUT = 60.0


class Values(Refusal):
    """The part of `Store` that keeps functions and values by digest."""

    def put_function(self, digest: str, data: bytes) -> None:
        """Keep a pickled function for a week from now."""
        self._put(self.keys.function(digest), b"function", digest, data)

    def get_function(self, digest: str) -> bytes | None:
        """Return a pickled function; None if the server does not hold it.

        Raises
        ------
        SignatureError
            It is not signed with this queue's secret.
        SecretMismatch
            The queue has got another secret since.
        """
        return self._get(self.keys.function(digest), b"function", digest)

    def put_blob(self, digest: str, data: bytes) -> None:
        """Keep a pickled value for a week from now."""
        self._put(self.keys.blob(digest), b"blob", digest, data)

    def get_blob(self, digest: str) -> bytes | None:
        """Return a pickled value; None if the server does not hold it; raises as `get_function`."""
        return self._get(self.keys.blob(digest), b"blob", digest)

    def put_result(self, session: str, digest: str, data: bytes) -> None:
        """Keep a result as `put_blob` does; the session deletes it, read or not, when it ends."""
        # The name first: a worker may die between the two.
        key = self.keys.results(session)
        self._wire.call(("HSET", key, digest, ""), ("EXPIRE", key, WEEK))
        self.put_blob(digest, data)

    def drop_values(self, session: str, digests: Iterable[str] | None = None) -> None:
        """Forget values of a session; None: all results that it has not read."""
        key = self.keys.results(session)
        if digests is None:
            unread = mapping(self._wire.call(("HGETALL", key))[0])
            digests = [name.decode(errors="replace") for name in unread]
        if names := list(digests):
            self._wire.call(("DEL", *map(self.keys.blob, names)), ("HDEL", key, *names))

    def _put(self, key: str, kind: bytes, digest: str, data: bytes) -> None:
        sealed = self._signer.seal(kind, digest.encode(), data)
        self._wire.call(("SET", key, sealed, "EX", WEEK), timeout=LARGE_TIMEOUT)

    def _read_value(self, key: str) -> bytes | None:
        try:
            sealed: bytes | None = self._wire.call(
                ("GET", key), timeout=LARGE_TIMEOUT, may_be_large=True
            )[0]
        except MessageTooLarge:
            whole = bytearray()
            while part := self._wire.call(
                ("GETRANGE", key, len(whole), len(whole) + PIECE_BYTES - 1)
            )[0]:
                whole += part
            return bytes(whole) or None
        return sealed

    def _get(self, key: str, kind: bytes, digest: str) -> bytes | None:
        sealed = self._read_value(key)
        try:
            return None if sealed is None else self._signer.unseal(kind, digest.encode(), sealed)
        except SignatureError as error:
            self.check_secret(write=False)
            self._set_aside(kind.decode(), key, [b"value", sealed or b""], str(error))
            raise
