"""Errors and warnings that point at the user's lines, and not at those of nbstreamq."""

from __future__ import annotations

import functools
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from .errors import NbstreamqError

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

#: Files below this folder are nbstreamq's own.
OWN_FOLDER = f"{Path(__file__).parent}/"
#: Errors whose message says what to do.
_CLEAR = (NbstreamqError, KeyboardInterrupt, TimeoutError, CancelledError)
_on_shortened: Callable[[BaseException], None] | None = None


def shortened(error: E) -> E:
    """Return `error` without the frames of nbstreamq, if it can't be a fault of nbstreamq.

    Its message says what to do, or the user's own code raised it, such as an iterable.
    """
    frames = list(_frames(error.__traceback__))
    is_clear = isinstance(error, _CLEAR) or (bool(frames) and _is_of_user(frames[-1]))
    if not is_clear and isinstance(error, TypeError | ValueError | IndexError):
        is_clear = bool(frames) and _is_own(frames[-1]) and any(map(_is_told, frames))
    if not is_clear:
        return error
    if _on_shortened is not None:
        _on_shortened(error)
    return error.with_traceback(_traceback_of([f for f in frames if not _is_own(f)]))


def without_last_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of nbstreamq at its end."""
    frames = list(_frames(trace))
    while frames and _is_own(frames[-1]):
        frames.pop()
    return _traceback_of(frames)


def on_shortened(tell: Callable[[BaseException], None]) -> None:
    """Call `tell` with each error that was shortened: a notebook shows it in its own way."""
    global _on_shortened  # noqa: PLW0603 - a process is one notebook, or none
    _on_shortened = tell


def concise(function: Callable[P, T]) -> Callable[P, T]:
    """Make `function` raise errors with a short traceback.

    A call takes 0.1 us longer, so this is for functions that are not called often.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True  # IPython leaves such frames out
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - raised again
            # A traceback with variables would show a secret among the arguments.
            args, kwargs = (), {}  # type: ignore[assignment]
            raise shortened(error)  # noqa: B904 - it is the same error

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
        frames = traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error))
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
    """Return whether a frame is of a check of an argument, or was before it was shortened."""
    code = frame.tb_frame.f_code
    is_check = code.co_name.startswith(("check_", "_check_"))
    return _is_own(frame) and (is_check or (frame.tb_next is None and code.co_filename == __file__))
