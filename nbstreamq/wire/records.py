"""What the server keeps, as dataclasses: named jobs, refused and failed messages, workers.

Anybody who can write to the server may have written it: the functions here check what they read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SignatureError
from .item_ranges import items
from .messages import Fields, Task, claimed_number
from .replies import MAX_COUNT, count, printable, seconds
from .settlement import LETTER, letter_name
from .signing import Signer

# -- named jobs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """A message's worth of a named job's inputs: its first item, their number, and their digest."""

    first: int
    n_items: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What the server keeps of a named job, without its inputs and events.

    Attributes
    ----------
    id, name
        The job's id, and the name that its user chose.
    about
        What its client wrote down: function, lane, options, folder and interpreter.
    chunks
        What was submitted, in order.
    n_items
        Number of items submitted so far.
    total
        Number of items of the whole job; None while more may come.
    n_done, n_failed, n_cancelled
        Number of items that ended in each way.
    n_reruns
        How often ended items were put back into their lane.
    made
        When it was made, in seconds since the epoch by the server's clock.
    expires
        Seconds until the server forgets it; None: never.
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


def read_job(job: str, known: Mapping[bytes, Any], ttl_ms: int, signer: Signer) -> JobRecord:
    """Return the record of a job from its hash and its time to live.

    Raises
    ------
    SignatureError
        Somebody without the secret has written or changed it.
    KeyError, ValueError
        A field is missing or malformed.
    """
    chunks = sorted((_number(k), v) for k, v in known.items() if k.isdigit())
    return JobRecord(
        id=job,
        name=job.rpartition(":")[0],
        about=json.loads(signer.unseal(b"job", job.encode(), known[b"about"])),
        chunks=_chunks(chunks, _number(known[b"n"])),
        n_items=_number(known[b"n"]),
        total=_number(known[b"total"]) if b"total" in known else None,
        n_done=_number(known.get(b"done", b"0")),
        n_failed=_number(known.get(b"failed", b"0")),
        n_cancelled=_number(known.get(b"cancelled", b"0")),
        n_reruns=_number(known[b"run"]),
        made=seconds(known[b"made"]),
        expires=ttl_ms / 1000 if ttl_ms >= 0 else None,
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
    """Return a number in a job's record; SignatureError if it is not a number."""
    found = count(text)
    if not text.isdigit() or found == MAX_COUNT:
        raise SignatureError(
            "What the server keeps of the job was changed:"
            f" {printable(text[:20])!r} is not a number."
        )
    return found


# -- what was refused, and what failed for good ------------------------------------------------

#: Most bytes to show of a text that somebody else wrote.
_SHOWN_BYTES = 200
#: The reason to list an entry that nbstreamq did not write.
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
        The key it was in, without the prefix that all keys of the queue share.
    lane
        The lane to retry it in; empty if unknown.
    task
        Its task if it is signed and whole; else None.
    claim
        Id of the task that it claims to be, signed or not; empty if it claims none.
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
        """The items of its job that the task is about."""
        task = self.task
        return tuple(task.n + item for item in items(task.span)) if task else ()


def read_dead_entry(found: tuple[bytes, Fields], signer: Signer) -> DeadEntry:
    """Return what an entry of the dead stream says, also if it is malformed."""
    entry_id, flat = found
    if flat[0:4:2] not in ([b"refused", b"from"], [b"failed", b"from"]):
        flat = [b"refused", _STRANGE, b"from", b"dead", *flat]
    what, why, _, where, *entry = flat
    source = _clipped(where)
    lane = source.partition(":")[2] if source.startswith(("lane:", "delayed:")) else ""
    reason, has_failed, task = _clipped(why), what == b"failed", None
    try:
        task = Task.decode(entry, signer) if lane else None
        if has_failed:
            reason = signer.unseal(LETTER, letter_name(where, entry), why).decode()
    except (SignatureError, IndexError):
        reason, has_failed, task = _clipped(_STRANGE) if has_failed else reason, False, None
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
    n = claimed_number(said.get(b"header", b""))
    return f"{_clipped(said[b'job'])}-{n}" if b"job" in said and n is not None else ""


def _clipped(text: bytes) -> str:
    return printable(text[:_SHOWN_BYTES])


# -- the server --------------------------------------------------------------------------------

