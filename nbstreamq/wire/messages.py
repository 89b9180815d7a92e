"""What travels through the streams: tasks, events and control messages.

call (client) -> `Task` (lane) -> `Event` (event stream, back to the client); a `ControlMessage`
goes to the supervisors. Each is encoded by msgspec into one value and signed: the signature is
checked before anything is decoded, and what does not have the declared types is refused.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Annotated, Any, Self

import msgspec

from ..errors import SignatureError
from .item_ranges import ONE, ItemRanges, format_ranges, parse_ranges
from .keys import DAY
from .signing import SIGNATURE_BYTES, Signer

#: The version of nbstreamq that wrote a task; workers of another one refuse to run it.
VERSION = "0.1.0"


class State(StrEnum):
    """What has become of a task.

    A task is ``waiting`` in a lane, or until it is due; ``running`` in a worker; or it has ended:
    ``done``, ``failed`` or ``cancelled``.
    """

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: A stream entry's fields, as the server keeps them: name, value, name, value, ...
Fields = list[bytes]
#: Longest pause between two attempts, in seconds.
MAX_PAUSE = float(DAY)
#: How many coroutines of a function a worker runs at the same time, unless its options say more.
#: More helps where they wait for long; fewer spares the servers that they talk to.
CONCURRENCY = 10
#: Numbers the events and control messages of this process, so that no two are the same: a second
#: one is a copy. Tasks differ in what they say.
_numbers = itertools.count(time.time_ns())
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is to be run: what `TaskQueue.options` takes, and `seed`.

    Attributes
    ----------
    retries
        How often a task that raised is run again.
    backoff
        Seconds before the first retry; doubled for each further one, up to `MAX_PAUSE`.
    time_limit
        Seconds that one call may take; None: no limit.
    memory_limit
        Bytes that the worker process may use while the call runs; several: in the first attempt, in
        the second, ... and the last in all others. None: no limit.
    lane
        Lane that the task waits in; None: ``default``, or that of its depth inside a task.
    delay
        Seconds before the task may start.
    cache
        Whether the result of a single call is kept, and taken for the same call again.
    seed
        What the random numbers of each item follow from, with its index; None: from nothing.
    concurrency
        How many of its coroutines a worker may run at the same time; in a message, None says that
        the function is a plain one.
    """

    retries: int = 0
    backoff: float = 0.0
    time_limit: float | None = None
    memory_limit: int | Sequence[int] | None = None
    lane: str | None = None
    delay: float = 0.0
    cache: bool = False
    seed: int | Sequence[int] | None = None
    concurrency: int | None = None

    def encode(self) -> bytes:
        """Return the options that differ from the defaults, as JSON."""
        return self._encoded

    @functools.cached_property
    def _encoded(self) -> bytes:
        changed = self.changed()
        return json.dumps(changed).encode() if changed else b""

    @property
    def memory_limits(self) -> Sequence[int]:
        """The limits of memory, the first attempt's first; empty: none."""
        limit = self.memory_limit or ()
        return (limit,) if isinstance(limit, int) else limit

    def memory_limit_of(self, attempt: int) -> int:
        """Return the bytes that an attempt, counted from 1, may use; 0: no limit."""
        return self.memory_limits[:attempt][-1] if self.memory_limit else 0

    def pause_after(self, attempt: int) -> float:
        """Return the seconds between a failed attempt, counted from 1, and the next."""
        # After 64 doublings any pause but 0 is the longest one; a thousand overflow a float.
        return min(self.backoff * 2.0 ** min(attempt - 1, 64), MAX_PAUSE)

    def of_function(self, *, is_async: bool) -> Options:
        """Return the options for a plain function, or for one that makes coroutines."""
        if is_async:
            return self if self.concurrency else replace(self, concurrency=CONCURRENCY)
        return replace(self, concurrency=None) if self.concurrency else self

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v != getattr(type(self), k)}

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def decode(data: bytes) -> Options:
        """Return the options that `encode` wrote; a job's tasks all have the same ones."""
        return Options(**json.loads(data)) if data else Options()


