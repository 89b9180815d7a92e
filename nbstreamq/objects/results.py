"""The outcomes of some items, as the body of an event.

A body is a pickle of (True, values, errors): a list of plain values, or the parts of a
`BatchPickle`. Values that can't be pickled together are a pickle each: (False, pickles, errors).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any

from ..errors import NbstreamqError, ResultNotPicklable
from ..sizes import in_units
from .large_values import ValueWriter
from .pickling import (
    PLAIN,
    BatchPickle,
    are_lists_of_plain,
    dump,
    dump_batch,
    load,
    load_batch,
    no_garbage,
)
from .remote_errors import dump_error, load_error

#: The largest body: servers accept no string over 512 MiB.
MAX_BODY_BYTES = 500 * 2**20
#: Bytes of a body that has too few objects to bother the garbage collector.
_SMALL_BODY_BYTES = 2**14
#: The largest value that `dump_small` takes, in bytes: so small that it is always in its message.
_SMALL_VALUE_BYTES = 2**14

_UNPICKLED_HERE = "The task was done; this was raised when its result was unpickled here."


def dump_small(value: Any) -> bytes | None:
    """Return one value as `dump_outcomes` does, if it is of a plain type and small; else None."""
    if type(value) not in PLAIN or sys.getsizeof(value) > _SMALL_VALUE_BYTES:
        return None
    return pickle.dumps((True, [value], {}), 5)


def dump_outcomes(
    values: Sequence[Any],
    errors: dict[int, bytes],
    id_of: Callable[[int], str],
    writer: ValueWriter | None = None,
) -> bytes:
    """Return `values`, and the errors that stand in for some of them, as bytes.

    Parameters
    ----------
    values
        One for each item, in order; None where there is an error.
    errors
        Position in `values` -> what `dump_error` returned. Errors of pickling are added.
    id_of
        Position in `values` -> the task's id, for errors of pickling.
    writer
        Where large parts go; None: all is in the bytes.
    """
    together: Any = None
    if PLAIN.issuperset(map(type, values)) or are_lists_of_plain(values):
        together = list(values)
    elif len(values) > 1 and (batch := dump_batch(values, writer)):
        together = tuple(batch)
    if together is not None:
        body = pickle.dumps((True, together, errors), 5)
        if len(body) < (MAX_BODY_BYTES if writer is None else writer.min_external_bytes):
            return body
        # Where there is no room for all together, there may be some for each.
        if len(body) <= MAX_BODY_BYTES and (packed := _pack(body, writer)):
            return packed
    pickles = [
        b"" if k in errors else _dump(v, k, errors, id_of, writer) for k, v in enumerate(values)
    ]
    if sum(map(len, pickles)) > MAX_BODY_BYTES:
        _refuse_largest(pickles, errors, id_of)
    body = pickle.dumps((False, pickles, errors), 5)
    return _pack(body, writer) or body


def _pack(body: bytes, writer: ValueWriter | None) -> bytes | None:
    """Return the message for `body`; None if it can't be written where it belongs."""
    try:
        return body if writer is None else writer.pack(body, (), "some results")
    except (NbstreamqError, OSError):
        return None


def _dump(
    value: Any,
    position: int,
    errors: dict[int, bytes],
    id_of: Callable[[int], str],
    writer: ValueWriter | None,
) -> bytes:
    """Return a result by itself; empty if it can't be pickled, of which `errors` gets the error."""
    task = id_of(position)
    try:
        return dump(value, f"the result of task {task}", writer, maps=False)
    except BaseException as error:  # noqa: BLE001 - a __reduce__ that exits must not end the worker
        known = isinstance(error, NbstreamqError)
        text = str(error) if known else f"The result of task {task} can't be pickled: {error!r}"
        errors[position] = dump_error(ResultNotPicklable(text, task=task), task=task)
        if type(value) is CoroutineType:
            value.close()  # else Python warns in a later task that this one was never awaited
        return b""


def _refuse_largest(
    pickles: list[bytes], errors: dict[int, bytes], id_of: Callable[[int], str]
) -> None:
    """Replace the largest results by errors until the rest fits into one event."""
    total = sum(map(len, pickles))
    for k in sorted(range(len(pickles)), key=lambda k: -len(pickles[k])):
        if total <= MAX_BODY_BYTES:
            return
        task = id_of(k)
        error = ResultNotPicklable(
            f"The result of task {task} takes {in_units(len(pickles[k]))} when pickled, and at most"
            f" {in_units(MAX_BODY_BYTES)} can be sent back. Save it to a file in the task, and"
            " return the file's path.",
            task=task,
        )
        total -= len(pickles[k])
        pickles[k], errors[k] = b"", dump_error(error, task=task)


def load_outcomes(body: bytes) -> tuple[list[Any], dict[int, BaseException]]:
    """Return the values, and position -> exception for those that have none."""
    if len(body) < _SMALL_BODY_BYTES:
        are_together, values, dumped = pickle.loads(body)
    else:
        with no_garbage():
            are_together, values, dumped = pickle.loads(body)
    if are_together and not dumped and type(values) is list:
        return values, {}
    errors = {k: load_error(data) for k, data in dumped.items()}
    if not are_together:
        values, failed = _load_each(values, errors)
    elif type(values) is tuple:
        values, failed = load_batch(BatchPickle(*values))
    else:
        failed = {}
    for error in {id(error): error for error in failed.values()}.values():  # some share one
        with suppress(Exception):  # it may be frozen
            error.add_note(_UNPICKLED_HERE)
    return values, errors | failed


def _load_each(
    pickles: list[bytes], errors: dict[int, BaseException]
) -> tuple[list[Any], dict[int, BaseException]]:
    values: list[Any] = [None] * len(pickles)
    failed: dict[int, BaseException] = {}
    for k, data in enumerate(pickles):
        try:
            values[k] = None if k in errors else load(data)
        except BaseException as error:  # noqa: BLE001 - a class's own code runs here; its failure is this task's
            failed[k] = error
    return values, failed
