"""A delivered entry, and what follows from it when its holder gives it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from .item_ranges import ItemRanges, size, split
from .keys import Keys, is_named, owner_key, session_of
from .messages import Event, Fields, Task
from .signing import DIGEST_BYTES, Signer

#: Kind of message that a dead letter's reason is.
LETTER = b"dead"
#: Most bytes that the dead stream keeps of a task's arguments, or of a refused value: either may be
#: as large as the server allows.
KEPT_BYTES = 2**16
#: The fields in which a task differs from the one that it follows from.
_CHANGING = {b"span", b"try", b"lost", b"sig"}


@dataclass(slots=True, kw_only=True)
class Delivery:
    """A task in a worker's hands.

    Attributes
    ----------
    lane, entry_id
        Where the entry is.
    task
        What it says.
    cancelled
        Items of the *job* that shall not run.
    is_wanted
        Whether those are still there who asked for it: its session, or the named job.
    digest
        What tells this message from all others: the begin of its signature.
    mark
        The same, of this life of the server: one that forgot what was settled gives it out again.
    """

    lane: str
    entry_id: bytes
    task: Task
    cancelled: ItemRanges = ()
    is_wanted: bool = True
    digest: bytes = b""
    mark: int = 0

    @classmethod
    def read(cls, lane: str, entry_id: bytes, fields: Fields, signer: Signer, life: int) -> Self:
        """Return the task in an entry; `SignatureError` if it is none of ours.

        Parameters
        ----------
        life
            Of the server; see `mark`.
        """
        task, digest = Task.decode(fields, signer), fields[-1][:DIGEST_BYTES]
        mark = int.from_bytes(digest) ^ life
        return cls(lane=lane, entry_id=entry_id, task=task, digest=digest, mark=mark)


@dataclass(frozen=True, kw_only=True)
class Requeue:
    """An entry that takes the place of a settled one.

    Attributes
    ----------
    task
        The same task with another span, attempt or number of losses.
    delay
        Seconds before it is due.
    when
        ``""``: always; ``"busy"`` or ``"idle"``: only if other tasks wait in the lane, or none.
    lane
        Where it waits; ``""``: where it came from.
    """

    task: Task
    delay: float = 0.0
    when: str = ""
    lane: str = ""


@dataclass(frozen=True, kw_only=True)
class PermanentFailure:
    """Items that failed for good.

    Attributes
    ----------
    task
        What was to be done, for these items only.
    reason
        What became of it, in words.
    """

    task: Task
    reason: str


@dataclass(slots=True, kw_only=True)
class Settlement:
    """What a delivery ends in: events for the client, successors for the lane.

    Attributes
    ----------
    given_up
        What failed for good by it, at most once: the items of a slice share a dead letter.
    ended
        How many items are done, failed, and cancelled by it: what a named job counts.
    """

    delivery: Delivery
    events: list[Event] = field(default_factory=list)
    successors: list[Requeue] = field(default_factory=list)
    given_up: list[PermanentFailure] = field(default_factory=list)
    ended: tuple[int, int, int] = (0, 0, 0)

    def count(self, *, done: int = 0, failed: int = 0, cancelled: int = 0) -> None:
        """Add to `ended`."""
        before = self.ended
        self.ended = (before[0] + done, before[1] + failed, before[2] + cancelled)

    @property
    def is_final(self) -> bool:
        """Whether a message like this one can't come again, but as a copy."""
        task = self.delivery.task
        return all(s.task != task for s in self.successors)

    def continue_with(self, task: Task) -> None:
        """Put `task`, a rest of this one, back; in halves when nothing else waits in the lane.

        Then a second, idle worker finds something to do, however the items were chunked.
        """
        n = size(task.span)
        if n < 2:
            self.successors.append(Requeue(task=task))
            return
        self.successors.append(Requeue(task=task, when="busy"))
        for half in split(task.span, (n + 1) // 2):
            self.successors.append(Requeue(task=task.again(half), when="idle"))


class _KeyTable:
    """Gives each key the index under which a script finds it."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}

    def index(self, key: str) -> int:
        return self.keys.setdefault(key, len(self.keys))


def encode_settlements(
    settlements: Sequence[Settlement], keys: Keys, signer: Signer
) -> tuple[list[str], list[Any]]:
    """Return the keys and arguments that ``settle.lua`` takes."""
    table = _KeyTable()
    args: list[Any] = []
    for s in settlements:
        delivery = s.delivery
        lane = table.index(keys.lane(delivery.lane))
        args += (lane, delivery.entry_id, len(s.events), len(s.successors), len(s.given_up))
        if is_named(job := delivery.task.job):
            used = (keys.job(job), keys.inputs(job), keys.settled(job))
            args += (*map(table.index, used), delivery.digest if s.is_final else b"", *s.ended)
        else:
            args.append("")
        for event in s.events:
            # Not always of the same job: what a thread of an earlier task prints is sent, too.
            owner = session_of(event.job)
            args += (table.index(keys.events(owner)), table.index(owner_key(keys, owner)))
            args += ("named" if is_named(owner) else "", event.seal(signer))
        for successor in s.successors:
            # A script may only use keys it is given: the delayed set is named where it is needed.
            delay = int(successor.delay * 1000)
            waits_in = successor.lane or delivery.lane
            target = keys.delayed(waits_in) if delay > 0 else keys.lane(waits_in)
            fields = _changed_fields(successor.task, signer)
            args += (table.index(target), delay, successor.when, len(fields), *fields)
        for what in s.given_up:
            task = what.task
            used = (keys.dead, keys.letters(session_of(task.job)), keys.function(task.fn))
            args += (*map(table.index, used), *_letter(what, delivery.lane, signer))
    return list(table.keys), args


def encode_return(lane: str, entry_id: bytes) -> tuple[list[str], list[Any]]:
    """Return what ``settle.lua`` takes to put an entry back as it is, read or not."""
    return [lane], [0, entry_id, 0, 1, 0, "", 0, 0, "", 0]


def letter_name(source: bytes, fields: Fields) -> bytes:
    """Return what the reason in a dead letter is bound to: its task, and where that was."""
    return b"%d:%b%b" % (len(fields[-1]), fields[-1], source)


def _letter(what: PermanentFailure, lane: str, signer: Signer) -> list[Any]:
    """Return what ``settle.lua`` takes to keep what failed; the server has the arguments."""
    task, source = what.task, f"lane:{lane}".encode()
    # A named job keeps its inputs itself.
    is_kept = not is_named(task.job) and len(task.args) <= KEPT_BYTES
    fields = (task if is_kept else replace(task, args=b"")).encode(signer)
    why = signer.seal(
        LETTER, letter_name(source, fields), what.reason.encode(errors="backslashreplace")
    )
    changed = _only(fields, _CHANGING if is_kept else _CHANGING | {b"args"})
    return [why, source, len(changed), *changed]


def _changed_fields(task: Task, signer: Signer) -> list[bytes]:
    """Return only the fields in which a successor differs; the server keeps the payload."""
    return _only(task.encode(signer), _CHANGING)


def _only(fields: Fields, names: set[bytes]) -> list[bytes]:
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [part for name, value in pairs if name in names for part in (name, value)]
