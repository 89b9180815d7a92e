"""The Lua scripts, one typed function each; what they do is written at the top of each file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from typing import Any

from .connection import Command
from .keys import DAY, WEEK, Keys, chunk_keys, keys_of_job, limit_keys, tail_of
from .messages import Fields

NAMES = (
    "acquire",
    "check_secret",
    "append_chunk",
    "forget_worker",
    "cancel",
    "close_job",
    "delete_job",
    "everywhere",
    "hasten",
    "heartbeat",
    "join",
    "open_job",
    "read_piece",
    "promote",
    "refuse",
    "release",
    "rerun",
    "retire_lane",
    "set_limit",
    "settle",
    "submit",
    "top_up",
)
_FOLDER = files(__package__).joinpath("lua")
_INCLUDE = re.compile(r"^-- @include (\w+)$", re.M)


def source(name: str) -> str:
    """Return the text of the script `name`."""
    return _FOLDER.joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _with_included(text: str) -> str:
    """Return a script with the functions that it shares with others."""
    return _INCLUDE.sub(lambda found: source(f"include/{found[1]}"), text)


_texts = {name: _with_included(source(name)) for name in NAMES}
#: What EVALSHA wants; nothing secret depends on it.
_digests = {
    name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    for name, text in _texts.items()
}

_settle = _digests["settle"]


def texts() -> list[str]:
    """Return all scripts, to be loaded when a connection opens."""
    return list(_texts.values())


def _run(name: str, keys: Sequence[str], args: Iterable[Any]) -> Command:
    return ("EVALSHA", _digests[name], len(keys), *keys, *args)


def submit(
    keys: Keys, session: str, batch: int, others: Iterable[str], entries: list[Any]
) -> Command:
    known = (keys.session(session), keys.control, keys.workers, *others)
    return _run("submit", known, (batch, WEEK * 1000, *entries))


def settle(keys: Keys, others: Collection[str], entries: list[Any]) -> Command:
    # Not through `_run`: each call of a user needs this.
    known = (keys.control, keys.workers, *others)
    return ("EVALSHA", _settle, len(known), *known, WEEK * 1000, *entries)


def top_up(
    keys: Keys, job: str, lane: str, homes: Iterable[str], entry_id: bytes, n_each: int
) -> Command:
    """Call it for the chunks of `job` in `lane`, and in these lanes of homes."""
    known = (*chunk_keys(keys, job, lane), keys.workers, *map(keys.lane, homes))
    return _run("top_up", known, (job, entry_id, n_each))


def retire_lane(keys: Keys, lane: str) -> Command:
    return _run("retire_lane", (keys.lanes, keys.lane(lane), keys.delayed(lane)), (lane, DAY))


def promote(keys: Keys, lane: str) -> Command:
    delayed = keys.delayed(lane)
    known = (delayed, keys.lane(lane), keys.dead, keys.refused)
    return _run("promote", known, (WEEK * 1000, tail_of(delayed)))


def heartbeat(keys: Keys, node: str, elapsed: float, workers: dict[str, str]) -> Command:
    known = (keys.nodes, keys.workers, *map(keys.own_lane, workers))
    described = [part for worker in workers.items() for part in worker]
    return _run("heartbeat", known, (node, int(elapsed * 1000), WEEK * 1000, *described))


def hasten(keys: Keys, lanes: Iterable[str], seconds: float) -> Command:
    return _run("hasten", (keys.control, *map(keys.delayed, lanes)), (int(seconds * 1000),))


def read_piece(stream: str, entry_id: bytes, start: int, size: int) -> Command:
    return _run("read_piece", (stream,), (entry_id, start, size))


def forget_worker(keys: Keys, worker: str, lanes: Iterable[str]) -> Command:
    known = (keys.workers, keys.own_lane(worker), *map(keys.lane, lanes))
    return _run("forget_worker", known, (worker,))


def set_limit(keys: Keys, name: str, concurrent: str, rate: str) -> Command:
    known = (keys.limits, *limit_keys(keys, name))
    return _run("set_limit", known, (name, concurrent, rate))


def acquire(
    keys: Keys, name: str, concurrent: str, rate: str, worker: str, leases: Iterable[str]
) -> Command:
    known = (keys.limits, *limit_keys(keys, name), keys.granted(worker))
    return _run("acquire", known, (name, concurrent, rate, *leases))


def release(keys: Keys, name: str, worker: str, leases: Iterable[str]) -> Command:
    return _run("release", limit_keys(keys, name), (worker, *leases))


def join(keys: Keys, worker: str, description: str) -> Command:
    known = (keys.workers, keys.setup, keys.own_lane(worker))
    return _run("join", known, (worker, description, WEEK * 1000))


def everywhere(
    keys: Keys, names: Sequence[str], others: Sequence[str], messages: list[Fields]
) -> Command:
    flat = [part for message in messages for part in message]
    args = (len(names) + len(others), len(messages[0]), *names, *others, *flat)
    return _run("everywhere", (keys.workers, keys.setup, *map(keys.own_lane, names)), args)


def cancel(
    keys: Keys, job: str, span: str, run: int | None, event: bytes, message: Fields
) -> Command:
    known = (keys.cancelled, keys.control, keys.job(job), keys.events(job))
    this_run = "" if run is None else run
    return _run("cancel", known, (job, span, WEEK * 1000, this_run, event, *message))


def refuse(
    keys: Keys,
    stream: str,
    entry_id: bytes,
    reason: str,
    kind: str,
    fingerprints: Iterable[bytes],
) -> Command:
    args = (entry_id, reason, WEEK * 1000, kind, tail_of(stream), *fingerprints)
    return _run("refuse", (stream, keys.dead, keys.refused, keys.meta), args)


def check_secret(keys: Keys, write: int, fingerprint: bytes, others: Iterable[bytes]) -> Command:
    return _run("check_secret", (keys.meta,), (write, fingerprint, *others))


def open_job(
    keys: Keys, name: str, owner: str, new_job: str, about: bytes, event: bytes
) -> Command:
    known = (keys.jobs, keys.job(new_job), keys.events(new_job), *keys_of_job(keys, owner))
    return _run("open_job", known, (name, owner, new_job, about, WEEK, event))


def delete_job(keys: Keys, name: str, job: str) -> Command:
    return _run("delete_job", (keys.jobs, *keys_of_job(keys, job)), (name, job))


def append_chunk(
    keys: Keys,
    job: str,
    lane: str,
    *,
    first: int,
    number: int,
    mark: str,
    arguments: bytes,
    delay: float,
    task: Fields,
) -> Command:
    stream, *places = chunk_keys(keys, job, lane)
    known = (keys.job(job), keys.inputs(job), keys.control, stream, keys.delayed(lane), *places)
    args = (first, number, mark, arguments, int(delay * 1000), WEEK, job, *task)
    return _run("append_chunk", (*known, keys.workers), args)


def close_job(keys: Keys, job: str, items: int, event: bytes) -> Command:
    return _run("close_job", (keys.job(job), keys.events(job)), (items, event))


def rerun(
    keys: Keys,
    job: str,
    lane: str,
    *,
    last: int,
    about: bytes,
    n_failed: int,
    n_cancelled: int,
    event: bytes,
    token: str,
    messages: list[Fields],
) -> Command:
    known = (keys.job(job), keys.events(job), keys.cancelled, *chunk_keys(keys, job, lane))
    flat = [part for message in messages for part in message]
    n_fields = len(messages[0]) if messages else 1
    args = (last, job, about, n_failed, n_cancelled, event, n_fields, token, *flat)
    return _run("rerun", (*known, keys.workers), args)