#: Part of the allowed memory above which we warn that it runs out.
NEARLY_FULL = 0.8
#: The limit of memory that the embedded server gets while its files take too much of the disk.
DISK_IS_FULL = 1
#: The oldest versions that have all commands that we use.
_OLDEST = {"Redis": 7, "Valkey": 8}


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server reports about itself; None where it does not tell.

    Attributes
    ----------
    product, version
        ``Redis`` or ``Valkey``.
    used_bytes, limit_bytes
        Memory in use, and how much of it is allowed; 0: no limit.
    policy
        What it does when that is used up.
    saves
        Whether it writes its data to a disk.
    """

    product: str = "Redis"
    version: str | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None
    policy: str | None = None
    saves: bool | None = None

    def problems(self) -> list[str]:
        """Return what endangers tasks, in words, and what to do about it."""
        found = []
        major = (self.version or "").partition(".")[0]
        if 0 < count(major) < _OLDEST[self.product]:
            found.append(
                f"{self.product} {self.version} is too old: nbstreamq needs Redis 7.0 or Valkey 8.0"
                " at least."
            )
        if self.limit_bytes and self.policy not in (None, "noeviction"):
            found.append(
                f"the server drops data when its memory is full: maxmemory-policy is {self.policy}."
                " Tasks and results would be lost without a word; set it to noeviction."
            )
        if self.saves is False:
            found.append(
                "the server saves nothing to disk: when it ends, all tasks and results are lost."
                " Set `appendonly yes` in its configuration."
            )
        if self.limit_bytes == DISK_IS_FULL:
            found.append(
                "the server's files have reached their limit of disk: calls are refused. Delete"
                " jobs that you no longer need (`nbstreamq jobs delete`), or start it with a larger"
                " --disk."
            )
        elif self.limit_bytes and (self.used_bytes or 0) > NEARLY_FULL * self.limit_bytes:
            used, limit = (self.used_bytes or 0) / 2**20, self.limit_bytes / 2**20
            found.append(
                f"the server's memory is {used / limit:.0%} full: {used:,.0f} of {limit:,.0f} MiB."
                " When it is full, calls are refused; raise maxmemory, or submit less at a time."
            )
        return found


def read_info(text: str) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}


def server_facts(info: Mapping[str, str], *, saves: bool | None) -> ServerFacts:
    """Return what INFO says; `saves` takes another command."""
    is_valkey = info.get("server_name") == "valkey"
    return ServerFacts(
        product="Valkey" if is_valkey else "Redis",
        version=_shown_text(info.get("valkey_version" if is_valkey else "redis_version")),
        used_bytes=_number_in(info.get("used_memory")),
        limit_bytes=_number_in(info.get("maxmemory")),
        policy=_shown_text(info.get("maxmemory_policy")),
        saves=saves,
    )


def _shown_text(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _number_in(text: str | None) -> int | None:
    return count(text) if text and text.isdigit() else None


# -- workers -----------------------------------------------------------------------------------

#: What a worker's description may hold.
_DESCRIPTION: dict[str, Any] = {
    "node": str,
    "host": str,
    "supervisor": int,
    "pid": int,
    "python": str,
    "state": str,
    "limit": str,
    "lanes": list,
    "homes": list,
    "unit": str,
    "environment": str,
    "memory": int,
    "peak": int,
    "cpu": float,
}
#: Process ids are below; os.kill takes no others.
_PID_LIMIT = 2**31
#: Longest text in a description, and largest number: both are shown.
_MAX_TEXT, _MAX_NUMBER = 1000, 2**53


def read_worker(name: bytes, text: bytes) -> tuple[str, dict[str, Any]]:
    """Return a worker's id and description; ValueError if they are malformed or can't be shown."""
    worker = name.decode()
    if not _is_sound(worker, "name"):
        raise ValueError("not a name")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a description")  # noqa: TRY004 - of what was sent, not of our own
    for field, kind in _DESCRIPTION.items():
        value = found.get(field, kind())
        if type(value) is not kind or not _is_sound(value, field):
            raise ValueError(f"not a description: {field}")
    json.dumps(found, ensure_ascii=False).encode()  # ValueError: half a surrogate pair
    return worker, found


def _is_sound(value: Any, name: str) -> bool:
    """Return whether a part of a description can be used, and shown."""
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT and value.isprintable()
    if isinstance(value, list):
        return all(isinstance(one, str) and _is_sound(one, name) for one in value)
    limit = _PID_LIMIT if name in ("pid", "supervisor") else _MAX_NUMBER
    return bool(0 <= value < limit)  # and no NaN
