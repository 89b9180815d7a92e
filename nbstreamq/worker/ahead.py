"""Settle and take tasks while others run, where the server is far away.

A worker settles what is over and takes the next tasks in one request, and waits for the reply. Next
to the server that is a tenth of a millisecond. Far from it, it may be longer than a chunk runs. So
there the request leaves before a task runs, through a connection of its own, and the reply is read
after that task. Meanwhile the worker has as much work in hand as it needs until then.

::

    request   ──settle 1, take──>            ──settle 2, 3, take──>
    tasks     |── 2 ──|── 3 ──|── 4 ──|── 5 ──|── 6 ──|
    reply                      <──5, 6, 7──              <──8, 9──
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..wire.item_ranges import size
from ..wire.settlement import TRIPS_AHEAD, Delivery, Settlement
from ..wire.store import Store
from .run import SLICE

#: Seconds of a round trip from which a server is far away. Below, the wait for it costs little, and
#: what waits in a worker's hands would be run sooner by others.
FAR = 0.005
#: Seconds that a task may run before what waits behind it goes back: a slice, and some more. If
#: tasks take longer, none is taken ahead. Longer saves more round trips, and balances later.
PATIENCE = SLICE + 0.05
#: How many tasks are asked for at a time, at first and at most: it grows while there are so many.
FIRST, MOST = 8, 512


class _Request(NamedTuple):
    """What a request settles, how many tasks it asks for, and what returns the reply."""

    settled: list[Settlement]
    n_asked: int
    receive: Callable[[Store], tuple[list[int], list[Delivery]]]


class Ahead:
    """The requests of a worker that runs tasks meanwhile.

    Parameters
    ----------
    store
        A connection of its own.
    worker
        Id of the worker.

    Attributes
    ----------
    distance
        Seconds that a round trip takes; 0: the server is near, and nothing is taken ahead.
    job
        The job that ran last.
    requests
        Those that are under way, the oldest first.
    """

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker = store, worker
        self.distance = 0.0
        self.requests = deque[_Request]()
        self.job = ""
        #: How long an item of that job took, and how many items its last task had.
        self._seconds, self._size = 0.0, 1
        #: Most tasks to ask for; it grows while there are so many.
        self._depth = FIRST

    def measure(self, store: Store) -> None:
        """Find out how far away the server of `store` is."""
        seconds = store.ping()
        self.distance = self._store.distance = store.distance = seconds if seconds > FAR else 0.0

    def learn(self, settlement: Settlement) -> None:
        """Note how long the items of a task took."""
        task, n_ended = settlement.delivery.task, sum(settlement.ended)
        if task.job != self.job:
            self._depth = FIRST
        if n_ended:
            self.job, self._size = task.job, size(task.span)
            self._seconds = sum(event.seconds for event in settlement.events) / n_ended

    def n_to_take(self, job: str, held: Sequence[Delivery] = ()) -> int:
        """Return how many tasks to take: of a job, one of which runs while `held` waits."""
        if job != self.job or self._seconds > PATIENCE:
            return 0  # Another worker may run them sooner.
        work = sum(self._work(size(delivery.task.span)) for delivery in held)
        each = self._work(self._size)
        asked = sum(request.n_asked for request in self.requests)
        missing = TRIPS_AHEAD * self.distance - work - asked * each
        return min(self._depth, max(0, math.ceil(missing / each)))

    def _work(self, n_items: int) -> float:
        """Return how many seconds a task with so many items runs, in one slice."""
        return min(SLICE, max(n_items * self._seconds, 1e-6))

    def ask(self, settled: list[Settlement], lanes: Sequence[str], count: int) -> None:
        """Send a request that settles, and takes at most `count` tasks from each lane."""
        receive = self._store.begin_take(settled, lanes, self._worker, count)
        self.requests.append(_Request(settled, count, receive))

    @property
    def has_answer(self) -> bool:
        """Whether the oldest request has its reply, so that `receive` does not wait."""
        return self._store.wire.wait(0.0)

    def receive(self, store: Store) -> tuple[list[Settlement], list[int], list[Delivery]]:
        """Return what the oldest request has settled, what `Store.settle` returns, and the tasks.

        Further questions go through `store`. If that raises, no request has a reply: see `give_up`.
        """
        request = self.requests[0]
        replies, taken = request.receive(store)
        self.requests.popleft()
        if len(taken) >= request.n_asked > 0:
            self._depth = min(4 * self._depth, MOST)
        return request.settled, replies, taken

    def give_up(self) -> list[Settlement]:
        """Forget all requests; return what they may have settled."""
        lost = [settlement for request in self.requests for settlement in request.settled]
        if self.requests:
            self.requests.clear()
            self._store.close()
        return lost

    def keeps(self, seconds: float) -> bool:
        """Return whether what waits behind a task stays, when that has run for so long."""
        return self.distance > 0 and seconds < PATIENCE
