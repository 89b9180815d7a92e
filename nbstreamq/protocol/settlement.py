"""A delivered entry, and what follows from it when its holder gives it up."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .keys import Keys, is_named, session_of
from .messages import Event, Task
from .signing import Signer
from .spans import Span, size, split

__all__ = ["Delivery", "GivenUp", "Settlement", "Successor", "encode_return", "encode_settlements"]


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
    """

    lane: str
    entry_id: bytes
    task: Task
    cancelled: Span = ()
    is_wanted: bool = True


@dataclass(frozen=True, kw_only=True)
class Successor:
    """An entry that takes the place of a settled one.

    Attributes
    ----------
    task
        The same task with another span, attempt or number of losses.
    delay
        Seconds before it is due.
    when
        ``""``: always; ``"busy"`` or ``"idle"``: only if other tasks wait in the lane, or none.
    """

    task: Task
    delay: float = 0.0
    when: str = ""


@dataclass(frozen=True, kw_only=True)
class GivenUp:
    """A task that will not be run again, unless somebody wants it.

    Attributes
    ----------
    lane
        Where it waited last.
    task
        What was to be done.
    reason
        Why it is not, in words.
    """

    KIND = b"dead"

    lane: str
    task: Task
    reason: str

    def seal(self, signer: Signer) -> bytes:
        """Return it as the value of one field."""
        data = pickle.dumps((self.lane, self.reason, self.task.values()), 5)
        return signer.seal(self.KIND, b"", data)

    @classmethod
    def unseal(cls, sealed: bytes, signer: Signer) -> GivenUp:
        """Return what `seal` wrote; `SignatureError` if it was changed."""
        lane, reason, values = pickle.loads(signer.unseal(cls.KIND, b"", sealed))
        return cls(lane=lane, task=Task.of(values), reason=reason)


@dataclass(slots=True, kw_only=True)
class Settlement:
    """What a delivery ends in: events for the client, successors for the lane.

    Attributes
    ----------
    ended
        How many items are done, failed, and cancelled by it: what a named job counts.
    """

    delivery: Delivery
    events: list[Event] = field(default_factory=list)
    successors: list[Successor] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    ended: tuple[int, int, int] = (0, 0, 0)

    def count(self, *, done: int = 0, failed: int = 0, cancelled: int = 0) -> None:
        """Add to `ended`."""
        before = self.ended
        self.ended = (before[0] + done, before[1] + failed, before[2] + cancelled)

    def continue_with(self, task: Task) -> None:
        """Put `task`, a rest of this one, back; in halves when nothing else waits in the lane.

        Then a second, idle worker finds something to do, however the items were chunked.
        """
        n = size(task.span)
        if n < 2:
            self.successors.append(Successor(task=task))
            return
        self.successors.append(Successor(task=task, when="busy"))
        for half in split(task.span, (n + 1) // 2):
            self.successors.append(Successor(task=task.again(half), when="idle"))


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
        n_events = len(s.events) + len(s.given_up)
        args += (lane, delivery.entry_id, n_events, len(s.successors))
        if is_named(job := delivery.task.job):
            args += (table.index(keys.job(job)), table.index(keys.inputs(job)), *s.ended)
        else:
            args.append("")
        for event in s.events:
            args += (table.index(keys.events(session_of(event.job))), event.seal(signer))
        for what in s.given_up:
            args += (table.index(keys.dead), what.seal(signer))
        for successor in s.successors:
            # A script may only use keys it is given: the delayed set is named where it is needed.
            delay = int(successor.delay * 1000)
            target = keys.delayed(delivery.lane) if delay > 0 else keys.lane(delivery.lane)
            fields = _changed_fields(successor.task, signer)
            args += (table.index(target), delay, successor.when, len(fields), *fields)
    return list(table.keys), args


def encode_return(lane: str, entry_id: bytes) -> tuple[list[str], list[Any]]:
    """Return what ``settle.lua`` takes to put an entry back as it is, read or not."""
    return [lane], [0, entry_id, 0, 1, "", 0, 0, "", 0]


def _changed_fields(task: Task, signer: Signer) -> list[bytes]:
    """Return only the fields in which a successor differs; the server keeps the payload."""
    fields = task.encode(signer)
    changing = {b"span", b"try", b"lost", b"sig"}
    pairs = zip(fields[::2], fields[1::2], strict=True)
    return [part for name, value in pairs if name in changing for part in (name, value)]
