"""The future of a cell that runs on a worker, and the place where its outcome is shown."""

from __future__ import annotations

import html
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

from IPython.display import DisplayHandle

from ..client.future import TaskFuture

__all__ = ["CellFuture", "Place"]

#: MIME type -> text.
_Bundle = dict[str, Any]


class CellFuture(TaskFuture[Any]):
    """The value of a cell's last expression, once it is there; its variables come back then, too.

    What the worker returns for a cell is more than its value: see `remote.run_cell`.
    """

    _receive: Callable[[dict[str, Any]], object]
    _receiving: threading.Lock
    _received = False

    @classmethod
    def of(cls, future: TaskFuture[Any], receive: Callable[[dict[str, Any]], object]) -> CellFuture:
        """Make `future`, of a cell's task, one of these; `receive` gets the variables, once."""
        cell_future = cast("CellFuture", future)
        # In its place: it is the one that the session knows.
        cell_future.__class__ = cls
        cell_future.hand_over_to(receive)
        return cell_future

    def hand_over_to(self, receive: Callable[[dict[str, Any]], object]) -> None:
        """Have `receive` called with the variables, before anybody gets the value."""
        self._receive = receive
        self._receiving = threading.Lock()

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, as `TaskFuture.result` does."""
        value, outputs, _ = super().result(timeout)
        with self._receiving:
            if not self._received:
                self._receive(outputs)
            self._received = True
        return value

    def shown(self) -> list[tuple[_Bundle, _Bundle]]:
        """Return what the cell shows, once it is done: data and metadata of each output."""
        return cast("list[tuple[_Bundle, _Bundle]]", super().result(0)[2])

    def replay(self) -> Any:
        """Run the cell here, with the variables it was sent; return its value."""
        return cast("Any", super().replay())[0]


class Place:
    """The output of a cell, which says that its task runs, and then shows what it shows.

    Parameters
    ----------
    handle
        Of the output; it may be updated from any thread.
    name
        Of the task.
    filename
        Of the cell's code, to tell where it failed.
    """

    def __init__(self, handle: DisplayHandle, name: str, filename: str) -> None:
        self._handle = handle
        self._name = name
        self._filename = filename
        self._begun = time.monotonic()
        handle.display(_text(f"{name}: running on a worker ..."), raw=True)

    def show(self, future: CellFuture) -> None:
        """Show the outcome of the cell."""
        data, metadata = self._outcome(future)
        self._handle.update(data, raw=True, metadata=metadata)

    def _outcome(self, future: CellFuture) -> tuple[_Bundle, _Bundle]:
        if future.cancelled():
            return _text(f"{self._name}: cancelled"), {}
        error = future.exception()
        if error is not None:
            return _text(f"{self._name}: {self._explain(error)}"), {}
        future.result()  # the variables come before the news of them
        shown = future.shown()
        if not shown:
            return _text(f"{self._name}: done in {time.monotonic() - self._begun:.1f} s"), {}
        return shown[0] if len(shown) == 1 else (_join([data for data, _ in shown]), {})

    def _explain(self, error: BaseException) -> str:
        """Return what went wrong, in a line."""
        message = str(error).strip().partition("\n")[0]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._filename]
        where = f" (line {lines[-1]})" if lines else ""
        return f"{type(error).__name__}: {message}{where}" if message else type(error).__name__


def _text(text: str) -> _Bundle:
    return {"text/plain": text}


def _join(bundles: list[_Bundle]) -> _Bundle:
    """Return one bundle that shows several, below each other: an output has but one."""
    texts = [str(bundle.get("text/plain", "")) for bundle in bundles]
    return {"text/plain": "\n".join(texts), "text/html": "\n".join(map(_as_html, bundles))}


def _as_html(bundle: _Bundle) -> str:
    for kind in ("text/html", "image/svg+xml"):
        if kind in bundle:
            return f"<div>{bundle[kind]}</div>"
    for kind in ("image/png", "image/jpeg"):
        if kind in bundle:
            return f'<div><img src="data:{kind};base64,{bundle[kind].strip()}"></div>'
    return f"<pre>{html.escape(str(bundle.get('text/plain', '')))}</pre>"
