"""Gives futures what they wait for, and calls their callbacks, each once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from ..tracebacks import trace_of

#: Where `concurrent.futures` says that a callback has failed.
logger = logging.getLogger("concurrent.futures")


def invoke_callbacks(future: Any) -> None:
    """Call the callbacks of a future that is over, each once.

    `concurrent.futures` does the same, but fails itself if an error can't be shown in a log.
    """
    callbacks = future._done_callbacks  # noqa: SLF001
    while callbacks:
        callback = callbacks.pop(0)
        try:
            callback(future)
        except Exception as error:  # noqa: BLE001 - of a user
            text = trace_of(error)
            logger.error("exception calling callback for %r\n%s", future, text)  # noqa: TRY400


def resolve(
    future: Future[Any], value: Any, error: BaseException | None, *, is_cancelled: bool
) -> None:
    """Give `future` its result, or what it has instead."""
    if future.done():  # an exception came after that, and before it had told anybody
        future._invoke_callbacks()  # type: ignore[attr-defined]  # noqa: SLF001
    elif is_cancelled:
        Future.cancel(future)
        future.set_running_or_notify_cancel()
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def hold_callbacks(futures: Iterable[Any]) -> list[tuple[Any, list[Any]]]:
    """Take the callbacks off futures that get their results now, until `let_go`.

    The callback of one may wait for the result of another.
    """
    held = []
    for future in futures:
        if getattr(future, "_has_listeners", True):
            with future._condition:  # noqa: SLF001 - adding one takes it, too
                held.append((future, future._done_callbacks))  # noqa: SLF001
                future._done_callbacks = []  # noqa: SLF001
    return held


def let_go(held: Sequence[tuple[Any, list[Any]]]) -> None:
    """Call the callbacks that were held; those of a future that has no result yet wait for it."""
    for future, callbacks in held:
        future._done_callbacks = callbacks  # noqa: SLF001
    with ExitStack() as stack:  # if one exits, or Ctrl-C comes, the others are called
        for future, _ in reversed(held):
            if future.done():
                stack.callback(future._invoke_callbacks)  # noqa: SLF001
