"""Exceptions <-> bytes: the exception itself where possible, and its text in any case.

The bytes are a plain pickle of (task, type name, text, traceback text, pickled exception or None).
"""

from __future__ import annotations

import functools
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any

from ..errors import RemoteError
from ..tracebacks import OWN_FOLDER, trace_of

#: Longest summary, in characters.
_SUMMARY = 300


def dump_error(error: BaseException, *, task: str) -> bytes:
    """Return `error` as bytes; never raises, even if the methods of `error` do.

    Parameters
    ----------
    error
        The exception of a task; its traceback, causes, notes and attributes are included.
    task
        Id of the task, for a `RemoteError`.
    """
    try:
        if isinstance(error, ModuleNotFoundError):
            _say_where(error)
        body, reason = _pickle_or_reason(error)
        name = _type_name(error)
        text = _text_of(error) + (f"\n(It could not be pickled: {reason})" if reason else "")
        return pickle.dumps((task, name, text, _format(error), body), 5)
    except BaseException:  # noqa: BLE001  # no memory, or an error that hides even its class
        name = type.__dict__["__qualname__"].__get__(type(error))
        return pickle.dumps((task, name, "(it could not be described)", "", None), 5)


def _say_where(error: ModuleNotFoundError) -> None:
    """Add a note about the Python and machine where a module is missing."""
    note = (
        f"The module is missing for {sys.executable} on {socket.gethostname()}, where the worker"
        " runs. Install it there."
    )
    notes = getattr(error, "__notes__", ())
    if not any(str(known).startswith("The module is missing for") for known in notes):
        error.add_note(note)


def definition_of(fn: Callable[..., Any]) -> TracebackType | None:
    """Return a traceback that shows the definition of `fn`, for an error raised outside it.

    Return None for a function without Python code, such as `int`.
    """
    from .error_pickler import make_traceback

    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    line, module = code.co_firstlineno, str(getattr(fn, "__module__", None))
    return make_traceback([(code.co_filename, code.co_name, line, line, module)])


def load_error(data: bytes) -> BaseException:
    """Return the exception that `dump_error` wrote.

    It is a `RemoteError` if the exception could not be pickled, or can't be unpickled here.
    """
    task, name, text, traceback_text, body = pickle.loads(data)
    if body is not None:
        try:
            error = pickle.loads(body)
        except BaseException as problem:  # noqa: BLE001  # user code raises anything
            reason = f"{type(problem).__name__}: {_text_of(problem)}"
            text += f"\n(It could not be unpickled here: {reason})"
        else:
            if isinstance(error, BaseException):
                return error
    remote = RemoteError(
        f"{name}: {text}" if text else name,
        task=task,
        type_name=name,
        traceback_text=traceback_text,
    )
    remote.add_note("The traceback in the worker:\n" + traceback_text.rstrip())
    return remote


def summary(data: bytes) -> str:
    """Return type and message of the exception that `dump_error` wrote, shortened."""
    _, name, text, *_ = pickle.loads(data)
    line = f"{name}: {text}" if text else name
    return line if len(line) <= _SUMMARY else f"{line[:_SUMMARY]}..."


def _pickle_or_reason(error: BaseException) -> tuple[bytes | None, str]:
    """Return the pickle of `error`, and the reason if there is none; one of them is empty."""
    from .error_pickler import Tried, pickle_error

    reason = ""
    replaced: tuple[Tried | None, ...] = None, {}
    for tried in replaced:
        try:
            return pickle_error(error, tried), ""
        except BaseException as problem:  # noqa: BLE001  # even a __reduce__ that exits is no end
            reason = reason or f"{type(problem).__name__}: {_text_of(problem)}"
    return None, reason


def _type_name(error: BaseException) -> str:
    cls = type(error)
    plain = cls.__module__ in {"builtins", "__main__"}
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def _text_of(error: BaseException) -> str:
    try:
        # A subclass of str may misbehave when it is used; this is a plain one.
        return "".join(str(error))
    except BaseException as problem:  # noqa: BLE001  # see dump_error: never raises
        return f"<its __str__ raised {type(problem).__qualname__}>"


def _format(error: BaseException) -> str:
    """Return the traceback as text, without our own frames at its top."""
    try:
        summary = traceback.TracebackException.from_exception(error, compact=True)
        _drop_own_frames(summary)
        return "".join(summary.format())
    except BaseException:  # noqa: BLE001  # see dump_error: never raises
        return trace_of(error)


def _drop_own_frames(summary: traceback.TracebackException) -> None:
    todo, seen = [summary], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        while len(one.stack) > 1 and one.stack[0].filename.startswith(OWN_FOLDER):
            del one.stack[0]
        others = [one.__cause__, one.__context__, *(one.exceptions or ())]
        todo += [other for other in others if other is not None]
