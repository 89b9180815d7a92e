"""The outcomes of some items, as the body of an event.

Values are pickled together where that can be: what they have in common, such as a class of the
notebook, is there once, and a pickle for each takes several times as long.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any

from ..errors import NbstreamqError, ResultNotPicklable
from .large_values import Blobs
from .pickling import BatchPickle, all_simple, dump, dump_batch, load, load_batch, no_garbage
from .remote_errors import dump_error, load_error

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
    together: Any = None
    if all_simple(values):
        together = list(values)
    elif len(values) > 1 and (found := dump_batch(values, blobs)):
        together = tuple(found)
    if together is not None:
        body = pickle.dumps((True, together, errors), 5)
        # Else one by one: where there is no room for all, there may be some for each.
        if len(body) <= MAX_BODY_BYTES and (packed := _pack(body, blobs)):
            return packed
    pickles = [
        b"" if k in errors else _dump(v, k, errors, id_of, blobs) for k, v in enumerate(values)
    ]
    if sum(map(len, pickles)) > MAX_BODY_BYTES:
        _refuse_large(pickles, errors, id_of)
    body = pickle.dumps((False, pickles, errors), 5)
    # They may all be small.
    return _pack(body, blobs) or body


def _pack(body: bytes, blobs: Blobs | None) -> bytes | None:
    """Return the message for `body`; None if it can't be laid where it belongs."""
    try:
        return body if blobs is None else blobs.pack(body, (), "some results")
    except (NbstreamqError, OSError):
        return None


def _dump(
    value: Any,
    position: int,
    errors: dict[int, bytes],
    id_of: Callable[[int], str],
    blobs: Blobs | None,
) -> bytes:
    task = id_of(position)
    try:
        return dump(value, f"the result of task {task}", blobs, maps=False)
    except BaseException as error:  # noqa: BLE001 - a __reduce__ that exits must not end the worker
        known = isinstance(error, NbstreamqError)
        text = str(error) if known else f"The result of task {task} can't be pickled: {error!r}"
        wrapped = ResultNotPicklable(text, task=task)
        errors[position] = dump_error(wrapped, task=task)
        if type(value) is CoroutineType:
            value.close()  # else Python warns in a later task that this one was never awaited
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
    with no_garbage():
        together, values, dumped = pickle.loads(body)
    errors = {k: load_error(data) for k, data in dumped.items()}
    failed: dict[int, BaseException] = {}
    if not together:
        for k, data in enumerate(values):
            values[k] = None if k in errors else _load(data, k, failed)
    elif isinstance(values, tuple):
        values = load_batch(BatchPickle(*values), failed)
    for error in {id(error): error for error in failed.values()}.values():  # some are several's
        with suppress(Exception):  # it may be frozen
            error.add_note("The task was done; this was raised when its result was unpickled here.")
    return values, errors | failed


def _load(data: bytes, position: int, failed: dict[int, BaseException]) -> Any:
    try:
        return load(data)
    except BaseException as error:  # noqa: BLE001 - a class's own code runs here; its failure is this task's
        failed[position] = error
        return None
