"""Which messages were read before, so that a copy of one is known.

A signature tells a message from all others: no process signs the same twice.
"""

from __future__ import annotations

import mmap

__all__ = ["DIGEST_BYTES", "Seen"]

#: How much of a signature is looked at: enough that two in a table are hardly ever the same.
DIGEST_BYTES = 8
#: About how many are remembered, the newest. Each takes 16 bytes, once it is there.
N_SEEN = 2**16


class Seen:
    """The signatures that were read, and where.

    Each has one place in the table, and overwrites what stood there.
    """

    def __init__(self) -> None:
        self._digests = memoryview(mmap.mmap(-1, 8 * N_SEEN)).cast("Q")
        self._places = memoryview(mmap.mmap(-1, 8 * N_SEEN)).cast("q")

    def is_copy(self, signature: bytes, *place: object) -> bool:
        """Return whether a signature was read at another place; after a lost reply it is the same.

        Parameters
        ----------
        signature
            Or what begins with it.
        place
            Which entry of which stream.
        """
        digest, here = int.from_bytes(signature[:DIGEST_BYTES]), hash(place)
        at = digest % N_SEEN
        if self._digests[at] == digest:
            return self._places[at] != here
        self._digests[at], self._places[at] = digest, here
        return False
