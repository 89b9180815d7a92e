"""Outputs of cells that change after their cell has ended."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

from IPython import get_ipython
from IPython.display import DisplayHandle

from ..client.future import TaskFuture

#: The run of the cell that runs, if one does.
_cell: object | None = None
#: Display id -> what repeats an update that may not have been heard.
_unheard: dict[str, Callable[[], object]] = {}
_ends_of_calls: set[EndOfCall] = set()


def begin_cell(*_: object) -> None:
    """Note that a cell runs."""
    global _cell  # noqa: PLW0603 - a kernel runs one cell at a time
    _cell = object()


def cell_now() -> object | None:
    """Return an object that stands for the run of the cell that runs; None: none does."""
    return _cell


def end_cell(*_: object) -> None:
    """Bring the outputs of calls up to date: what saves the notebook may not wait for them."""
    global _cell  # noqa: PLW0603 - as above
    for end in list(_ends_of_calls):
        end.catch_up()
    for key in list(_unheard):
        _unheard.pop(key)()
    _cell = None


def is_only_saved() -> bool:
    """Return whether a program runs the notebook, such as nbconvert or papermill, and saves it.

    It forbids cells to ask for input, as Voila does, which shows the outputs to people.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    is_voila = os.environ.get("SERVER_SOFTWARE", "").startswith("voila/")
    return kernel is not None and not is_voila and not kernel._allow_stdin  # noqa: SLF001


class Output:
    """An output of a cell that may be updated at any time, from any thread.

    nbclient, which runs notebooks for nbconvert, ignores what it gets between two cells, and what a
    thread sends may come after the end of the cell that runs. So that is sent again, by the main
    thread, before the next end of a cell.
    """

    def __init__(self) -> None:
        self._handle = DisplayHandle()

    def display(self, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Show data, by MIME type, below the cell that runs."""
        self._handle.display(data, metadata=metadata, raw=True)

    def update(self, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Show other data in its place."""
        update = functools.partial(self._handle.update, data, metadata=metadata, raw=True)
        update()
        if _cell is not None and threading.current_thread() is threading.main_thread():
            _unheard.pop(self._handle.display_id, None)
        else:
            _unheard[self._handle.display_id] = update


class EndOfCall:
    """Shows how a call ends, once: as soon as it does, or when the cell ends that waited for it."""

    def __init__(self, future: TaskFuture[Any], show: Callable[[], object]) -> None:
        self._future = future
        self._show = show
        self._lock = threading.Lock()
        _ends_of_calls.add(self)
        future.add_done_callback(lambda _: self.catch_up())

    def catch_up(self) -> None:
        """Show the end, if there is one that is not shown."""
        with self._lock:
            if self in _ends_of_calls and self._future.done():
                _ends_of_calls.discard(self)
                self._show()
