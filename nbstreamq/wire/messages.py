"""What travels through the streams, as dataclasses and as signed stream fields.

call (client) -> `Task` (lane) -> `Event` (event stream, back to the client); `ControlMessage` goes
to the supervisors. Every message carries a signature over all its fields, checked when it is read.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

from ..errors import SignatureError
from .item_ranges import ONE, ItemRanges, format_ranges, parse_ranges
from .keys import DAY
from .signing import Signer


class State(StrEnum):
    """What has become of a task.

    A task is ``waiting`` in a lane, ``delayed`` until it is due, ``running`` in a worker, or
    over: ``done``, ``failed`` or ``cancelled``.
    """

    WAITING = "waiting"
    DELAYED = "delayed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


#: A stream entry's fields, as the server keeps them: name, value, name, value, ...
Fields = list[bytes]
#: What is raised when a pickle is none, or holds something else than an event.
_MALFORMED = (
    ValueError,
    TypeError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    pickle.UnpicklingError,
)
#: Longest pause between two attempts, in seconds.
MAX_PAUSE = float(DAY)
#: Numbers the events and orders of this process, so that no two are the same: what comes twice is a
#: copy. Two tasks never are the same, by what they say.
_numbers = itertools.count(time.time_ns())


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is to be run: what `TaskQueue.options` takes, and `rerun`.

    Attributes
    ----------
    retries
        How often a task that raised is run again.
    backoff
        Seconds before the first retry; doubled for each further one, up to `MAX_PAUSE`.
    time_limit
        Seconds that one call may take; None: no limit.
    memory_limit
        Bytes that the worker process may use while the call runs; None: no limit.
    lane
        Lane that the task waits in; None: ``default``, or that of its depth inside a task.
    delay
        Seconds before the task may start.
    cache
        Whether the result of a single call is kept, and taken for the same call again.
    rerun
        Which rerun of a job that had ended this is part of; 0: none.
    seed
        What the random numbers of each item follow from, with its index; None: from nothing.
    """

    retries: int = 0
    backoff: float = 0.0
    time_limit: float | None = None
    memory_limit: int | None = None
    lane: str | None = None
    delay: float = 0.0
    cache: bool = False
    rerun: int = 0
    seed: int | Sequence[int] | None = None

    def encode(self) -> bytes:
        """Return the options that differ from the defaults, as JSON."""
        return self._encoded

    @functools.cached_property
    def _encoded(self) -> bytes:
        changed = self.changed()
        return json.dumps(changed).encode() if changed else b""

    def pause_after(self, attempt: int) -> float:
        """Return the seconds between a failed attempt, counted from 1, and the next."""
        # After 64 doublings any pause but 0 is the longest one; a thousand overflow a float.
        return min(self.backoff * 2.0 ** min(attempt - 1, 64), MAX_PAUSE)

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v != getattr(type(self), k)}

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(**json.loads(data)) if data else cls._defaults()

    @classmethod
    @functools.cache
    def _defaults(cls) -> Self:
        return cls()


class Message:
    """Base of the messages whose fields are those of a stream entry, encoded and signed."""

    KIND: ClassVar[bytes]

    def values(self) -> list[bytes]:
        """Return the value of each field, in the order of declaration."""
        raise NotImplementedError

    @classmethod
    def of(cls, values: list[bytes]) -> Self:
        """Return the message that `values` writes; ValueError if they don't."""
        raise NotImplementedError

    @classmethod
    @functools.cache
    def names(cls) -> list[bytes]:
        """Return the names of the fields on the wire."""
        return [f.metadata.get("wire", f.name).encode() for f in fields(cls)]  # type: ignore[arg-type]

    def encode(self, signer: Signer, kind: bytes = b"") -> Fields:
        """Return the signed stream fields of this message; `kind` is in the place of `KIND`."""
        values = self.values()
        flat: Fields = [b"sig"] * (2 * len(values) + 2)
        flat[:-2:2] = self.names()
        flat[1::2] = *values, signer.sign(kind or self.KIND, *values)
        return flat

    @classmethod
    def decode(cls, flat: Fields, signer: Signer, kind: bytes = b"") -> Self:
        """Return the message that `flat` holds, which was encoded as one of `kind`.

        Raises
        ------
        SignatureError
            A field is missing, unknown, or was changed after it was signed.
        """
        if flat[0:-1:2] != [*cls.names(), b"sig"]:
            raise SignatureError(f"An entry that is no {cls.KIND.decode()} message was refused.")
        values = flat[1:-2:2]
        signer.check(flat[-1], kind or cls.KIND, *values)
        try:
            return cls.of(values)
        except (ValueError, TypeError) as error:
            raise SignatureError(f"A malformed {cls.KIND.decode()} was refused: {error}") from error