class _Header(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """What describes a task, except what people read in the stream; see `Task`."""

    version: str
    n: _Natural
    span: str
    fn: str
    call: str
    opts: bytes
    attempt: _Natural
    losses: _Natural
    run: _Natural
    hand_backs: _Natural
    ran: _Natural


_decode_header = msgspec.msgpack.Decoder(_Header).decode


def claimed_number(sealed: bytes) -> int | None:
    """Return `n` of a task's header without a check of its signature; None if it is malformed."""
    try:
        return _decode_header(sealed[SIGNATURE_BYTES:]).n
    except ValueError:
        return None


_TASK_FIELDS = [b"name", b"job", b"header", b"args"]
#: Where a task's fields have its header, and all that a task put back in its lane changes.
HEADER = slice(4, 6)
#: Where they have the job.
JOB = 3


class Task(msgspec.Struct, kw_only=True, frozen=True):
    """One call, or a chunk of calls of the same function.

    Attributes
    ----------
    job
        ``<session>.<number>``: who gets the results.
    n
        Index, in the job, of the payload's first item.
    span
        The items of the payload that are still to be done.
    fn
        Digest of the function.
    name
        Name of the function, for people.
    call
        How an item is called: ``map`` (one argument), ``starmap``, ``apply`` (one item: args and
        kwargs) or ``calls`` (each item is what it is for ``apply``, pickled by itself).
    args
        The items, pickled.
    opts
        Encoded `Options`.
    attempt
        Which attempt this is, from 1.
    losses
        How many workers died of it.
    run
        How often its items had been run again, after they had ended, when it was submitted.
    version
        The version of nbstreamq that wrote it.
    hand_backs
        How often in a row workers that had to end handed it back without progress.
    ran
        For how many seconds it had run then, at most.
    """

    job: str
    n: int
    span: ItemRanges = ONE
    fn: str
    name: str
    call: str
    args: bytes
    opts: bytes = b""
    attempt: int = 1
    losses: int = 0
    run: int = 0
    version: str = VERSION
    hand_backs: int = 0
    ran: int = 0

    def encode(self, signer: Signer, kind: bytes = b"task") -> Fields:
        """Return the signed stream fields of this task.

        Parameters
        ----------
        kind
            ``task``, or ``setup`` for what new workers run first: neither passes for the other.
        """
        # A name may hold half a surrogate pair.
        name, job = self.name.encode(errors="backslashreplace"), self.job.encode()
        header = _encode(
            _Header(
                version=self.version,
                n=self.n,
                span="0:1" if self.span is ONE else format_ranges(self.span),
                fn=self.fn,
                call=self.call,
                opts=self.opts,
                attempt=self.attempt,
                losses=self.losses,
                run=self.run,
                hand_backs=self.hand_backs,
                ran=self.ran,
            )
        )
        sealed = signer.sign(kind, name, job, header, self.args) + header
        return [b"name", name, b"job", job, b"header", sealed, b"args", self.args]

    @classmethod
    def decode(cls, flat: Fields, signer: Signer, kind: bytes = b"task") -> Self:
        """Return the task that `flat` holds, which was encoded as one of `kind`.

        Raises
        ------
        SignatureError
            A field is missing, unknown, or was changed after it was signed.
        """
        if flat[::2] != _TASK_FIELDS or len(flat) != 8:
            raise SignatureError("An entry that is not a task was refused.")
        _, name, _, job, _, sealed, _, args = flat
        encoded = sealed[SIGNATURE_BYTES:]
        signer.check(sealed[:SIGNATURE_BYTES], kind, name, job, encoded, args)
        try:
            header = _decode_header(encoded)
            return cls(
                job=job.decode(),
                n=header.n,
                span=ONE if header.span == "0:1" else parse_ranges(header.span),
                fn=header.fn,
                name=name.decode(),
                call=header.call,
                args=args,
                opts=header.opts,
                attempt=header.attempt,
                losses=header.losses,
                run=header.run,
                version=header.version,
                hand_backs=header.hand_backs,
                ran=header.ran,
            )
        except ValueError as error:
            raise SignatureError(f"A malformed task was refused: {error}") from error

    def id_of(self, item: int) -> str:
        """Return the id of the task that is item `item` of the payload."""
        return f"{self.job}-{self.n + item}"

    @property
    def concurrency(self) -> int | None:
        """How many such items a worker may run at the same time; None for a plain function."""
        try:
            return Options.decode(self.opts).concurrency
        except (TypeError, ValueError):  # Another version wrote it: the worker says so.
            return None

    def again(self, span: ItemRanges, *, attempt: int = 0, losses: int = 0) -> Task:
        """Return this task for `span` only, with so many attempts and losses more."""
        return msgspec.structs.replace(
            self, span=span, attempt=self.attempt + attempt, losses=self.losses + losses
        )

    def with_changes(self, **changes: Any) -> Task:
        """Return this task with other values of some attributes."""
        return msgspec.structs.replace(self, **changes)


class _EventBody(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """An `Event` as it travels."""

    number: int
    kind: str
    job: str
    n: _Natural
    span: str
    worker: str
    attempt: _Natural
    started: float
    seconds: float
    body: bytes
    run: _Natural


_decode_event = msgspec.msgpack.Decoder(_EventBody).decode


class Event(msgspec.Struct, kw_only=True):
    """What happened to items of a job.

    Sealed into one value, so that a stream entry may carry many: a batch of short calls costs one.

    Attributes
    ----------
    kind
        ``finished`` (body: pickled outcomes), ``started``, ``output``, ``progress``, ``retried`` or
        ``lost`` (bodies: JSON), ``handed_back`` (its worker had to end), ``wanted`` (body: what the
        server lacks, see `Values.want`).
    job, n, span
        The items it concerns, as in `Task`.
    worker
        Who ran them.
    attempt
        Which attempt it was.
    started
        When the first of them began, in seconds since the epoch by the worker's clock.
    seconds
        How long they took in all.
    body
        The event itself, as its kind says.
    run
        The run that it is about, as in `Task`. Items that were run again since do not heed it.
    """

    kind: str
    job: str
    n: int
    span: ItemRanges = ONE
    worker: str
    attempt: int = 1
    started: float = 0.0
    seconds: float = 0.0
    body: bytes = b""
    run: int = 0

    @classmethod
    def about(cls, task: Task, span: ItemRanges, *, kind: str, worker: str, **details: Any) -> Self:
        """Return the event that `kind` happened to items of `task` on `worker`.

        Parameters
        ----------
        **details
            ``body``, ``started`` and ``seconds``, where there is something to say.
        """
        return cls(
            kind=kind,
            job=task.job,
            n=task.n,
            span=span,
            worker=worker,
            attempt=task.attempt,
            run=task.run,
            **details,
        )

    def seal(self, signer: Signer) -> bytes:
        """Return this event as the value of one field."""
        data = _encode(
            _EventBody(
                number=next(_numbers),
                kind=self.kind,
                job=self.job,
                n=self.n,
                span="0:1" if self.span is ONE else format_ranges(self.span),
                worker=self.worker,
                attempt=self.attempt,
                started=self.started,
                seconds=self.seconds,
                body=bytes(self.body),  # msgspec does not take a subclass of bytes
                run=self.run,
            )
        )
        return signer.sign(b"event", b"", data) + data

    def encode(self, signer: Signer) -> Fields:
        """Return the stream fields of an entry that carries only this event."""
        return [b"event", self.seal(signer)]

    @classmethod
    def decode(cls, flat: Fields, signer: Signer) -> Self:
        """Return the event of an entry that carries one; `SignatureError` if it carries none."""
        if len(flat) != 2 or flat[0] != b"event":
            raise SignatureError("An entry that is not an event was refused.")
        sealed = flat[1]
        data = sealed[SIGNATURE_BYTES:]
        signer.check(sealed[:SIGNATURE_BYTES], b"event", b"", data)
        try:
            found = _decode_event(data)
            return cls(
                kind=found.kind,
                job=found.job,
                n=found.n,
                span=ONE if found.span == "0:1" else parse_ranges(found.span),
                worker=found.worker,
                attempt=found.attempt,
                started=found.started,
                seconds=found.seconds,
                body=found.body,
                run=found.run,
            )
        except ValueError as error:
            raise SignatureError(f"A malformed event was refused: {error}") from error


class _ControlBody(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """A `ControlMessage` as it travels."""

    number: int
    job: str
    span: str
    run: _Natural | None


_decode_control = msgspec.msgpack.Decoder(_ControlBody).decode


class ControlMessage(msgspec.Struct, kw_only=True, frozen=True):
    """Tells all supervisors to ``cancel`` these items of this job where they run.

    ``everywhere`` says that each worker has something in its own lane.

    Attributes
    ----------
    run
        Later runs of the job are not concerned: supervisors may read this when items run again.
        None: all runs are.
    """

    kind: str
    job: str
    span: ItemRanges
    run: int | None = None

    def encode(self, signer: Signer) -> Fields:
        """Return the stream fields of this message."""
        span, kind = format_ranges(self.span), self.kind.encode()
        data = _encode(_ControlBody(number=next(_numbers), job=self.job, span=span, run=self.run))
        return [b"kind", kind, b"message", signer.seal(b"control", kind, data)]

    @classmethod
    def decode(cls, flat: Fields, signer: Signer) -> Self:
        """Return the message of an entry; `SignatureError` if it has none that we signed."""
        if flat[::2] != [b"kind", b"message"] or len(flat) != 4:
            raise SignatureError("An entry that is not a control message was refused.")
        _, kind, _, sealed = flat
        data = signer.unseal(b"control", kind, sealed)
        try:
            found = _decode_control(data)
            span = parse_ranges(found.span)
            return cls(kind=kind.decode(), job=found.job, span=span, run=found.run)
        except ValueError as error:
            raise SignatureError(f"A malformed control message was refused: {error}") from error
