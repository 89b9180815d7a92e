"""The output of a cell that runs on every worker: what each of them prints."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from typing import Any

from IPython.display import DisplayHandle

from ..protocol.messages import Event
from .view import MAX_OUTPUT, worker_labels

__all__ = ["Gathering"]


class Gathering:
    """What workers print, grouped by worker; what comes later still goes to the same place.

    It has no thread: `add` is called by whoever reads the events.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._first: set[str] = set()
        self._handle: DisplayHandle | None = None
        self._lock = threading.Lock()

    def add(self, _name: str, event: Event) -> None:
        """Take in what a worker printed; see `Ledger.show`."""
        with self._lock:
            for _, _, text in json.loads(event.body):
                known = self._texts.get(event.worker, "")
                self._texts[event.worker] = (known + text)[-MAX_OUTPUT:]
            if self._handle:
                self._handle.update(self._picture(), raw=True)

    def show(self, workers: Iterable[str]) -> None:
        """Display what there is so far; `workers` were there when the cell ran."""
        with self._lock:
            self._first = set(workers)
            self._handle = DisplayHandle()
            self._handle.display(self._picture(), raw=True)

    def _picture(self) -> dict[str, Any]:
        labels = worker_labels(sorted(self._first | self._texts.keys()))
        n = len(self._first)
        ran = f"Ran on {n} worker{'' if n == 1 else 's'}" if n else "There is no worker yet"
        lines = [f"{ran}; each that joins later will run it, too."]
        for worker, label in labels.items():
            if text := self._texts.get(worker):
                later = "" if worker in self._first else " (joined later)"
                lines.append(f"{label}{later}:\n{text.rstrip()}")
        return {"text/plain": "\n".join(lines)}