# Not frozen, which would take twice as long to make; never changed all the same.
@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Task(Message):
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
    """

    KIND = b"task"

    job: str
    n: int
    span: ItemRanges = ONE
    fn: str
    name: str
    call: str
    args: bytes
    opts: bytes = b""
    attempt: int = field(default=1, metadata={"wire": "try"})
    losses: int = field(default=0, metadata={"wire": "lost"})

    def values(self) -> list[bytes]:
        return [
            self.job.encode(),
            b"%d" % self.n,
            format_ranges(self.span).encode(),
            self.fn.encode(),
            self.name.encode(errors="backslashreplace"),  # it may hold half a surrogate pair
            self.call.encode(),
            self.args,
            self.opts,
            b"%d" % self.attempt,
            b"%d" % self.losses,
        ]

    @classmethod
    def of(cls, values: list[bytes]) -> Self:
        job, n, span, fn, name, call, args, opts, attempt, losses = values
        return cls(
            job=job.decode(),
            n=int(n),
            span=parse_ranges(span.decode()),
            fn=fn.decode(),
            name=name.decode(),
            call=call.decode(),
            args=args,
            opts=opts,
            attempt=int(attempt),
            losses=int(losses),
        )

    def id_of(self, item: int) -> str:
        """Return the id of the task that is item `item` of the payload."""
        return f"{self.job}-{self.n + item}"

    def again(self, span: ItemRanges, *, attempt: int = 0, losses: int = 0) -> Self:
        """Return this task for `span` only, with so many attempts and losses more."""
        return replace(self, span=span, attempt=self.attempt + attempt, losses=self.losses + losses)


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Event:
    """What happened to items of a job.

    Sealed into one value, so that a stream entry may carry many: a batch of short calls costs one.

    Attributes
    ----------
    kind
        ``finished`` (body: pickled outcomes), ``started``, ``output``, ``progress``, ``retried`` or
        ``lost`` (bodies: JSON), ``wanted`` (body: digest of a function that the server lacks).
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
    """

    KIND: ClassVar[bytes] = b"event"

    kind: str
    job: str
    n: int
    span: ItemRanges = ONE
    worker: str
    attempt: int = 1
    started: float = 0.0
    seconds: float = 0.0
    body: bytes = b""

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
            **details,
        )

    def seal(self, signer: Signer) -> bytes:
        """Return this event as the value of one field."""
        span = format_ranges(self.span)
        values = (next(_numbers), self.kind, self.job, self.n, span, self.worker, self.attempt)
        data = pickle.dumps((*values, self.started, self.seconds, self.body), 5)
        return signer.seal(self.KIND, b"", data)

    @classmethod
    def unseal(cls, sealed: bytes, signer: Signer) -> Self:
        """Return the event that `seal` wrote; `SignatureError` if that is not what it is."""
        data = signer.unseal(cls.KIND, b"", sealed)
        try:
            _, kind, job, n, span, worker, attempt, started, seconds, body = pickle.loads(data)
            return cls(
                kind=kind,
                job=job,
                n=n,
                span=parse_ranges(span),
                worker=worker,
                attempt=attempt,
                started=started,
                seconds=seconds,
                body=body,
            )
        except _MALFORMED as error:
            raise SignatureError(f"A malformed event was refused: {error!r}") from error

    def encode(self, signer: Signer) -> Fields:
        """Return the stream fields of an entry that carries only this event."""
        return [b"event", self.seal(signer)]

    @classmethod
    def decode(cls, flat: Fields, signer: Signer) -> Self:
        """Return the event of an entry that carries one."""
        if flat[::2] != [b"event"]:
            raise SignatureError("An entry that is no event message was refused.")
        return cls.unseal(flat[1], signer)


@dataclass(frozen=True, kw_only=True)
class ControlMessage(Message):
    """An order to all supervisors: ``cancel`` these items of this job where they run.

    ``resume`` takes back what was ordered of the job: its items may run again.
    """

    KIND = b"control"

    kind: str
    job: str
    span: ItemRanges
    number: int = field(default_factory=lambda: next(_numbers), compare=False)

    def values(self) -> list[bytes]:
        span = format_ranges(self.span)
        return [self.kind.encode(), self.job.encode(), span.encode(), b"%d" % self.number]

    @classmethod
    def of(cls, values: list[bytes]) -> Self:
        kind, job, span, number = values
        return cls(
            kind=kind.decode(),
            job=job.decode(),
            span=parse_ranges(span.decode()),
            number=int(number),
        )
