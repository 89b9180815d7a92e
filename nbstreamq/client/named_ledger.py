"""What is known of a named job here: its events tell all, and the server keeps its inputs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from ..errors import JobNotFound
from ..protocol.jobs import Chunk, JobRecord
from ..protocol.messages import Event, Options
from ..protocol.spans import items
from ..protocol.states import State
from .ledger import Ledger
from .payload import Payload

__all__ = ["NamedLedger"]


class NamedLedger(Ledger):
    """The tasks of a named job, whoever submitted them.

    Parameters
    ----------
    record
        The job as it was found.
    fn
        Runs the job's function here.
    fetch
        Returns the pickled inputs of a chunk, by its first item; None if they can't be had.
    exists
        Tells whether the server still keeps the job.

    Attributes
    ----------
    title
        The name that people gave the job.
    about
        What its client wrote down, see `JobRecord`.
    call
        How its items are called, as in `Task`.
    futures
        Those of its items, for all `Job` objects that show this ledger.
    """

    def __init__(
        self,
        record: JobRecord,
        fn: Callable[..., Any],
        fetch: Callable[[int], bytes | None],
        exists: Callable[[], bool],
    ) -> None:
        super().__init__(record.id, record.about["function"], fn, record.about["lane"])
        self.title = record.name
        self.about = record.about
        self.growing = True
        self.call: str = record.about["call"]
        self.options = Options.decode(record.about["opts"].encode())
        self.futures: Any = None
        self._fetch = fetch
        self._exists = exists
        self._chunks: list[Chunk] = []
        self._fetched: Payload | None = None
        self.add_chunks(record.chunks)

    def add_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Add items that have been submitted."""
        with self._lock:
            self._chunks += chunks
            for chunk in self._chunks[-1:]:
                self._extend(chunk.first + chunk.n_items)

    def payload(self, item: int) -> Payload | None:
        """Return what was sent for the item, from the server; None if that can't be had."""
        at = bisect_right(self._chunks, item, key=lambda chunk: chunk.first) - 1
        if at < 0:
            return None
        chunk, known = self._chunks[at], self._fetched
        if known is None or known.n != chunk.first:
            args = self._fetch(chunk.first)
            if args is None:
                return None
            self._fetched = known = Payload(chunk.first, chunk.n_items, self.call, args)
        return known

    def delay(self) -> str:
        if not self._exists():
            self.growing = False
            self.fail(
                range(len(self)), JobNotFound(f"Job {self.title!r} was deleted, or replaced.")
            )
        if self.growing and self.n_over == len(self):
            return (
                f"job {self.title!r} has no end: its client is still submitting, or stopped before"
                " the last input. Run the cell that makes it again, to submit the rest."
            )
        return ""

    def expects(self, event: Event) -> bool:
        """Take all events of the job: another client may add items."""
        if event.kind not in ("opened", "closed", "cancelled", "rerun"):
            self._extend(event.n + event.span[-1].stop)
        return True

    def _extend(self, n_items: int) -> None:
        with self._lock:
            missing = max(0, n_items - len(self))
            self._states.extend(bytes(missing))
            self._values.extend([None] * missing)

    def _drop_payload(self, event: Event) -> None:
        """Do nothing: the server keeps the inputs as long as the job."""

    def _opened(self, event: Event) -> None:
        """Do nothing: the event holds the place for those that follow."""

    def _closed(self, event: Event) -> None:
        self._extend(event.n)
        self.growing = False

    def _finished(self, event: Event) -> None:
        # Who cancelled it was too late: only what a worker says is settled.
        self._reopen(
            i for k in items(event.span) if self.state(i := event.n + k) is State.CANCELLED
        )
        super()._finished(event)

    def _cancelled(self, event: Event) -> None:
        there = range(event.n, len(self))  # the event may mean more than there is
        self.cancel(i for part in event.span for i in there[part.start : part.stop])

    def _rerun(self, event: Event) -> None:
        self.rerun(items(event.span))

    _ACTIONS: ClassVar[dict[str, Callable[[Any, Event], None]]] = {
        **Ledger._ACTIONS,  # noqa: SLF001 - the same table, longer
        "opened": _opened,
        "closed": _closed,
        "finished": _finished,
        "cancelled": _cancelled,
        "rerun": _rerun,
    }
