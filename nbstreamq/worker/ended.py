"""Which messages were dealt with on this machine, in memory that its workers share.

Whoever can write to the server, and knows no secret, may put a copy of a signed message into a
lane: nothing in it tells it from the first, and what the server remembers he can change.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from ..protocol.settlement import Settlement

__all__ = ["ENDED_BYTES", "Ended"]

#: About how many messages are remembered: the newest. Each takes 8 bytes once it is there.
N_MARKS = 2**20
ENDED_BYTES = 8 * N_MARKS


class Ended:
    """The marks of messages that were settled for good.

    Each has one place where it may stand, and overwrites what stood there.

    Parameters
    ----------
    descriptor
        Of a file of `ENDED_BYTES` zero bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._marks = memoryview(mmap.mmap(descriptor, ENDED_BYTES)).cast("Q")
        #: Of what this worker has run and not settled yet. Nobody else may know them: if it dies
        #: now, the same message comes again, and must be run.
        self._unsettled: set[int] = set()

    def __contains__(self, mark: int) -> bool:
        return self._marks[mark % N_MARKS] == mark or mark in self._unsettled

    def run(self, settlement: Settlement) -> None:
        """Take note of what was run, and will be settled."""
        if settlement.is_final:
            self._unsettled.add(settlement.delivery.mark)

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """Tell all workers of this machine what the server has settled."""
        for settlement in settlements:
            if (mark := settlement.delivery.mark) in self._unsettled:
                self._marks[mark % N_MARKS] = mark
                self._unsettled.discard(mark)
