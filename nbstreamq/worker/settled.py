"""Which messages were settled: a copy of one is refused, by all workers of a supervisor."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

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

    def add_settled(self, settlements: Sequence[Settlement], replies: Sequence[int]) -> None:
        """Tell all workers of this machine what the server has settled.

        Parameters
        ----------
        replies
            0 for each that was no longer ours: the same message may have been put back meanwhile,
            and must be run when it comes.
        """
        for settlement, reply in zip(settlements, replies, strict=True):
            if (mark := settlement.delivery.mark) in self.unsettled:
                self.unsettled.discard(mark)
                if reply:
                    self._marks[mark % N_MARKS] = mark
