"""Named jobs: what a queue keeps of them, so that they outlive who made them.

A named job's events go to a stream of its own, which is kept: whoever reads it from its beginning
knows all that has become of the job. So its results are there as long as it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import ServerRefused, SignatureError
from . import scripts
from .keys import MONTH, home_of
from .lanes import Lanes
from .messages import Control, Event, Fields
from .refusal import Refusal
from .replies import mapping
from .spans import Span, size
from .unsigned import MAX_COUNT, count, printable, seconds

__all__ = ["Chunk", "JobRecord", "NamedJobs"]

#: Entries of an event stream that are read at a time.
PAGE = 1000


@dataclass(frozen=True)
class Chunk:
    """A message's worth of a named job's inputs: its first item, their number, and their digest."""

    first: int
    n_items: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What the server keeps of a named job, but for its inputs and events.

    Attributes
    ----------
    id, name
        The job's id, and the name that people gave it.
    about
        What its client wrote down: function, lane, options, folder and interpreter.
    chunks
        What was submitted, in order.
    n_items
        How many items that are.
    total
        How many there are in all; None while more may come.
    n_done, n_failed, n_cancelled
        How many have ended in which way.
    n_reruns
        How often ended items were put into their lane again.
    made
        When it was made, in seconds since the epoch by the server's clock.
    expires
        In how many seconds it is forgotten; None: never.
    """

    id: str
    name: str
    about: dict[str, Any]
    chunks: tuple[Chunk, ...]
    n_items: int
    total: int | None
    n_done: int
    n_failed: int
    n_cancelled: int
    n_reruns: int
    made: float
    expires: float | None

    @property
    def n_ended(self) -> int:
        """How many items neither wait nor run."""
        return self.n_done + self.n_failed + self.n_cancelled


