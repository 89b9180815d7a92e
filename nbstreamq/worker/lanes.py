"""`ServedLanes`: which lanes a worker reads, and where tasks go that it leaves to others."""

from __future__ import annotations

from collections.abc import Sequence

from ..wire.keys import LONG_CALLS, base_lane, home_of, lane_of, may_run
from ..wire.settlement import Delivery
from ..wire.store import Store
from .execution import part_cancelled
from .life import Term
from .slot import LANE_BITS, Slot


class ServedLanes:
    """The lanes that a worker reads, most urgent first.

    Parameters
    ----------
    store, slot
        The queue; and what the supervisor says of its lanes.
    worker, lanes, homes, term
        As those of a `TaskWorker`.

    Attributes
    ----------
    known
        All of them, with those of homes and of long calls, as far as there are any.
    used
        Those in use, as far as the supervisor knows: an idle worker waits on these.
    bits
        What the slot said when these were found.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        *,
        worker: str,
        lanes: Sequence[str],
        homes: tuple[str, ...],
        term: Term | None,
    ) -> None:
        self._store, self._slot = store, slot
        self.own = lane_of(worker)
        self._served = (self.own, *lanes)
        self.homes, self._term = homes, term
        self.known, self.used = self._served, list[str]()
        self.bits = self._n_changes = -1

    def make(self) -> None:
        """Make the lanes, and find the others again: the server may have lost them."""
        self.known, self.bits, self._n_changes = self._served, -1, -1
        self._store.ensure_lanes(self._served[1:])

    def find_used(self) -> None:
        """Find the lanes that are in use, as far as the supervisor knows."""
        self.bits = self._slot.words[LANE_BITS]
        self.find()
        unused = self._slot.unused_lanes()
        self.used = [lane for lane in self.known if lane not in unused]

    def find(self) -> None:
        """Serve the lanes that hold tasks of our homes; if we serve all, of all with our Python.

        And those of long calls, which come first, unless there is too little time for them.
        """
        n_changes = self._slot.n_lane_changes()
        if n_changes == self._n_changes:
            return
        parts: dict[str, list[str]] = {lane: [lane] for lane in self._served}
        is_old = self._term is not None and self._term.is_old
        for lane in self._store.home_lanes():
            home, known = lane.partition("@")[2], parts.get(base_lane(lane), [])
            if home == LONG_CALLS:
                known[:0] = () if is_old else [lane]
            elif may_run(self.homes, home):
                known.append(lane)
        found = [n for lanes in parts.values() for n in lanes]
        self._store.ensure_lanes(set(found) - set(self.known))
        self.known, self._n_changes = tuple(found), n_changes

    def urgency(self, lane: str) -> int:
        """Return how many lanes are more urgent; a home's lane is as urgent as its base."""
        return self._served.index(base_lane(lane))

    def more_urgent(self, lane: str) -> list[str]:
        """Return the lanes that are more urgent than this one."""
        least = self.urgency(lane)
        return [name for name in self.known if self.urgency(name) < least]

    def leaves_to(self, delivery: Delivery) -> str:
        """Return the home to whose lane a task goes that others run; empty: we run it."""
        home = home_of(delivery.task.job)
        if not may_run(self.homes, home) and not _may_be_dropped(delivery):
            return home
        if self._term is not None and not self._term.allows(delivery):
            self._term.is_old, self._n_changes, self.bits = True, -1, -1
            return LONG_CALLS
        return ""


def _may_be_dropped(delivery: Delivery) -> bool:
    """Return whether any worker may take it: nothing of it is to be run, or it is for this one.

    What `everywhere` asks for is sent to each worker by itself.
    """
    if delivery.lane[0] == "@" or not delivery.is_wanted:
        return True
    return bool(delivery.cancelled) and not part_cancelled(delivery.task, delivery.cancelled)[1]
