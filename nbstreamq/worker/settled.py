"""Which messages were settled: a copy of one is refused, by all workers of a supervisor."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from ..wire.settlement import Settlement

#: About how many messages are remembered: the newest. Each takes 8 bytes once it is there.
N_MARKS = 2**20
SETTLED_BYTES = 8 * N_MARKS


class SettledCache:
    """The marks of messages that were settled for good.

    Each has one place where it may stand, and overwrites what stood there.

    Parameters
    ----------
    descriptor
        Of a file of `SETTLED_BYTES` zero bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._marks = memoryview(mmap.mmap(descriptor, SETTLED_BYTES)).cast("Q")
        #: Of what this worker has run and not settled yet. Nobody else may know them: if it dies
        #: now, the same message comes again, and must be run.
        self.unsettled: set[int] = set()

    def __contains__(self, mark: int) -> bool:
        return self._marks[mark % N_MARKS] == mark or mark in self.unsettled

    def add_run(self, settlement: Settlement | None) -> None:
        """Take note of what was run, and will be settled; None: its coroutines run on."""
        if settlement is not None and (not settlement.successors or settlement.is_final):
            self.unsettled.add(settlement.delivery.mark)

    def add_settled(self, settlements: Iterable[Settlement]) -> None:
        """Tell all workers of this machine what the server has settled."""
        for settlement in settlements:
            if (mark := settlement.delivery.mark) in self.unsettled:
                self._marks[mark % N_MARKS] = mark
                self.unsettled.discard(mark)
