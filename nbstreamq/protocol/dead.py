"""The dead stream: what was refused, and what failed for good, until a week after the last of them.

An entry begins with ``refused <reason>`` or ``failed <sealed reason>``, and ``from <key>``; what it
was follows. Items that failed in the same slice share one. Arguments that are large, or that a
named job keeps anyway, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SignatureError
from .keys import session_of
from .messages import Fields, Task
from .refusal import Refusal
from .settlement import LETTER, letter_name
from .spans import items
from .unsigned import printable

__all__ = ["Dead", "DeadEntry"]

#: Most bytes that are shown of a text that somebody else wrote.
_SHOWN_BYTES = 200
#: Why something is listed that none of us put there.
_STRANGE = b"It was written here by somebody else."


@dataclass(frozen=True, kw_only=True)
class DeadEntry:
    """An entry of the dead stream.

    Attributes
    ----------
    entry_id
        Its id.
    has_failed
        Whether it failed for good; else it was refused.
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
    has_failed: bool
    reason: str
    source: str
    lane: str
    task: Task | None
    claim: str

    @property
    def items(self) -> tuple[int, ...]:
        """Which items of its job the task is about."""
        task = self.task
        return tuple(task.n + item for item in items(task.span)) if task else ()


class Dead(Refusal):
    """What becomes of the dead stream; the part of `Store` that is about it."""

    def dead(self) -> list[DeadEntry]:
        """Return what was refused or failed for good, the newest last."""
        found = self._wire.call(("XRANGE", self.keys.dead, "-", "+"))[0]
        return [self._read(entry_id, flat) for entry_id, flat in found]

    def dead_entry(self, entry_id: bytes) -> DeadEntry | None:
        """Return one entry; None if it is there no more."""
        found = self._wire.call(("XRANGE", self.keys.dead, entry_id, entry_id))[0]
        return self._read(*found[0]) if found else None

    def letters_of(self, job: str) -> list[DeadEntry]:
        """Return what failed for good of a job, as far as it is listed still."""
        ids = self._wire.call(("LRANGE", self.keys.letters(session_of(job)), 0, -1))[0]
        dead = self.keys.dead
        found = self._wire.call(*(("XRANGE", dead, one, one) for one in ids)) if ids else []
        entries = [self._read(*one[0]) for one in found if one]
        return [e for e in entries if e.has_failed and e.task and e.task.job == job]

    def forget_dead(self, *entries: DeadEntry) -> None:
        """Drop entries, because somebody took care of them."""
        for entry in entries:
            letters = self.keys.letters(session_of(entry.task.job if entry.task else ""))
            drop = ("XDEL", self.keys.dead, entry.entry_id), ("LREM", letters, 0, entry.entry_id)
            self._wire.call(*drop)

    def _read(self, entry_id: bytes, flat: Fields) -> DeadEntry:
        if flat[0:4:2] not in ([b"refused", b"from"], [b"failed", b"from"]):
            flat = [b"refused", _STRANGE, b"from", b"dead", *flat]
        what, why, _, where, *entry = flat
        source = _shown(where)
        lane = source.partition(":")[2] if source.startswith(("lane:", "delayed:")) else ""
        reason, has_failed, task = _shown(why), what == b"failed", None
        try:
            task = Task.decode(entry, self._signer) if lane else None
            if has_failed:
                reason = self._signer.unseal(LETTER, letter_name(where, entry), why).decode()
        except (SignatureError, IndexError):
            reason, has_failed, task = _shown(_STRANGE) if has_failed else reason, False, None
        return DeadEntry(
            entry_id=entry_id,
            has_failed=has_failed,
            reason=reason,
            source=source,
            lane=lane,
            task=task,
            claim=task.id_of(task.span[0].start) if task else _claim(entry),
        )


def _claim(flat: Fields) -> str:
    """Return the id of the task that an unsigned entry says it is."""
    said = dict(zip(flat[::2], flat[1::2], strict=False))
    if b"job" not in said or b"n" not in said:
        return ""
    return f"{_shown(said[b'job'])}-{_shown(said[b'n'])}"


def _shown(text: bytes) -> str:
    return printable(text[:_SHOWN_BYTES])
