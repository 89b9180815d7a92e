"""The dead stream: what was refused, and what was given up, until a week after the last of them.

An entry that was refused begins with ``refused <reason> from <key>``, and what it was follows. One
that was given up is one field, the sealed task and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SignatureError
from .keys import WEEK
from .messages import Fields, Task
from .refusal import DEAD_ENTRIES, Refusal
from .settlement import GivenUp, Settlement

__all__ = ["Dead", "DeadEntry"]

#: Most bytes that are shown of a text that somebody else wrote.
_SHOWN_BYTES = 200


@dataclass(frozen=True, kw_only=True)
class DeadEntry:
    """An entry of the dead stream.

    Attributes
    ----------
    entry_id
        Its id.
    given_up
        Whether it was given up; else it was refused.
    reason
        Why.
    source
        Which key it was in, without what all keys of the queue begin with.
    lane
        Where it can wait again; empty if that is not known.
    task
        What it says, if it is signed and whole; else None.
    claim
        Id of the task that it claims to be; empty if it claims none. Signed or not.
    """

    entry_id: bytes
    given_up: bool
    reason: str
    source: str
    lane: str
    task: Task | None
    claim: str


class Dead(Refusal):
    """What becomes of the dead stream; the part of `Store` that is about it."""

    def dead(self) -> list[DeadEntry]:
        """Return what was refused or given up, the newest last."""
        found = self._wire.call(("XRANGE", self.keys.dead, "-", "+"))[0]
        return [self._read(entry_id, flat) for entry_id, flat in found]

    def dead_entry(self, entry_id: bytes) -> DeadEntry | None:
        """Return one entry; None if it is there no more."""
        found = self._wire.call(("XRANGE", self.keys.dead, entry_id, entry_id))[0]
        return self._read(*found[0]) if found else None

    def forget_dead(self, entry_id: bytes) -> None:
        """Drop an entry, because somebody took care of it."""
        self._wire.call(("XDEL", self.keys.dead, entry_id))

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; False for each that was no longer ours."""
        raise NotImplementedError

    def settle_lost(self, settlements: Sequence[Settlement]) -> None:
        """Settle what a dead worker held; note each task that is given up in the dead stream."""
        given_up = [s for s in settlements if s.given_up]
        for settlement in given_up:
            self.settle([settlement])
        if rest := [s for s in settlements if not s.given_up]:
            self.settle(rest)
        if given_up:
            # Its function shall live as long as the entry does.
            functions = {self.keys.function(s.delivery.task.fn) for s in given_up}
            self._wire.call(
                ("XTRIM", self.keys.dead, "MAXLEN", "~", DEAD_ENTRIES),
                *(("EXPIRE", key, WEEK) for key in (self.keys.dead, *functions)),
            )

    def _read(self, entry_id: bytes, flat: Fields) -> DeadEntry:
        if flat[:-1] == [b"event"]:
            try:
                return _given_up(entry_id, GivenUp.unseal(flat[1], self._signer))
            except SignatureError:
                pass
        if flat[0:4:2] != [b"refused", b"from"]:
            flat = [b"refused", b"It was written here by somebody else.", b"from", b"dead", *flat]
        source, entry = _shown(flat[3]), flat[4:]
        lane = source.partition(":")[2] if source.startswith(("lane:", "delayed:")) else ""
        try:
            task = Task.decode(entry, self._signer) if lane else None
        except SignatureError:
            task = None
        return DeadEntry(
            entry_id=entry_id,
            given_up=False,
            reason=_shown(flat[1]),
            source=source,
            lane=lane,
            task=task,
            claim=task.id_of(task.span[0].start) if task else _claim(entry),
        )


def _given_up(entry_id: bytes, what: GivenUp) -> DeadEntry:
    return DeadEntry(
        entry_id=entry_id,
        given_up=True,
        reason=what.reason,
        source=f"lane:{what.lane}",
        lane=what.lane,
        task=what.task,
        claim=what.task.id_of(what.task.span[0].start),
    )


def _claim(flat: Fields) -> str:
    """Return the id of the task that an unsigned entry says it is."""
    said = dict(zip(flat[::2], flat[1::2], strict=False))
    if b"job" not in said or b"n" not in said:
        return ""
    return f"{_shown(said[b'job'])}-{_shown(said[b'n'])}"


def _shown(text: bytes) -> str:
    return text[:_SHOWN_BYTES].decode(errors="replace")
