"""The Lua scripts, one typed function each; what they do is written at the top of each file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from typing import Any

from .connection import Command
from .keys import DAY, WEEK
from .messages import Fields

NAMES = (
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
    "rerun",
    "retire_lane",
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
    session: str,
    control: str,
    workers: str,
    keys: Iterable[str],
    batch: int,
    entries: list[Any],
) -> Command:
    return _run("submit", (session, control, workers, *keys), (batch, WEEK * 1000, *entries))


def settle(control: str, workers: str, keys: Collection[str], entries: list[Any]) -> Command:
    # Not through `_run`: each call of a user needs this.
    n_keys = 2 + len(keys)
    return ("EVALSHA", _settle, n_keys, control, workers, *keys, WEEK * 1000, *entries)


def top_up(
    lane: str,
    backlog: str,
    placed: str,
    backlogs: str,
    workers: str,
    homes: Sequence[str],
    job: str,
    entry_id: bytes,
) -> Command:
    return _run("top_up", (lane, backlog, placed, backlogs, workers, *homes), (job, entry_id))


def retire_lane(lanes: str, stream: str, delayed: str, lane: str) -> Command:
    return _run("retire_lane", (lanes, stream, delayed), (lane, DAY))


def promote(delayed: str, lane: str, dead: str, refused: str, source: str) -> Command:
    return _run("promote", (delayed, lane, dead, refused), (WEEK * 1000, source))


def heartbeat(
    nodes: str,
    workers: str,
    own_lanes: Sequence[str],
    node: str,
    elapsed: float,
    descriptions: Iterable[str],
) -> Command:
    args = (node, int(elapsed * 1000), WEEK * 1000, *descriptions)
    return _run("heartbeat", (nodes, workers, *own_lanes), args)


def hasten(control: str, delayed: Sequence[str], seconds: float) -> Command:
    return _run("hasten", (control, *delayed), (int(seconds * 1000),))


def read_piece(stream: str, entry_id: bytes, start: int, size: int) -> Command:
    return _run("read_piece", (stream,), (entry_id, start, size))


def forget_worker(workers: str, own_lane: str, lanes: Sequence[str], worker: str) -> Command:
    return _run("forget_worker", (workers, own_lane, *lanes), (worker,))


def join(workers: str, setup: str, own_lane: str, worker: str, description: str) -> Command:
    return _run("join", (workers, setup, own_lane), (worker, description, WEEK * 1000))


def everywhere(
    workers: str, setup: str, lanes: Sequence[str], names: Sequence[str], messages: list[Fields]
) -> Command:
    flat = [part for message in messages for part in message]
    args = (len(names), len(messages[0]), *names, *flat)
    return _run("everywhere", (workers, setup, *lanes), args)


def cancel(
    cancelled: str,
    control: str,
    job: str,
    events: str,
    *,
    this_job: str,
    span: str,
    run: int | None,
    event: bytes,
    message: Fields,
) -> Command:
    keys = cancelled, control, job, events
    known = "" if run is None else run
    return _run("cancel", keys, (this_job, span, WEEK * 1000, known, event, *message))


def refuse(
    stream: str,
    dead: str,
    refused: str,
    meta: str,
    entry_id: bytes,
    reason: str,
    kind: str,
    source: str,
    fingerprints: Iterable[bytes],
) -> Command:
    args = (entry_id, reason, WEEK * 1000, kind, source, *fingerprints)
    return _run("refuse", (stream, dead, refused, meta), args)


def check_secret(meta: str, write: int, fingerprint: bytes, others: Iterable[bytes]) -> Command:
    return _run("check_secret", (meta,), (write, fingerprint, *others))


def open_job(
    jobs: str,
    job: str,
    events: str,
    name: str,
    owner: str,
    new_job: str,
    about: bytes,
    event: bytes,
    *,
    owned: Sequence[str],
) -> Command:
    return _run("open_job", (jobs, job, events, *owned), (name, owner, new_job, about, WEEK, event))


def delete_job(jobs: str, owned: Sequence[str], name: str, job: str) -> Command:
    return _run("delete_job", (jobs, *owned), (name, job))


def append_chunk(
    job: str,
    inputs: str,
    control: str,
    lane: str,
    delayed: str,
    backlog: str,
    placed: str,
    backlogs: str,
    workers: str,
    *,
    first: int,
    number: int,
    mark: str,
    arguments: bytes,
    delay: float,
    job_id: str,
    task: Fields,
) -> Command:
    keys = (job, inputs, control, lane, delayed, backlog, placed, backlogs, workers)
    args = (first, number, mark, arguments, int(delay * 1000), WEEK, job_id, *task)
    return _run("append_chunk", keys, args)


def close_job(job: str, events: str, items: int, event: bytes) -> Command:
    return _run("close_job", (job, events), (items, event))


def rerun(
    job: str,
    events: str,
    cancelled: str,
    lane: str,
    backlog: str,
    placed: str,
    backlogs: str,
    workers: str,
    *,
    last: int,
    this_job: str,
    about: bytes,
    n_failed: int,
    n_cancelled: int,
    event: bytes,
    token: str,
    messages: list[Fields],
) -> Command:
    flat = [part for message in messages for part in message]
    n_fields = len(messages[0]) if messages else 1
    args = (last, this_job, about, n_failed, n_cancelled, event, n_fields, token, *flat)
    keys = (job, events, cancelled, lane, backlog, placed, backlogs, workers)
    return _run("rerun", keys, args)
