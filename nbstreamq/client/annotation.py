"""What only the client knows of an error: which call it was."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from ..errors import RemoteError, TaskError, WorkerLost
from ..objects.blobs import size_of
from ..objects.references import resolving
from .payload import Payload
from .report import Report

__all__ = ["annotate", "error_text"]

#: Most characters of a call in a note.
MAX_CALL = 120
#: Most bytes of arguments that are unpickled once more to tell of them. More keeps who waits for
#: the error waiting.
MAX_ARGS_BYTES = 10 * 2**20
#: Most results of other tasks in the arguments of a call that is shown.
MAX_RESULTS = 100


class _Absent:
    """Stands for a value that is not here, in the arguments that are shown."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def error_text(error: BaseException) -> str:
    """Return what a traceback would end with, whatever the methods of `error` do."""
    name = type(error).__qualname__
    try:
        text = f"{error}"
    except BaseException:  # noqa: BLE001 - foreign code, for a display only
        return name
    return f"{name}: {text}" if text else name


def annotate(
    error: BaseException,
    item: int,
    payload: Payload | None,
    report: Report,
    *,
    job: str,
    name: str,
) -> None:
    """Have `error` say which call raised it, and where; never raises, whatever is in the arguments.

    Parameters
    ----------
    error
        What item `item` failed with.
    payload
        What was sent for the item; None if it was dropped.
    report
        The news that it failed.
    job, name
        Id of the job; name of the function.
    """
    try:
        if isinstance(error, WorkerLost):
            _complete_certificate(error, item, name, payload)
        elif isinstance(error, RemoteError) or not isinstance(error, TaskError):
            _add_note(error, item, job, _call(item, name, payload), report)
    except BaseException:  # noqa: BLE001 - foreign code; the error itself matters more
        logging.getLogger(__name__).debug("can't say more of the error of task %s-%d", job, item)


def _complete_certificate(error: WorkerLost, item: int, name: str, payload: Payload | None) -> None:
    if payload and error.certificate and not error.certificate.item:
        error.certificate = replace(error.certificate, item=_describe(item, name, payload))


def _add_note(error: BaseException, item: int, job: str, call: str, report: Report) -> None:
    """Add the note, unless another item of the job has the same exception object."""
    notes = [n for n in getattr(error, "__notes__", ()) if isinstance(n, str)]
    start = f"in task {job}-"
    if any(start in note for note in notes):
        return
    verb = "Came out of" if any(n.startswith("The task was done;") for n in notes) else "Raised in"
    where = f"worker {report.worker}, attempt {report.attempt}"
    # Not error.add_note(): its class may have another idea of that.
    BaseException.add_note(error, f"{verb} task {job}-{item} ({call}) on {where}.")


def _call(item: int, name: str, payload: Payload | None) -> str:
    """Return the call in one line, abbreviated; without what can't be shown."""
    unknown = f"{name}(…)"
    if payload is None or size_of(payload.args) > MAX_ARGS_BYTES:
        return unknown
    text = " ".join(_describe(item, name, payload).split())
    if text.startswith("(can't be shown:"):
        return unknown
    if payload.call == "map":
        text = f"{name}({text})"
    return text if len(text) <= MAX_CALL else text[: MAX_CALL - 1] + "…"


def _describe(item: int, name: str, payload: Payload) -> str:
    with resolving(_stored, [_Absent("<result of another task>")] * MAX_RESULTS):
        return payload.describe(item, name)


def _stored(*_: Any) -> Any:
    return _Absent("<value of a Ref>")
