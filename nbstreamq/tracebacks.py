"""Errors and warnings that point at the user's lines, and not at those of nbstreamq."""

from __future__ import annotations

import functools
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from .errors import NbstreamqError

P = ParamSpec("P")
T = TypeVar("T")

#: Files below this folder are nbstreamq's own.
OWN_FOLDER = f"{Path(__file__).parent}/"
#: Seconds that an error takes at most from one function of ours to the one that has called it.
MOMENT = 0.1
#: Where an error has its traceback. Its class may forbid to set attributes, or raise at that.
_TRACEBACK = vars(BaseException)["__traceback__"]
#: Errors whose message says what to do.
_CLEAR = (NbstreamqError, KeyboardInterrupt, TimeoutError, CancelledError)


class _Last(threading.local):
    """The error that this thread has shortened a moment ago; a later one may have the same id."""

    error_id, until = 0, 0.0

    def note(self, error: BaseException) -> None:
        self.error_id, self.until = id(error), time.monotonic() + MOMENT

    def is_it(self, error: BaseException) -> bool:
        return id(error) == self.error_id and time.monotonic() < self.until


_last = _Last()


def shorten(error: BaseException) -> None:
    """Take the frames of nbstreamq out of a traceback, if `error` can't be a fault of nbstreamq.

    Its message says what to do, or it was raised by the user's own code, such as a task or an
    iterable. A bare `raise` that follows in an except clause adds no frame: a public function that
    ends like that is not seen in the traceback.
    """
    frames = list(_frames(_TRACEBACK.__get__(error)))
    is_clear = isinstance(error, _CLEAR) or (bool(frames) and _is_of_user(frames[-1]))
    # A public function may have called another one, which has taken out what tells that.
    if is_clear or any(map(_is_told, frames)) or _last.is_it(error):
        _last.note(error)
        _TRACEBACK.__set__(error, _traceback_of([f for f in frames if not _is_own(f)]))


def raise_of_task(error: BaseException) -> NoReturn:
    """Raise what a task has raised."""
    raise error


def concise(function: Callable[P, T]) -> Callable[P, T]:
    """Make `function` raise errors with a short traceback.

    A call takes 0.1 us longer, so this is for functions that are not called often.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True  # IPython leaves such frames out
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            # A traceback with variables would show a secret among the arguments.
            args, kwargs = (), {}  # type: ignore[assignment]
            shorten(error)
            raise

    return call


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Issue a warning at the line of the user's code that led to it.

    A thread of nbstreamq has no such line: there it is the line that calls this.
    """
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 - as `warnings.warn` does
    while frame.f_back and frame.f_code.co_filename.startswith(OWN_FOLDER):
        level, frame = level + 1, frame.f_back
    in_thread = frame.f_globals.get("__name__") == "threading"
    warnings.warn(text, category, stacklevel=2 if in_thread else level)


def trace_of(error: BaseException) -> str:
    """Return the traceback of an error as text for a log; never raises.

    `logging` would raise what the methods of the error raise, and so end the thread that logs it.
    """
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - see above
        name = type.__dict__["__qualname__"].__get__(type(error))
        frames = traceback.format_tb(_TRACEBACK.__get__(error))
        return f"{''.join(frames)}{name}: (it could not be described)"


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _traceback_of(frames: list[TracebackType]) -> TracebackType | None:
    """Return a traceback with copies of these frames only."""
    following = None
    for frame in reversed(frames):
        following = TracebackType(following, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return following


def _is_own(frame: TracebackType) -> bool:
    return frame.tb_frame.f_code.co_filename.startswith(OWN_FOLDER)


def _is_of_user(frame: TracebackType) -> bool:
    file = frame.tb_frame.f_code.co_filename
    return not file.startswith((OWN_FOLDER, sys.prefix, sys.base_prefix, "<frozen"))


def _is_told(frame: TracebackType) -> bool:
    """Return whether a frame is of a check of arguments, or of what raises a task's error."""
    code = frame.tb_frame.f_code
    if code.co_filename == __file__ and frame.tb_next is None:  # `concise` could not make the call
        return True
    is_check = code.co_name.startswith(("check_", "_check_"))
    return _is_own(frame) and (is_check or code is raise_of_task.__code__)
