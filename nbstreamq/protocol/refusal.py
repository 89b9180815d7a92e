"""What arrives without this queue's signature: set aside, counted, never unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ..errors import SecretMismatch, ServerRefused, SignatureError
from . import scripts
from .connection import Wire
from .keys import WEEK, Keys, session_of, tail_of
from .messages import Event, Fields
from .replies import mapping
from .seen import Seen
from .settlement import KEPT_BYTES, Delivery, Settlement
from .signing import Signer
from .unsigned import count, printable

__all__ = ["DEAD_ENTRIES", "PIECE_BYTES", "REPLAYED", "Refusal"]

#: Bytes that are read at a time of what is too large for one reply.
PIECE_BYTES = 2**18

#: About how many entries the dead stream keeps: the newest. More keeps evidence for longer.
DEAD_ENTRIES = 1000
#: Most bytes that are shown of a kind of message: others may have written any.
_KIND_BYTES = 200
#: Why a copy was refused.
REPLAYED = (
    "A message that was dealt with before was refused. Likely cause: somebody who can write to the"
    " server put a copy there."
)


class Refusal:
    """Sets aside what is refused; the part of `Store` that both sides need.

    An entry of the dead stream begins with why and from where: ``refused <reason> from <key>``.
    """

    keys: Keys
    _wire: Wire
    _signer: Signer
    _seen: Seen

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
            " another, or has got a new one. Set NBSTREAMQ_SECRET to the same value here and where"
            " the queue is used. If nobody needs what the queue holds, delete it:"
            f" `nbstreamq queues delete {self.keys.queue}`, with the server's URL if you gave one."
        )

    def refused(self) -> dict[str, int]:
        """Return kind of message -> how many were refused, by all clients and workers."""
        counts = mapping(self._wire.call(("HGETALL", self.keys.refused))[0])
        return {
            printable(kind[:_KIND_BYTES]): count(n) for kind, n in counts.items() if n.isdigit()
        }

    def _refuse(self, kind: str, stream: str, entry_id: bytes, error: Exception) -> bool:
        """Move an entry of `stream` to the dead stream, unless somebody else just did.

        Returns
        -------
        bool
            False, and nothing done, if the queue has got a secret that we don't know: others may.
        """
        keys = self.keys
        if str(error) == REPLAYED:
            kind = f"replayed {kind}"
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

    def _event(self, field: Fields, home: str, *place: object) -> Event:
        """Return an event; `SignatureError` if it is not signed, a copy, or not sent to `home`.

        Parameters
        ----------
        place
            Where in that stream it was read.
        """
        event = Event.decode(field, self._signer)
        if session_of(event.job) != home:
            raise SignatureError(f"An event of {event.job} was refused: it was sent to {home}.")
        self._check_new(field[1], home, *place)
        return event

    def _check_new(self, signature: bytes, *place: object) -> None:
        if self._seen.is_copy(signature, *place):
            raise SignatureError(REPLAYED)

    def _entry_in_pieces(self, stream: str, start: bytes) -> tuple[bytes, Fields] | None:
        """Return the first entry of a stream from `start` on, which one reply can't carry."""
        found = self._wire.call(scripts.piece(stream, start, 0, PIECE_BYTES))[0]
        if not found:
            return None
        entry_id, lengths, data = found
        whole = bytearray(data)
        while len(whole) < sum(lengths):
            found = self._wire.call(scripts.piece(stream, entry_id, len(whole), PIECE_BYTES))[0]
            if not found or found[0] != entry_id:  # it was deleted meanwhile
                return None
            whole += found[2]
        fields, at = [], 0
        for n_bytes in lengths:
            fields.append(bytes(whole[at : at + n_bytes]))
            at += n_bytes
        return entry_id, fields

    def refuse_copy(self, delivery: Delivery) -> None:
        """Move a copy of a task that has been run to the dead stream."""
        lane = self.keys.lane(delivery.lane)
        self._refuse("task", lane, delivery.entry_id, SignatureError(REPLAYED))

    def _note_copies(self, settlements: Sequence[Settlement], replies: list[int]) -> None:
        """Note in the dead stream what a named job had settled already, as a reply of 2 says."""
        for settlement, reply in zip(settlements, replies, strict=True):
            if reply == 2:
                task = replace(settlement.delivery.task, args=b"")  # the job has them
                lane = self.keys.lane(settlement.delivery.lane)
                self._set_aside("replayed task", lane, task.encode(self._signer), REPLAYED)

    def _set_aside(self, kind: str, source: str, fields: Fields, error: str) -> None:
        """Note in the dead stream that `fields`, which are in no stream, were refused."""
        dead, counts = self.keys.dead, self.keys.refused
        kept = [part[:KEPT_BYTES] for part in fields]
        why = ("refused", error, "from", tail_of(source), *kept)
        with suppress(ServerRefused):
            self._wire.call(
                ("XADD", dead, "MAXLEN", "~", DEAD_ENTRIES, "*", *why),
                ("EXPIRE", dead, WEEK),
                ("HINCRBY", counts, kind, 1),
                ("EXPIRE", counts, WEEK),
            )
