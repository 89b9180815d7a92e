"""Whether a call means the named job that is there, and what of it is another than it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..errors import JobChanged
from ..objects.identity import inputs_digest
from ..objects.payloads import load
from ..protocol.jobs import Chunk, JobRecord
from .session import Session

__all__ = ["check_function", "check_inputs"]


def check_function(record: JobRecord, about: dict[str, Any]) -> None:
    """Compare what a call says of its function with what the job's client wrote down."""
    changed = []
    (now,), known = about["identities"], record.about["identities"]
    if now not in known:
        changed.append(_other_function(known[-1], now, record.about["function"]))
    if about["call"] != record.about["call"]:
        changed.append("its calls had another number of arguments")
    # As JSON has it: of a tuple, a list.
    then, seed = record.about.get("seed"), json.loads(json.dumps(about["seed"]))
    if then != seed:
        changed.append(f"its seed is {then}, but {seed} is given")
    if changed:
        raise _changed(record, " and ".join(changed))


def _other_function(then: dict[str, str], now: dict[str, str], name: str) -> str:
    if "" in then or "" in now:
        return f"its function {name}() has changed"
    parts = [part for part in {**then, **now} if then.get(part) != now.get(part)]
    return f"this has changed in its function {name}(): {', '.join(parts)}"


def check_inputs(session: Session, record: JobRecord, source: Iterator[Any]) -> None:
    """Take from `source` what the job has already, and compare."""
    for chunk in record.chunks:
        piece = list(islice(source, chunk.n_items))
        if len(piece) < chunk.n_items:
            n = chunk.first + len(piece)
            raise _changed(record, f"it has at least {record.n_items} inputs, but {n} are given")
        if inputs_digest(piece) != chunk.digest:
            raise _changed(record, _other_input(session, record, chunk, piece))
    if record.total is not None and next(source, record) is not record:
        raise _changed(record, f"it has {record.total} inputs, but more are given")


def _other_input(session: Session, record: JobRecord, chunk: Chunk, piece: list[Any]) -> str:
    """Return which of a chunk's inputs is the first that is another one."""
    data = session.ask(lambda store: store.job_inputs(record.id, chunk.first))
    then = load(data) if data else []
    for number, (old, new) in enumerate(zip(then, piece, strict=False), chunk.first):
        if inputs_digest([old]) != inputs_digest([new]):
            return f"its input {number} was another one"
    last = chunk.first + chunk.n_items - 1
    return f"some of its inputs {chunk.first} to {last} have changed"


def _changed(record: JobRecord, what: str) -> JobChanged:
    name = record.name
    return JobChanged(
        f"There is a job {name!r} already, and {what}. To get its results: q.attach({name!r})."
        f" To run what failed with another function: q.attach({name!r}).retry_failed(function)."
        " To compute all of it again: the same call with replace=True, or with another name."
    )
