"""What arrives without this queue's signature: set aside, counted, never unpickled."""

from __future__ import annotations

from contextlib import suppress

from ..errors import SecretMismatch, ServerRefused
from . import scripts
from .connection import Wire
from .keys import WEEK, Keys, tail_of
from .settlement import KEPT_BYTES
from .signing import Signer

__all__ = ["DEAD_ENTRIES", "Refusal"]

#: About how many entries the dead stream keeps: the newest. More keeps evidence for longer.
DEAD_ENTRIES = 1000


class Refusal:
    """Sets aside what is refused; the part of `Store` that both sides need.

    An entry of the dead stream begins with why and from where: ``refused <reason> from <key>``.
    """

    keys: Keys
    _wire: Wire
    _signer: Signer

    def check_secret(self, *, write: bool = True) -> None:
        """Raise `SecretMismatch` unless the queue was made with this secret, or is new.

        Parameters
        ----------
        write
            Whether a new queue gets this secret, and one with an older of ours gets the first.
        """
        mine, *others = self._signer.fingerprints()
        command = scripts.admit(self.keys.meta, int(write), mine, others)
        if not self._wire.call(command)[0]:
            raise self._mismatch()

    def _mismatch(self) -> SecretMismatch:
        return SecretMismatch(
            f"Queue {self.keys.queue!r} has another secret than this process: it was made with"
            " another, or has got a new one. Give all the same: set NBSTREAMQ_SECRET to the same"
            " value here and there."
        )

    def refused(self) -> dict[str, int]:
        """Return kind of message -> how many were refused, by all clients and workers."""
        flat = self._wire.call(("HGETALL", self.keys.refused))[0]
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {kind.decode(errors="replace"): int(n) for kind, n in pairs if n.isdigit()}

    def _refuse(self, kind: str, stream: str, entry_id: bytes, error: Exception) -> bool:
        """Move an entry of `stream` to the dead stream, unless somebody else just did.

        Returns
        -------
        bool
            False, and nothing done, if the queue has got a secret that we don't know: others may.
        """
        keys = self.keys
        command = scripts.refuse(
            stream,
            keys.dead,
            keys.refused,
            keys.meta,
            entry_id,
            str(error),
            kind,
            tail_of(stream),
            self._signer.fingerprints(),
        )
        # The server may be full, or forbid us that: what is sound goes on all the same.
        with suppress(ServerRefused):
            return bool(self._wire.call(command)[0] >= 0)
        return True

    def _set_aside(self, kind: str, source: str, data: bytes, error: str) -> None:
        """Note in the dead stream that `data`, which is in no stream, was refused."""
        dead, counts = self.keys.dead, self.keys.refused
        why = ("refused", error, "from", tail_of(source), "value", data[:KEPT_BYTES])
        with suppress(ServerRefused):
            self._wire.call(
                ("XADD", dead, "MAXLEN", "~", DEAD_ENTRIES, "*", *why),
                ("EXPIRE", dead, WEEK),
                ("HINCRBY", counts, kind, 1),
                ("EXPIRE", counts, WEEK),
            )
