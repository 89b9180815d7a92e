"""The outcomes of some items, as the body of an event."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import NbstreamqError, ResultNotPicklable
from .blobs import Blobs
from .payloads import SIMPLE, dump, load
from .remote_errors import dump_error, load_error

__all__ = ["MAX_BODY_BYTES", "dump_outcomes", "load_outcomes"]

#: The largest outcome that is sent: servers take no string over 512 MiB.
MAX_BODY_BYTES = 500 * 2**20


def dump_outcomes(
    values: Sequence[Any],
    errors: dict[int, bytes],
    id_of: Callable[[int], str],
    blobs: Blobs | None = None,
) -> bytes:
    """Return `values`, and the errors that stand in for some of them, as bytes.

    Parameters
    ----------
    values
        One for each item, in order; None where there is an error.
    errors
        Position in `values` -> what `dump_error` returned. Those made here are added.
    id_of
        Position in `values` -> the task's id, for errors made here.
    blobs
        Where large parts go; None: all in one.
    """
    if set(map(type, values)) <= SIMPLE:
        body = pickle.dumps((True, list(values), errors), 5)
        if len(body) <= MAX_BODY_BYTES:
            return _pack(body, blobs)
    pickles = [
        b"" if k in errors else _dump(v, k, errors, id_of, blobs) for k, v in enumerate(values)
    ]
    if sum(map(len, pickles)) > MAX_BODY_BYTES:
        _refuse_large(pickles, errors, id_of)
    return _pack(pickle.dumps((False, pickles, errors), 5), blobs)


def _pack(body: bytes, blobs: Blobs | None) -> bytes:
    return body if blobs is None else blobs.pack(body, (), "some results")


def _dump(
    value: Any,
    position: int,
    errors: dict[int, bytes],
    id_of: Callable[[int], str],
    blobs: Blobs | None,
) -> bytes:
    task = id_of(position)
    try:
        return dump(value, f"the result of task {task}", blobs)
    except BaseException as error:  # noqa: BLE001 - a __reduce__ that exits must not end the worker
        known = isinstance(error, NbstreamqError)
        text = str(error) if known else f"The result of task {task} can't be pickled: {error!r}"
        wrapped = ResultNotPicklable(text, task=task)
        errors[position] = dump_error(wrapped, task=task)
        return b""


def _refuse_large(
    pickles: list[bytes], errors: dict[int, bytes], id_of: Callable[[int], str]
) -> None:
    """Replace the largest results by errors until the rest fits into one event."""
    total = sum(map(len, pickles))
    for k in sorted(range(len(pickles)), key=lambda k: -len(pickles[k])):
        if total <= MAX_BODY_BYTES:
            return
        task = id_of(k)
        error = ResultNotPicklable(
            f"The result of task {task} is {len(pickles[k]) / 2**20:,.0f} MB when pickled; at most"
            f" {MAX_BODY_BYTES // 2**20} MB can be sent back. Save it to a file in the task, and"
            " return the file's path.",
            task=task,
        )
        total -= len(pickles[k])
        pickles[k], errors[k] = b"", dump_error(error, task=task)


def load_outcomes(body: bytes) -> tuple[list[Any], dict[int, BaseException]]:
    """Return the values, and position -> exception for those that have none."""
    simple, values, dumped = pickle.loads(body)
    errors = {k: load_error(data) for k, data in dumped.items()}
    if not simple:
        for k, data in enumerate(values):
            values[k] = None if k in errors else _load(data, k, errors)
    return values, errors


def _load(data: bytes, position: int, errors: dict[int, BaseException]) -> Any:
    try:
        return load(data)
    except BaseException as error:  # noqa: BLE001 - a class's own code runs here; its failure is this task's
        error.add_note("The task was done; this was raised when its result was unpickled here.")
        errors[position] = error
        return None