class NamedJobs(Refusal, Lanes):
    """The part of `Store` for named jobs."""

    # -- what there is -------------------------------------------------------------------------

    def job_names(self) -> dict[str, str]:
        """Return name -> id, also of jobs that have expired."""
        known = mapping(self._wire.call(("HGETALL", self.keys.jobs))[0])
        return {
            name.decode(errors="replace"): job.decode(errors="replace")
            for name, job in known.items()
        }

    def find_job(self, name: str) -> JobRecord | None:
        """Return the job of that name, None if there is none.

        Raises
        ------
        SignatureError
            The name leads to the job of another name: somebody else wrote that, since a job's id
            begins with its name, and what is kept of it is bound to the id.
        """
        job = self._wire.call(("HGET", self.keys.jobs, name))[0]
        if job is None:
            return None
        record = self.job_record(job.decode(errors="replace"))
        if record is not None and record.name != name:
            raise SignatureError(
                f"The name {name!r} leads to the results of another job, {printable(record.id)}:"
                " somebody else who can write to the server has changed that. Look who can;"
                f" delete the field {name} of the hash {self.keys.jobs}, and make the job again."
            )
        return record

    def job_record(self, job: str) -> JobRecord | None:
        """Return what is kept of the job with that id; None if it was deleted, or has expired."""
        key = self.keys.job(job)
        reply, ttl = self._wire.call(("HGETALL", key), ("PTTL", key))
        known = mapping(reply)
        if b"about" not in known:
            return None
        chunks = sorted((_number(k), v) for k, v in known.items() if k.isdigit())
        return JobRecord(
            id=job,
            name=job.rpartition(":")[0],
            about=json.loads(self._signer.unseal(b"job", job.encode(), known[b"about"])),
            chunks=_chunks(chunks, _number(known[b"n"])),
            n_items=_number(known[b"n"]),
            total=_number(known[b"total"]) if b"total" in known else None,
            n_done=_number(known.get(b"done", b"0")),
            n_failed=_number(known.get(b"failed", b"0")),
            n_cancelled=_number(known.get(b"cancelled", b"0")),
            n_reruns=_number(known[b"run"]),
            made=seconds(known[b"made"]),
            expires=ttl / 1000 if ttl >= 0 else None,
        )

    def readable_record(self, job: str, name: str) -> JobRecord | None:
        """Return `job_record`; None also if somebody else wrote or damaged it, or its name."""
        try:
            record = self.job_record(job)
        except (ValueError, KeyError):
            return None
        return record if record is not None and record.name == name else None

    def has_open_jobs(self, homes: Collection[str] = ()) -> bool:
        """Return whether a named job, of one of `homes` or of any, has items that are not over."""
        jobs = {n: job for n, job in self.job_names().items() if not homes or home_of(job) in homes}
        records = (self.readable_record(job, name) for name, job in jobs.items())
        return any(record is not None and record.n_ended < record.n_items for record in records)

    def job_bytes(self, job: str) -> int | None:
        """Return how much memory the server needs for a job; None if it does not tell."""
        try:
            usage = self._wire.call(*(("MEMORY", "USAGE", key) for key in self._keys_of(job)))
            return sum(n or 0 for n in usage)
        except ServerRefused:
            return None

    def history(self, job: str, after: bytes) -> tuple[bytes, list[Event]]:
        """Return the next events of a job after the entry `after`, and the id of the last entry.

        Those with a wrong signature, of another job, or that came before, are left out and set
        aside.
        """
        begin = b"-" if after == b"0" else b"(" + after
        key = self.keys.events(job)
        entries = self._wire.call(("XRANGE", key, begin, "+", "COUNT", PAGE))[0]
        events = []
        for entry_id, flat in entries:
            for k in range(0, len(flat), 2):
                try:
                    events.append(self._event(flat[k : k + 2], job, entry_id, k))
                except SignatureError as error:
                    self._refuse("event", key, entry_id, error)
        return (entries[-1][0] if entries else after), events

    def last_event(self, job: str) -> bytes:
        """Return the id of the newest entry of a job's events."""
        newest = self._wire.call(("XREVRANGE", self.keys.events(job), "+", "-", "COUNT", 1))[0]
        return newest[0][0] if newest else b"0"

    def job_inputs(self, job: str, first: int) -> bytes | None:
        """Return the pickled items of the chunk that begins with item `first`."""
        sealed = self._wire.call(("HGET", self.keys.inputs(job), first))[0]
        return None if sealed is None else self._signer.unseal(b"inputs", _name(job, first), sealed)

    # -- transitions ---------------------------------------------------------------------------

    def open_job(self, name: str, job: str, about: dict[str, Any], *, instead_of: str) -> bool:
        """Make a named job; False if the name is that of another one than `instead_of`, an id.

        That one is deleted; what of it is in a lane should be cancelled now.
        """
        keys = self.keys
        owner = self.job_names().get(name, "")
        if owner not in (job, instead_of) and self.job_record(owner) is not None:
            return False
        command = scripts.open(
            keys.jobs,
            keys.job(job),
            keys.events(job),
            name,
            owner,
            job,
            self._about(job, about),
            self._news("opened", job),
            owned=self._keys_of(owner),
        )
        return bool(self._wire.call(command)[0])

    def append_chunk(
        self, job: str, chunk: Chunk, args: bytes, *, lane: str, delay: float, task: Fields
    ) -> bool:
        """Add a chunk to a job and submit it; False if the job does not end where it begins."""
        keys = self.keys
        command = scripts.append(
            keys.job(job),
            keys.inputs(job),
            keys.control,
            keys.lane(lane),
            keys.delayed(lane),
            first=chunk.first,
            number=chunk.n_items,
            mark=f"{chunk.n_items}:{chunk.digest}",
            arguments=self._signer.seal(b"inputs", _name(job, chunk.first), args),
            delay=delay,
            task=task,
        )
        return bool(self._submit([lane], command)[0])

    def close_job(self, job: str, n_items: int) -> bool:
        """Say that the job has all its items; False if it has more or fewer."""
        event = self._news("closed", job, n=n_items)
        keys = self.keys
        return bool(
            self._wire.call(scripts.close(keys.job(job), keys.events(job), n_items, event))[0]
        )

    def rerun(
        self,
        record: JobRecord,
        span: Span,
        tasks: list[Fields],
        *,
        lane: str,
        n_cancelled: int,
        token: str,
    ) -> int:
        """Put ended items of a job into their lane again.

        Parameters
        ----------
        record
            The job as it was found, with what shall be said about it from now on.
        span
            The items: failed ones, and if `n_cancelled` is not 0 all that are cancelled.
        tasks
            What `encode_task` returned for them.
        token
            By which it is known that this was done already.

        Returns
        -------
        int
            1; 0 if it was run again by another meanwhile, or is gone; -1 while cancelled items
            still lie in a lane, until a worker drops them.
        """
        keys = self.keys
        command = scripts.rerun(
            keys.job(record.id),
            keys.events(record.id),
            keys.cancelled,
            keys.lane(lane),
            keys.control,
            last=record.n_reruns,
            this_job=record.id,
            about=self._about(record.id, record.about),
            n_failed=size(span) - n_cancelled,
            n_cancelled=n_cancelled,
            event=self._news("rerun", record.id, span=span),
            token=token,
            order=Control(kind="resume", job=record.id, span=span).encode(self._signer),
            messages=tasks,
        )
        return int(self._submit([lane], command)[0])

    def keep_job(self, job: str) -> None:
        """Never forget a job by itself, nor that its queue is this secret's."""
        keys = *self._keys_of(job), self.keys.jobs, self.keys.meta
        self._wire.call(*(("PERSIST", key) for key in keys))

    def delete_job(self, name: str, job: str) -> None:
        """Forget a job; what of it is in a lane should be cancelled first."""
        keys = self.keys
        self._wire.call(scripts.delete(keys.jobs, self._keys_of(job), name, job))
        others = self.job_names().values()
        if -1 not in (self._wire.call(*(("PTTL", keys.job(j)) for j in others)) if others else ()):
            # None that is left is kept for ever.
            self._wire.call(*(("EXPIRE", key, MONTH) for key in (keys.jobs, keys.meta)))

    def _keys_of(self, job: str) -> tuple[str, ...]:
        keys = self.keys
        return keys.job(job), keys.inputs(job), keys.events(job), keys.settled(job)

    def _about(self, job: str, about: dict[str, Any]) -> bytes:
        return self._signer.seal(b"job", job.encode(), json.dumps(about).encode())

    def _news(self, kind: str, job: str, **details: Any) -> bytes:
        return Event(**{"kind": kind, "job": job, "n": 0, "worker": "", **details}).seal(
            self._signer
        )


def _chunks(marks: list[tuple[int, bytes]], n_items: int) -> tuple[Chunk, ...]:
    """Return a job's chunks, which follow one another; SignatureError if somebody changed them."""
    chunks, end = [], 0
    for first, mark in marks:
        n, _, digest = mark.partition(b":")
        chunks.append(Chunk(first, _number(n), printable(digest)))
        if first != end:
            break
        end += _number(n)
    if end != n_items:
        raise SignatureError("What the server keeps of the job was changed: its inputs have gaps.")
    return tuple(chunks)


def _number(text: bytes) -> int:
    """Return a number in a job's record; SignatureError if somebody has changed it to none."""
    found = count(text)
    if not text.isdigit() or found == MAX_COUNT:
        raise SignatureError(
            f"What the server keeps of the job was changed: {printable(text[:20])!r} is no number."
        )
    return found


def _name(job: str, first: int) -> bytes:
    return f"{job}/{first}".encode()
