"""A delivered entry, and what follows from it when its holder gives it up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from . import scripts
from .connection import Command
from .item_ranges import ItemRanges, size, split
from .keys import Keys, chunk_keys, is_named, session_of
from .messages import HEADER, JOB, Event, Fields, Task
from .signing import SIGNATURE_BYTES, Signer

#: Kind of message that a dead letter's reason is.
LETTER = b"dead"
#: Most bytes that the dead stream keeps of a task's arguments, or of a refused value: either may be
#: as large as the server allows.
KEPT_BYTES = 2**16
#: How the items of a chunk are called, see `Task`. A job has only some of its chunks in its lane.
CHUNKED = ("map", "starmap")
#: Seconds of work that a job has in its lane for each worker, and how many chunks that are at most.
#: More saves requests where the work is short; less leaves the lane to other jobs sooner.
WORK_AHEAD, MOST_AHEAD = 0.005, 512
#: Round trips in which a worker far away runs what it has in hand: one until it asks for more, one
#: until that is there. More evens out slow replies; less leaves more to other workers.
TRIPS_AHEAD = 3.0


class Delivery(msgspec.Struct, kw_only=True):
    """A task in a worker's hands.

    Attributes
    ----------
    lane, entry_id
        Where the entry is.
    task
        What it says.
    cancelled
        Items of the *job* that must not run.
    is_wanted
        Whether its session, or the named job, still exists.
    digest
        What tells this message from all others: the begin of its signature.
    mark
        The same for this run of the server: one that forgot what was settled delivers it again.
    """

    lane: str
    entry_id: bytes
    task: Task
    cancelled: ItemRanges = ()
    is_wanted: bool = True
    digest: bytes = b""
    mark: int = 0


class Requeue(msgspec.Struct, kw_only=True, frozen=True):
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


class PermanentFailure(msgspec.Struct, kw_only=True, frozen=True):
    """Items that failed for good.

    Attributes
    ----------
    task
        The task with only these items.
    reason
        What became of it, in words.
    """

    task: Task
    reason: str


class Settlement(msgspec.Struct, kw_only=True):
    """What a delivery ends in: events for the client, and tasks that go back to the lane.

    Attributes
    ----------
    given_up
        What failed for good by it, at most once: the items of a slice share a dead letter.
    ended
        How many items are done, failed, and cancelled by it: what a named job counts.
    """

    delivery: Delivery
    events: list[Event] = []
    successors: list[Requeue] = []
    given_up: list[PermanentFailure] = []
    ended: tuple[int, int, int] = (0, 0, 0)

    def count(self, *, done: int = 0, failed: int = 0, cancelled: int = 0) -> None:
        """Add to `ended`."""
        before = self.ended
        self.ended = (before[0] + done, before[1] + failed, before[2] + cancelled)

    @property
    def is_final(self) -> bool:
        """Whether the same message can come again only as a copy."""
        if not self.successors:
            return True
        task = self.delivery.task
        return all(s.task != task for s in self.successors)

    def continue_with(self, task: Task) -> None:
        """Put `task`, a rest of this one, back; in halves when nothing else waits in the lane.

        Then a second, idle worker finds something to do, whatever the size of the chunks.
        """
        n = size(task.span)
        if n < 2:
            self.successors.append(Requeue(task=task))
            return
        self.successors.append(Requeue(task=task, when="busy"))
        for half in split(task.span, (n + 1) // 2):
            self.successors.append(Requeue(task=task.again(half), when="idle"))


def settle_command(
    settlements: Sequence[Settlement], keys: Keys, signer: Signer, distance: float = 0.0
) -> Command:
    """Return the call of ``settle.lua`` for `settlements`.

    Parameters
    ----------
    distance
        Seconds of a round trip, if the worker takes its next tasks so much ahead.
    """
    table: dict[str, int] = {}  # each key -> its index in the script's KEYS
    index = table.setdefault
    args: list[Any] = []
    for s in settlements:
        delivery, job = s.delivery, s.delivery.task.job
        lane = index(keys.lane(delivery.lane), len(table))
        args += (lane, delivery.entry_id, len(s.events), len(s.successors), len(s.given_up))
        owner = session_of(job)
        if is_named(owner):
            for key in (keys.job(job), keys.inputs(job), keys.settled(job)):
                args.append(index(key, len(table)))
            args += (delivery.digest if s.is_final else b"", *s.ended)
        else:
            args.append("")
        if delivery.task.call in CHUNKED:
            args += (job, _n_ahead(s, distance))
            args += [index(key, len(table)) for key in chunk_keys(keys, job, delivery.lane)]
        else:
            args.append("")
        for event in s.events:
            # Not always of the same job: what a thread of an earlier task prints is sent, too.
            to = owner if event.job == job else session_of(event.job)
            named = is_named(to)
            args.append(index(keys.events(to), len(table)))
            args.append(index(keys.job(to) if named else keys.session(to), len(table)))
            args += ("named" if named else "", event.seal(signer))
        for successor in s.successors:
            # A script may only use keys it is given: the delayed set is named where it is needed.
            delay = int(successor.delay * 1000)
            waits_in = successor.lane or delivery.lane
            target = keys.delayed(waits_in) if delay > 0 else keys.lane(waits_in)
            changed = successor.task.encode(signer)[HEADER]  # the server keeps the arguments
            args += (index(target, len(table)), delay, successor.when, len(changed), *changed)
        for what in s.given_up:
            letters, function = keys.letters(session_of(what.task.job)), keys.function(what.task.fn)
            for key in (keys.dead, letters, function):
                args.append(index(key, len(table)))
            args += _letter(what, delivery.lane, signer)
    return scripts.settle(keys, table, args)


def _n_ahead(settlement: Settlement, distance: float) -> int:
    """Return how many chunks of the same job a worker is to have: more if they are short work."""
    least = n_concurrent(settlement.delivery.task)
    seconds = max(1e-6, sum(event.seconds for event in settlement.events))
    if distance:
        return min(MOST_AHEAD, least + math.ceil(TRIPS_AHEAD * distance / seconds))
    if settlement.successors:
        return least
    return max(least, min(MOST_AHEAD, int(WORK_AHEAD / seconds)))


def n_concurrent(task: Task) -> int:
    """Return how many such chunks a worker can run at the same time."""
    concurrency = task.opts and task.concurrency
    return -(-concurrency // size(task.span)) if concurrency else 1


def return_command(keys: Keys, lane: str, entry_id: bytes, fields: Fields) -> Command:
    """Return the call of ``settle.lua`` that puts an entry back as it is, read or not."""
    job = fields[JOB].decode(errors="replace") if len(fields) > JOB else ""
    places = chunk_keys(keys, job, lane)  # It may be a chunk.
    args = [0, entry_id, 0, 1, 0, "", job or "?", 1, *range(1, 5), 0, 0, "", 0]
    return scripts.settle(keys, (keys.lane(lane), *places), args)


def letter_name(source: bytes, fields: Fields) -> bytes:
    """Return what the reason in a dead letter is bound to: its task, and where that was."""
    return fields[HEADER][1][:SIGNATURE_BYTES] + source


def _letter(what: PermanentFailure, lane: str, signer: Signer) -> list[Any]:
    """Return what ``settle.lua`` takes to keep what failed; the server has the arguments."""
    task, source = what.task, f"lane:{lane}".encode()
    # A named job keeps its inputs itself.
    is_kept = not is_named(task.job) and len(task.args) <= KEPT_BYTES
    fields = (task if is_kept else task.with_changes(args=b"")).encode(signer)
    why = signer.seal(
        LETTER, letter_name(source, fields), what.reason.encode(errors="backslashreplace")
    )
    changed = fields[HEADER] if is_kept else fields[HEADER.start :]
    return [why, source, len(changed), *changed]
