"""The queue that a notebook has without a line of Python: `%load_ext` binds it to `q`."""

from __future__ import annotations

import threading
from typing import Any

from ..client.queue import TaskQueue
from ..cores import n_cores
from ..home import own_queue
from ..secret import Address
from ..settings import Settings
from ..sizes import plural


class NotebookQueue(TaskQueue):
    """The queue of a notebook until it is used: then it opens, and is a plain `TaskQueue`."""

    def __init__(self) -> None:
        self._opening = threading.Lock()
        url = Settings.from_environment().url
        self.name = own_queue() if url is None else "default"
        self._url = Address("a server that starts with its first call") if url is None else url

    def __getattr__(self, name: str) -> Any:
        # What the constructor of `TaskQueue` sets, and nothing has set yet.
        if name not in ("_session", "_embedded", "_open_other", "_options", "_shows_progress"):
            raise AttributeError(f"{TaskQueue.__name__!r} object has no attribute {name!r}")
        with self._opening:
            if isinstance(self, NotebookQueue):  # no other thread has opened it
                super().__init__()
                self.__class__ = TaskQueue  # type: ignore[assignment]
        return vars(self)[name]

    def __dir__(self) -> list[str]:
        # Tab shows what users use.
        return dir(TaskQueue)

    def introduce(self) -> str:
        """Return in one line what it is."""
        if Settings.from_environment().url is not None:
            return f"`q` is the queue {self.name!r} at {self._url}. q.map(f, inputs) calls f there."
        workers = plural(n_cores(), "local worker")
        return f"`q` is the queue {self.name!r}. q.map(f, inputs) calls f on {workers}."


#: For `q?`.
NotebookQueue.__doc__ = TaskQueue.__doc__
