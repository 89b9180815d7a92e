"""Notes on errors: which call raised, with which arguments, and where it ran."""

from __future__ import annotations

import logging
import reprlib
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import RemoteError, TaskError, WorkerLost
from ..objects.functions import FunctionPickle
from ..objects.large_values import size_of
from ..objects.pickling import load
from ..objects.references import Dependent, Fetch, resolving
from ..wire.item_ranges import ONE, ItemRanges
from ..wire.messages import Event, Options, Task


class RunInfo(NamedTuple):
    """Which worker ran some items, at which attempt, when and how long; see `Event`."""

    kind: str
    n: int
    span: ItemRanges
    worker: str
    attempt: int
    started: float
    seconds: float

    @classmethod
    def about(cls, event: Event) -> RunInfo:
        what = (event.kind, event.n, event.span, event.worker, event.attempt)
        return cls(*what, event.started, event.seconds)


class Payload(NamedTuple):
    """The pickled arguments of some items.

    Attributes
    ----------
    n, n_items
        The first item's index in the job, and how many there are.
    call
        How an item is called, as in `Task`.
    args
        The items, pickled.
    """

    n: int
    n_items: int
    call: str
    args: bytes

    def task(
        self, job: str, function: FunctionPickle, options: Options, span: ItemRanges = ()
    ) -> Task:
        """Return the message that calls `function` on the items; or on `span` of them."""
        return Task(
            job=job,
            n=self.n,
            span=span or (ONE if self.n_items == 1 else (range(self.n_items),)),
            fn=function.digest,
            name=function.name,
            call=self.call,
            args=self.args,
            opts=options.encode(),
        )

    def arguments(
        self, item: int, fetch: Fetch | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of an item of the job.

        With `fetch`, the results of other tasks are in them; without it, what `resolving` set.
        """
        loaded = load(self.args)
        if isinstance(loaded, Dependent):
            loaded = loaded.load(fetch) if fetch else load(loaded.args)
        if self.call == "apply":
            args, kwargs = loaded
            return args, kwargs
        value = loaded[item - self.n]
        return (tuple(value) if self.call == "starmap" else (value,)), {}

    def describe(self, item: int, name: str) -> str:
        """Return the call of an item as people write it, abbreviated."""
        try:
            args, kwargs = self.arguments(item)
            parts = [*map(reprlib.repr, args), *(f"{k}={v!r:.40}" for k, v in kwargs.items())]
        except BaseException as error:  # noqa: BLE001 - foreign code, for a description only
            return f"(can't be shown: {error!r})"
        return parts[0] if self.call == "map" else f"{name}({', '.join(parts)})"


#: Most notes about tasks that an error has passed through: one for each that waits for another.
MOST_NOTES = 10
#: Most characters of a call in a note.
MAX_CALL = 120
#: Most bytes of arguments that are unpickled again to describe them. More delays the error.
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
    report: RunInfo | Event,
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


def _add_note(
    error: BaseException, item: int, job: str, call: str, report: RunInfo | Event
) -> None:
    """Add the note, unless another item of the job has the same exception object.

    The last of `MOST_NOTES` is replaced: then the first ones say where the error comes from, and
    that one what the user has called.
    """
    notes = [n for n in getattr(error, "__notes__", ()) if isinstance(n, str)]
    start = f"in task {job}-"
    if any(start in note for note in notes):
        return
    verb = "Came out of" if any(n.startswith("The task was done;") for n in notes) else "Raised in"
    where = f"worker {report.worker}, attempt {report.attempt}"
    ours = [note for note in notes if " in task " in note]
    if len(ours) >= MOST_NOTES:
        error.__notes__.remove(ours[-1])
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
