"""News of some items of a job, as they are kept."""

from __future__ import annotations

from typing import NamedTuple

from ..protocol.messages import Event
from ..protocol.spans import Span

__all__ = ["Report"]


class Report(NamedTuple):
    """Which worker ran some items, at which attempt, when and how long; see `Event`."""

    kind: str
    n: int
    span: Span
    worker: str
    attempt: int
    started: float
    seconds: float

    @classmethod
    def about(cls, event: Event) -> Report:
        what = (event.kind, event.n, event.span, event.worker, event.attempt)
        return cls(*what, event.started, event.seconds)
