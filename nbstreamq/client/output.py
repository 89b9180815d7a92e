"""What the items of a job print, and how far they say they are."""

from __future__ import annotations

import json

from ..protocol.messages import Event

__all__ = ["Output"]


class Output:
    """Written by the events of a job, read by futures and views."""

    def __init__(self) -> None:
        self._texts: dict[int, list[tuple[str, str]]] = {}
        self._progress: dict[int, tuple[int, int | None]] = {}

    def add_text(self, event: Event) -> None:
        """Take in an event of kind ``output``."""
        for item, stream, text in json.loads(event.body):
            self._texts.setdefault(event.n + item, []).append((stream, text))

    def add_progress(self, event: Event) -> None:
        """Take in an event of kind ``progress``."""
        done, total = json.loads(event.body)
        self._progress[event.n + event.span[0].start] = (done, total)

    def pieces(self, item: int) -> list[tuple[str, str]]:
        """Return what the item printed: (stream, text), in order."""
        return list(self._texts.get(item, ()))

    def text(self, item: int) -> str:
        """Return what the item printed, to whichever stream."""
        return "".join(text for _, text in self.pieces(item))

    def last_texts(self, n_items: int) -> dict[int, str]:
        """Return item -> what it printed, for the last items that began to print."""
        return {item: self.text(item) for item in list(self._texts)[-n_items:]}

    def progress(self, item: int) -> tuple[int, int | None] | None:
        """Return (done, in all) as the item reported it last; None if it did not."""
        return self._progress.get(item)

    def all_progress(self) -> dict[int, tuple[int, int | None]]:
        """Return item -> what it reported last."""
        return self._progress.copy()
