"""The loop of a worker process: take tasks, run them, settle them, in one request for each batch.

::

    lanes ──take──> batch ──execute──> settled ──(with the next take)──> events
                      │                   ^
                      └──── release ──────┘   by the monitor, when a long task holds them up
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any, NoReturn

from ..errors import DataLost, NbstreamqError, SecretMismatch, ServerRefused, ServerUnreachable
from ..launch.server import is_embedded
from ..limit import Limit
from ..objects.references import fetch_by
from ..secret import Address, Secret
from ..settings import Settings
from ..sizes import in_units
from ..tracebacks import trace_of
from ..wire.connection import MOST_CUTS, RECONNECT, SPIN, MessageTooLarge
from ..wire.keys import base_lane, deeper_lanes, home_lane, home_of, may_run
from ..wire.settlement import Delivery, Requeue, Settlement
from ..wire.signing import Signer
from ..wire.store import Store
from ..worker_context import WorkerContext
from .ahead import Ahead
from .cache import Values
from .checkpoints import Checkpoints
from .coroutines import Coroutines
from .execution import Execution
from .lanes import ServedLanes
from .leases import Leases
from .life import Term
from .monitor import TaskMonitor
from .output import CoroutineItem, Output
from .run import SLICE, Runner
from .settled import SettledCache
from .slot import (
    HANDS_BACK,
    LANE_BITS,
    MAX_CALLS,
    MAX_MEMORY,
    N_CANCELLED,
    STATE,
    Leaving,
    Slot,
    WorkerState,
)
from .turns import Turn
from .usage import memory_of

logger = logging.getLogger(__name__)

#: Seconds that an idle worker waits for a task before it asks again. Longer costs nothing; it must
#: stay below the time for which firewalls allow a silent connection.
IDLE_BLOCK = 30.0
#: Seconds after which an idle worker drops a large value that its client has freed. Longer keeps
#: the memory longer; shorter costs requests more often, while the worker has any.
LET_GO = 1.0
#: Seconds of work in a batch, after which its results are sent. If it takes twice as long, all but
#: the next task go back. Longer saves requests; shorter leaves more to other workers.
FLUSH = 0.005
#: Seconds after a connection was lost at which the worker looks for tasks that the server gave to
#: it meanwhile: until the last read is over, the server may serve a connection that has no reader.
LOOKS = (0.2, 1.0, 4.0, 10.0, IDLE_BLOCK + 2.0)
#: Seconds without a task after which a worker takes one at a time again: the next ones may be long,
#: and other workers may be idle. Shorter costs another request more often.
LULL = 0.01
#: Seconds after a look at the output in which another look is not worth its time.
UNATTRIBUTED = 0.001
#: Seconds of waiting after which a worker counts as idle: the next task was not waiting already, so
#: it goes on to take one at a time. If shorter, a slow machine mistakes bursts for lone calls.
IDLE = 0.001
#: Seconds for which a worker spins after a lone short call: its client needs that long to take the
#: result and to call again. And below how many seconds a call is short.
LINGER, SHORT = 2 * SPIN, 0.001
#: Most entries in a batch. More save requests; all of them wait behind the first.
MAX_BATCH = 512
#: Up to how many calls before it is replaced a worker counts each item of a chunk. More count
#: exactly; fewer let the items of a slice share a message.
FEW_CALLS = 100
#: Seconds that the worker pauses after a fault of our own code, at first and at most: a fault that
#: repeats must not keep a processor busy. Longer delays tasks that wait for this worker.
FAULT_PAUSE = (0.01, 1.0)
#: Seconds that a waiting task pauses between looks for others to run, at first and at most.
HELP_PAUSE = (0.001, 0.02)
#: Part of Python's recursion limit above which a waiting task no longer runs others on top of it.
#: A larger one leaves less for the recursion of these; a smaller one needs more stand-ins.
HELP_STACK = 0.5
#: Seconds after which a task that does not fit beside coroutines goes back to its lane.
HOLD = 0.05


class _Leave(BaseException):
    """Breaks the wait of an idle worker that is to exit."""


class _Look(BaseException):
    """Breaks the wait of an idle worker that is to read other lanes."""


class TaskWorker:
    """Runs the tasks of some lanes in this process's main thread.

    Parameters
    ----------
    store
        The queue.
    slot
        Shared with the supervisor.
    settled, turn
        Shared with all workers of the supervisor.
    output
        Catches what is printed; installed already.
    worker
        Id of this worker, and its name as a consumer.
    lanes
        Lanes that it serves, most urgent first.
    homes
        Tags of the tasks that it runs, see `Home`; others go to lanes of their home. Empty: all.
    term
        Which calls it may begin, if its lifetime is limited.
    url, secret
        For queues that tasks use themselves.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        settled: SettledCache,
        turn: Turn,
        output: Output,
        *,
        worker: str,
        lanes: Sequence[str],
        homes: tuple[str, ...] = (),
        term: Term | None = None,
        url: Address | str,
        secret: Secret | str,
    ) -> None:
        self.id = worker
        self.runner = Runner(slot, output)
        has_files = is_embedded(url, Settings.from_environment())
        signer = Signer(secret, store.keys.queue)
        self._values = values = Values(store.clone(), signer, worker, has_files=has_files)
        self.execution = Execution(worker, self.runner, output, values)
        self._leases = Leases(store.clone(), worker, slot, self._task, self.runner.put_off)
        self.runner.after_stop = self._after_stop
        self._coroutines = Coroutines(
            slot, self.runner, output, self.execution, self._leases, settle=self._add_settlement
        )
        #: Seconds until the next look for tasks beside coroutines, and when there was the last one
        #: or something began; how many cancellations are known.
        self._pause, self._looked, self._n_cancelled = HELP_PAUSE[0], 0.0, 0
        self._store, self._slot, self._output = store, slot, output
        self._settled_cache, self._turn = settled, turn
        self._checkpoints, self._ahead = Checkpoints(store.clone()), Ahead(store.clone(), worker)
        self._lanes = ServedLanes(store, slot, worker=worker, lanes=lanes, homes=homes, term=term)
        self._homes, self._term = homes, term
        #: Tasks that go to lanes of other homes, once supervisors know of these lanes.
        self._moves: list[Settlement] = []
        #: The second is held while we tell the server, or ask it, which tasks are ours.
        self._lock, self._talking = threading.Lock(), threading.Lock()
        self._looks: list[float] = []
        self._batch: deque[Delivery] = deque()
        self._running: list[Delivery] = []
        self._settled: list[Settlement] = []
        self._flushed, self._linger, self._count = 0.0, 0.0, 1
        self._leaving = self._waiting = self._was_full = self._has_idled = False
        self._was_parked = self._was_late = False  #: and tasks waited already when it came
        self._lost = False  #: whether the server may have given us tasks that we don't know of
        self._fault_pause, self._n_ended = FAULT_PAUSE[0], 0
        self._set_ups = set[str]()  #: the jobs of the set-ups that were run
        #: How often the main thread looked for what its task waits for; and at the monitor's look.
        self._n_helps = self._n_helps_seen = 0
        free, waits = self._free, self._set_waits
        self._monitor = TaskMonitor(
            self.execution, self._coroutines, output, store.clone(), free=free, set_waits=waits
        )
        fetch_by(values.value)
        WorkerContext.current = self._context(Address(url), Secret(secret))

    def _context(self, url: Address, secret: Secret) -> WorkerContext:
        """Return what the client code inside a task may use of this worker."""
        return WorkerContext(
            url=url,
            queue=self._store.keys.queue,
            secret=secret,
            homes=self._homes,
            home=self._home,
            depth=lambda: self.execution.depth,
            task=self._task,
            help_until=self.help_until,
            progress=self.execution.report_progress,
            checkpoint=self._checkpoint,
            resume=self._resume,
            acquire=self._acquire,
            acquire_in_loop=self._leases.acquire_in_loop,
            release=self._leases.release,
            put_off=self.runner.put_off,
        )

    # -- the loop --------------------------------------------------------------------------------

    def run(self, description: dict[str, Any]) -> None:
        """Serve until told to leave.

        Parameters
        ----------
        description
            What `q.workers` shows of this worker: host, process id, ...
        """
        self._monitor.start()
        join = functools.partial(self._join, description)
        step: Callable[[], None] = join
        while self._coroutines.chunks or not self._leaving:
            try:
                self._until_reachable(step)
                step = self._serve
            except _Leave:
                break
            except SecretMismatch:  # The supervisor will tell us to leave.
                time.sleep(RECONNECT)
                self._lost = True
            except DataLost as error:
                logger.warning("%s", error)
                self._turn.pass_on()  # Another one may wait meanwhile.
                step = join
            except BaseException as error:  # noqa: BLE001 - no fault of ours may end the worker
                self._survive(error)
        self._turn.pass_on()
        self.release_batch()
        self._until_reachable(lambda: self.flush(self._store))
        self._slot.set_state(WorkerState.ENDING)
        self._coroutines.close()

    def _join(self, description: dict[str, Any]) -> None:
        self._lanes.make()
        for task in self._store.join(self.id, description):
            if not may_run(self._homes, home_of(task.job)):
                continue
            if task.job not in self._set_ups:  # It may join again after the server lost its data.
                self._set_ups.add(task.job)
                self._set_up(Delivery(lane=self._lanes.own, entry_id=b"0-0", task=task))
        self._lanes.find_used()
        self._set_slice()
        self._ahead.measure(self._store)
        self._slot.set_state(WorkerState.BUSY)

    def _set_up(self, delivery: Delivery) -> None:
        """Run a set-up of `everywhere`; publish what it printed and raised."""
        if delivery.task.concurrency:
            settlement = self._coroutines.run_alone(delivery)
        else:
            settlement, _ = self.execution.execute(delivery)
        self._store.publish(self.execution.reports_of_set_up(settlement))

    def _serve(self) -> None:
        """Do rounds until told to leave, or until tasks may be lost that have to be recovered."""
        while not self._lost and (self._coroutines.chunks or not self._leaving):
            if self._coroutines.chunks:
                self._tend()
                self._work_beside_coroutines()
                self._leave_if_worn()
            elif self._ahead.distance:
                self._round_ahead()
            else:
                self._round()
            self._fault_pause = FAULT_PAUSE[0]
        with self._talking:
            self._receive_replies(self._store)

    def _round(self) -> None:
        """Take tasks, which settles the last ones; run each; adapt how many to take next time."""
        if self._looks:
            self._look_again(self._store)
        if not self._batch:
            self._wait_and_take()
        began, n = time.monotonic(), len(self._batch)
        if not n:
            self._was_full = False
            return
        self._monitor.n_batches += 1
        if self._monitor.sleeps:
            self._monitor.wake()
        # More than a short call: a batch that was full, a chunk, or tasks that waited already.
        if n >= self._count > 1 or self._was_late or self._batch[0].task.call != "apply":
            self._turn.pass_on()
        else:
            self._turn.keep(began)
        while self._batch and (delivery := self._work_next()):
            if not self._batch:
                break
            self._look_for_more_urgent(delivery.lane)
            if time.monotonic() - self._flushed > FLUSH:
                if time.monotonic() - began > 2 * FLUSH:
                    n -= self.release_batch(keep=1)  # The next task can't begin sooner elsewhere.
                flushing = time.monotonic()
                self.flush(self._store)
                began += time.monotonic() - flushing  # Requests are no work.
        self._adapt(n, time.monotonic() - began)

    def _round_ahead(self) -> None:
        """Run one task; what is over is settled meanwhile, and more are taken.

        The rounds of a worker that is far away from the server.
        """
        if self._looks:
            self._look_again(self._store)
        if was_idle := not self._batch:
            self._wait_and_take()
        if not self._batch:
            self._was_full = False
            return
        self._monitor.n_batches += 1
        if self._monitor.sleeps:
            self._monitor.wake()
        is_more = self._ahead.requests or len(self._batch) > 1 or self._was_late
        if is_more or self._batch[0].task.call != "apply":
            self._turn.pass_on()
            if was_idle:
                self._turn.spread()
            self._exchange()
        else:  # There is probably nothing to take behind a lone call.
            self._turn.keep(time.monotonic())
        if delivery := self._work_next():
            self._learn(delivery)
            if self._batch:
                self._look_for_more_urgent(delivery.lane)

    def _exchange(self) -> None:
        """Read the replies that have come; then send the next request."""
        while self._ahead.requests and self._ahead.has_answer:
            self._receive()
        if not self._ahead.requests:
            self._ask_ahead()

    def _learn(self, delivery: Delivery) -> None:
        """Learn from what has run how many tasks to take."""
        with self._lock:
            last = self._settled[-1:]  # unless the monitor has settled it
        if last and last[0].delivery is delivery:
            self._ahead.learn(last[0])
        is_lone = self._has_idled and not self._ahead.requests
        self._count = 1 if is_lone else max(1, self._ahead.n_to_take(delivery.task.job))
        self._was_full = False

    def _tend(self) -> None:
        """Run coroutines until a delivery is over, or for a moment; settle, and take more."""
        coroutines = self._coroutines
        if self._ahead.requests:
            self._receive()
        self._slot.words[STATE] = WorkerState.BUSY
        if self._looks:
            self._look_again(self._store)
        if coroutines.run(self._pause):
            self._pause = HELP_PAUSE[0]
        if self.runner.is_torn:
            self._leave_torn()
        if self._slot.words[N_CANCELLED] != self._n_cancelled:
            self._n_cancelled = self._slot.words[N_CANCELLED]
            self._store.look_up_cancelled([chunk.delivery for chunk in coroutines.chunks])
            coroutines.cancel()
        if self._slot.words[HANDS_BACK]:
            coroutines.hand_back()
        if self._batch and time.monotonic() - self._looked > HOLD:
            self.release_batch()
        lanes: list[str] = []
        if not (self._batch or self._leaving):
            self._lanes.find()
            lanes = coroutines.with_room(self._lanes.known)
        if not lanes or not (self._settled or self._turn.take()):
            self.flush(self._store)
            self._pause = HELP_PAUSE[1]
            return
        self._turn.keep(time.monotonic())  # An idle worker may take it, and wait on the server.
        self._take(lanes, coroutines.count(lanes))
        self._looked = time.monotonic()
        self._pause = HELP_PAUSE[0] if self._batch else min(2 * self._pause, HELP_PAUSE[1])

    def _work_beside_coroutines(self) -> None:
        """Run what was taken and fits; coroutines run again after each plain function."""
        if self._batch:
            self._monitor.n_batches += 1
            self._turn.pass_on()
        while self._batch and (delivery := self._work_next()) and delivery.task.concurrency:
            pass

    def _leave_torn(self) -> None:
        """Leave, because an item was stopped where it may have left something half done."""
        if not self._leaving:
            self._leaving = True
            self._slot.leave(Leaving.TORN)

    def _add_settlement(self, settlement: Settlement) -> None:
        self._settled_cache.add_run(settlement)
        self._note_end(settlement, depth=1)
        with self._lock:
            self._settled.append(settlement)

    def _look_for_more_urgent(self, lane: str) -> None:
        """Take tasks that are more urgent, before the batch goes on to a less urgent lane.

        It holds tasks of several lanes, since a read returns some of each lane.
        """
        with self._lock:
            following = self._batch[0].lane if self._batch else lane
        if following != lane:
            self._take(self._lanes.more_urgent(following), self._count)

    def _adapt(self, n: int, seconds: float) -> None:
        """Take twice as many at a time while batches are short work."""
        self._linger = LINGER if n == 1 and seconds < SHORT else 0.0
        # A lone call is no sign of more: its result is sent with the request that waits.
        self._was_full = n >= self._count > 1
        if seconds > FLUSH:
            self._count = max(1, min(self._count, int(n * FLUSH / seconds)))
        elif n >= self._count and not self._has_idled:
            self._count = min(2 * self._count, MAX_BATCH)

    def _work_next(self) -> Delivery | None:
        """Run the next task of the batch and return its delivery; None if there is none.

        Whatever fails between the two locks is charged to this task, so all calls are in the `try`.
        """
        with self._lock:
            others = self._coroutines
            if (
                not self._batch
                or self._leaving
                or (others.chunks and not others.fits(self._batch[0]))
            ):
                return None
            delivery, depth = self._batch.popleft(), len(self._running)
            self._running.append(delivery)
        settlement, stopped, is_copy = None, None, False
        try:
            is_copy = delivery.mark in self._settled_cache
            if not is_copy:
                is_plain = not (delivery.task.opts and delivery.task.concurrency)
                run = self.execution.execute if is_plain else self._start_coroutines
                settlement, stopped = run(delivery)
                self._settled_cache.add_run(settlement)
                words = self._slot.words
                if self._term is not None or words[MAX_CALLS] or words[MAX_MEMORY]:
                    self._note_end(settlement, depth)
        except BaseException as error:  # noqa: BLE001 - whatever it is, this task is charged with it
            if settlement is None:
                settlement, stopped = self.execution.rescue(delivery, None, error, depth)
        with self._lock:
            self._running.pop()
            if settlement is not None:
                self._settled.append(settlement)
        if self._leases.owners or self.runner.is_torn:
            self._clean_up(delivery)
        if is_copy:
            self._store.refuse_copy(delivery)
        if stopped:
            raise stopped
        return delivery

    def _clean_up(self, delivery: Delivery) -> None:
        self._leases.release_all(delivery.task)
        if self.runner.is_torn:
            self._leave_torn()

    def _start_coroutines(self, delivery: Delivery) -> tuple[Settlement | None, None]:
        """Start the coroutines of a delivery, and have more of its job in the lane."""
        coroutines = self._coroutines
        is_new = all(chunk.delivery.task.job != delivery.task.job for chunk in coroutines.chunks)
        self._count = 1
        if not coroutines.chunks:
            coroutines.fits(delivery)
        settlement = coroutines.start(delivery)
        if is_new and settlement is None:
            with suppress(ServerUnreachable):  # The next request will meet it.
                self._store.ask_for_more(delivery)
        return settlement, None

    def _note_end(self, settlement: Settlement | None, depth: int) -> None:
        """Take note of calls that are over, in a worker with a lifetime or a limit."""
        if settlement is None:  # Its coroutines run on.
            return
        self._n_ended += sum(settlement.ended)
        if self._term is not None:
            self._term.learn(settlement)
        if not depth:  # Else a task waits for it.
            self._leave_if_worn()

    def _set_slice(self) -> None:
        """Run items one by one if each is to be counted before the next one begins."""
        self.runner.slice = 0.0 if 0 < self._slot.words[MAX_CALLS] <= FEW_CALLS else SLICE

    def _leave_if_worn(self) -> None:
        """Leave after too many calls, or if this process uses too much memory."""
        most, limit = self._slot.words[MAX_CALLS], self._slot.words[MAX_MEMORY]
        self._set_slice()
        used = memory_of(os.getpid()) if limit else 0
        if not (0 < most <= self._n_ended or used > limit):
            return
        if self._leaving:  # Coroutines are ended, and no more are taken.
            return
        logger.info(
            "worker %s is replaced after %d calls%s",
            self.id,
            self._n_ended,
            f": it uses {in_units(used)}" if used > limit else "",
        )
        self._leaving = True
        self._slot.leave(Leaving.WORN)

    # -- give and take ---------------------------------------------------------------------------

    def _wait_and_take(self) -> None:
        """Settle results, and wait for the next tasks: on the server if it is our turn."""
        if self._ahead.requests:
            if self._settled:  # This must not wait for that reply.
                self._ask_ahead()
            while self._ahead.requests and not self._batch:
                self._receive()
            if self._batch:
                return
        if self._was_full:
            self._lanes.find()
            # More may wait, and more urgently in a lane that is new.
            self._take(self._lanes.known, self._count)
            if self._batch:
                return
        # Rounded: the command with this time is kept.
        look = round(self._looks[0] - time.monotonic(), 1) if self._looks else IDLE_BLOCK
        block = max(LULL, min(look, IDLE_BLOCK if self._count == 1 else LULL))
        if self._values.with_files:
            self._values.drop_stale()
            block = min(block, LET_GO)
        if not self._turn.take():
            self._take_or_park(block)
            return
        began, self._slot.words[STATE] = time.monotonic(), WorkerState.IDLE
        try:
            self._take((), self._count, block)
        finally:
            self._slot.words[STATE] = WorkerState.BUSY
        self._has_idled = self._flushed - began > IDLE + 1.5 * self._ahead.distance
        self._was_late = self._was_parked and not self._has_idled
        self._was_parked = False
        if not self._batch:
            self._count = 1

    def _take_or_park(self, block: float) -> None:
        """Settle results and take what waits now; if that is nothing, wait for our turn."""
        self._lanes.find()
        self._store.has_refused = False
        self._take(self._lanes.known, self._count)
        self._has_idled = self._was_late = False
        if self._batch or self._store.has_refused:  # More may wait behind what was refused.
            return
        self._count, self._was_parked = 1, True
        self._slot.words[STATE] = WorkerState.IDLE
        try:
            with self._turn.parked() as wait:
                if not self._leaving:
                    wait(block)
        finally:
            self._slot.words[STATE] = WorkerState.BUSY

    def _ask_ahead(self) -> None:
        """Settle results and take waiting tasks, without waiting for the reply."""
        ahead = self._ahead
        self._lanes.find()
        with self._talking:
            with self._lock:
                batch, settled = list(self._batch), self._settled
                self._settled = []
            try:
                job = batch[0].task.job if batch else ahead.job
                count = ahead.n_to_take(job, batch[1:])
                if settled and time.monotonic() - self._output.looked > UNATTRIBUTED:
                    self._add_unattributed_output(settled)
                if settled or count:
                    ahead.ask(settled, self._lanes.known, count)
            except BaseException:
                self._lose(settled)
                raise

    def _receive(self) -> None:
        """Read the reply to the oldest request of `_ask_ahead`."""
        with self._talking:
            self._receive_replies(self._store, 1)
        if self._moves:
            self._move_all(self._store)

    def _receive_replies(self, store: Store, most: int = sys.maxsize) -> None:
        """Read the replies to requests that are under way, while `_talking` is held."""
        try:
            while self._ahead.requests and most:
                most -= 1
                settled, replies, taken = self._ahead.receive(store)
                self._drop_states(settled, replies)
                with self._lock:
                    self._accept(taken)
                self._flushed = time.monotonic()
        except BaseException:
            self._lose([])
            raise

    def _lose(self, settled: list[Settlement]) -> None:
        """Note that a request has failed.

        The server may have settled these: a second time does nothing. And it may have sent tasks.
        """
        self._lost = True
        with self._lock:
            self._settled = [*self._ahead.give_up(), *settled, *self._settled]

    def _take(self, lanes: Sequence[str], count: int, block: float | None = None) -> None:
        """Settle results and take waiting tasks, in one request.

        Parameters
        ----------
        lanes
            Which lanes to read; not used with `block`, which reads all that may hold tasks.
        count
            Most tasks from each lane.
        block
            Seconds to wait for a task; only this wait can be broken by a signal. None: don't wait.
        """
        with self._talking:
            settled: list[Settlement] = []
            try:
                with self._lock:
                    settled, self._settled = self._settled, []
                if settled and time.monotonic() - self._output.looked > UNATTRIBUTED:
                    self._add_unattributed_output(settled)
                try:
                    if block is not None:
                        self._waiting = True
                        # The flag is set first: a signal that follows these looks breaks the wait.
                        if self._leaving:
                            raise _Leave
                        if self._slot.words[LANE_BITS] != self._lanes.bits:
                            self._lanes.find_used()
                        # Urgent tasks may wait in a lane that the supervisor does not know yet.
                        lanes = self._lanes.known if settled else self._lanes.used
                    taken = self._store.take(
                        settled,
                        lanes,
                        self.id,
                        count,
                        block=block,
                        spin=0.0 if block is None else self._linger,
                        on_settled=functools.partial(
                            self._drop_states
                            if self._checkpoints.known
                            else self._settled_cache.add_settled,
                            settled,
                        ),
                    )
                finally:
                    self._waiting = False
                with self._lock:
                    self._accept(taken)
                self._flushed = time.monotonic()
            except BaseException:
                self._lose(settled)
                raise
        if self._moves:
            self._move_all(self._store)

    def _accept(self, taken: Sequence[Delivery]) -> None:
        """Add tasks to the batch; move those that others must run to a lane of their home."""
        is_mixed = bool(self._batch and taken)
        for delivery in taken:
            if home := self._lanes.leaves_to(delivery):
                self._move(delivery, home)
            else:
                self._batch.append(delivery)
        if is_mixed:
            self._batch = deque(sorted(self._batch, key=lambda d: self._lanes.urgency(d.lane)))

    def _move(self, delivery: Delivery, home: str) -> None:
        follows = [Requeue(task=delivery.task, lane=home_lane(delivery.lane, home))]
        self._moves.append(Settlement(delivery=delivery, successors=follows))

    def _move_all(self, store: Store) -> None:
        """Move tasks to lanes of other homes, and tell the supervisors of these.

        They are told before and after: in between the lane may be retired, because it is empty. If
        that fails, all is done again: nothing may be left in a lane that nobody knows.
        """
        with self._talking:
            if not (moves := self._moves.copy()):  # The other thread has moved them.
                return
            lanes = {requeue.lane for move in moves for requeue in move.successors}
            store.use_lanes(lanes)
            store.settle(moves)
            store.use_lanes(lanes)
            del self._moves[: len(moves)]

    def flush(self, store: Store) -> None:
        """Settle results; through `store`, because the monitor has a connection of its own."""
        if not self._settled:
            return
        with self._talking:
            settled: list[Settlement] = []
            try:
                with self._lock:
                    settled, self._settled = self._settled, []
                if settled and time.monotonic() - self._output.looked > UNATTRIBUTED:
                    self._add_unattributed_output(settled)
                self._drop_states(settled, store.settle(settled))
                self._flushed = time.monotonic()
            except BaseException:
                self._lose(settled)
                raise

    def _drop_states(self, settled: Sequence[Settlement], replies: Sequence[int]) -> None:
        """Note what was settled, and drop the states that its tasks have stored.

        Of what was no longer ours, another worker may need the state.
        """
        self._settled_cache.add_settled(settled, replies)
        if self._checkpoints.known:
            ours = [one for one, reply in zip(settled, replies, strict=True) if reply]
            self._checkpoints.drop(ours)

    def _add_unattributed_output(self, settled: list[Settlement]) -> None:
        """Send the latest output with the results, and before them: then both are there."""
        settled[-1].events[:0] = self.execution.collect_unattributed_output()

    def release_batch(self, keep: int = 0) -> int:
        """Give tasks that have not begun back to their lanes, except `keep`; return how many."""
        with self._lock:
            held = list(self._batch)
            back = [
                Settlement(delivery=delivery, successors=[Requeue(task=delivery.task)])
                for delivery in held[keep:]
            ]
            # No call is between these lines: both are done, or neither.
            self._batch = deque(held[:keep])
            self._settled += back
        return len(back)

    def _set_waits(self, waits: bool) -> None:
        """Tell the supervisor whether the task waits in a way in which we can't help.

        We can't if the main thread has not looked for other tasks since the monitor's last look.
        """
        self._slot.set_waits(waits and self._n_helps == self._n_helps_seen)
        self._n_helps_seen = self._n_helps

    def _free(self, store: Store) -> None:
        with self._talking:
            self._receive_replies(store)
        self._look_again(store)
        running = self.execution.running[-1:]
        if not (running and self._ahead.keeps(time.monotonic() - running[0][1])):
            self.release_batch()
        self.flush(store)
        if self._moves:
            self._move_all(store)

    # -- faults, and connections that were lost --------------------------------------------------

    def _until_reachable(self, step: Callable[[], None]) -> None:
        """Do `step`; repeat it while the server can't be reached.

        The first time at once: perhaps only our connection was lost, and calls wait for us.
        """
        last = float("-inf")
        while True:
            try:
                if self._lost:
                    self._recover(self._store)
                    self._looks = [time.monotonic() + pause for pause in LOOKS]
                    self._lost = False
                return step()
            except _Look:  # The server may have sent tasks just now.
                self._lost = True
            except ServerUnreachable:
                self._lost = True
                if time.monotonic() < last + RECONNECT:
                    self._wait(RECONNECT)
                last = time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Wait; coroutines run meanwhile."""
        if self._coroutines.chunks and not self._coroutines.are_running:
            self._coroutines.run(seconds)
        else:
            time.sleep(seconds)

    def _recover(self, store: Store) -> None:
        """Take tasks that a lost reply contained: they are ours, and nobody else runs them."""
        with self._talking:
            self._receive_replies(store)
            found = store.held(self._lanes.known, self.id)
            with self._lock:
                coroutines = (chunk.delivery for chunk in self._coroutines.chunks)
                settled = (s.delivery for s in (*self._settled, *self._moves))
                ours = (*self._batch, *self._running, *coroutines, *settled)
                # An id is unique within its lane only.
                known = {(d.lane, d.entry_id) for d in ours}
                self._accept([d for d in found if (d.lane, d.entry_id) not in known])
        if self._moves:
            self._move_all(store)

    def _look_again(self, store: Store) -> None:
        """Recover tasks that the server gave to a connection after we had lost it."""
        looks = self._looks  # The monitor looks, too.
        if looks and time.monotonic() > looks[0]:
            self._recover(store)
            self._looks = [at for at in looks if at > time.monotonic()]

    def _survive(self, error: BaseException) -> None:
        """Go on after a fault of our own code: the task that was running ends with the error."""
        logger.error("worker %s goes on after a fault\n%s", self.id, trace_of(error))
        self._turn.pass_on()
        self._lost = True
        while self._running:
            settlement, _ = self.execution.rescue(self._running[-1], None, error, 0)
            with self._lock:
                self._running.pop()
                self._settled.append(settlement)
        self._settle_each()
        time.sleep(self._fault_pause)
        self._fault_pause = min(2 * self._fault_pause, FAULT_PAUSE[1])

    def _settle_each(self) -> None:
        """Settle results one by one; one that can't be sent is replaced by the reason."""
        with self._talking:  # The monitor must not send any of them meanwhile.
            for one in self._settled.copy():
                instead = []
                try:
                    self._settled_cache.add_settled([one], self._settle_by_itself(one))
                except (ServerUnreachable, ServerRefused) as error:
                    if not isinstance(error, MessageTooLarge):
                        continue  # The server may accept it later.
                    instead = [self.execution.fail(one.delivery, error)]
                except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
                    instead = [self.execution.fail(one.delivery, error)]
                with self._lock:
                    at = next(k for k, other in enumerate(self._settled) if other is one)
                    self._settled[at : at + 1] = instead

    def _settle_by_itself(self, settlement: Settlement) -> list[int]:
        """Settle one; if the server closes the connection each time, it is too large."""
        for _ in range(MOST_CUTS - 1):
            try:
                return self._store.settle([settlement])
            except ServerUnreachable:
                time.sleep(RECONNECT)
        return self._store.settle([settlement])

    # -- signals and forks -----------------------------------------------------------------------

    def on_leave_signal(self, _signal: int, _frame: FrameType | None) -> None:
        """Exit after the running task; at once when idle."""
        self._leaving = True
        self._slot.leave(Leaving.ASKED)
        self._break_wait(_Leave)

    def on_look_signal(self, _signal: int, _frame: FrameType | None) -> None:
        """Read the lanes that the slot now says are in use; an idle worker does so at once."""
        if self._slot.words[LANE_BITS] != self._lanes.bits:
            self._break_wait(_Look)

    def _break_wait(self, why: type[BaseException]) -> None:
        if self._waiting:
            self._waiting = False  # Only once: the code that unwinds must not be broken again.
            raise why

    def forked(self) -> None:
        """Stop being a worker, in a process that a task has forked."""
        self._output.forked()
        self.runner.forked()
        self._values.forked()
        self._checkpoints.forked()
        self._leases.forked()
        worker, depth = WorkerContext.current, self.execution.depth
        if worker is not None:
            WorkerContext.current = replace(
                worker,
                depth=lambda: depth,
                task=lambda: None,
                help_until=lambda *_: None,
                progress=lambda *_: None,
                checkpoint=lambda _: None,
                resume=lambda: None,
                acquire=_refuse_limit,
                acquire_in_loop=_refuse_limit,
                release=lambda _: None,
                put_off=lambda _: None,
            )

    # -- for the running task ------------------------------------------------------------------

    def _checkpoint(self, state: object) -> None:
        if task := self.execution.task:
            self._checkpoints.put(task, self.execution.item, state)
            if (coroutine := CoroutineItem.current.get()) is None:
                self._slot.note_progress()
            else:
                self._coroutines.note_progress(coroutine)

    def _resume(self) -> tuple[object] | None:
        task = self.execution.task
        return self._checkpoints.get(task, self.execution.item) if task else None

    def _task(self) -> object:
        return CoroutineItem.current.get() or self.execution.task

    def _acquire(self, limit: Limit) -> str:
        return self._leases.acquire(limit, self._wait_for_lease)

    def _wait_for_lease(self, wait: Callable[[float], bool]) -> None:
        """Wait; coroutines, which may have the leases, run meanwhile."""
        is_main = threading.current_thread() is threading.main_thread()
        if not (is_main and self._coroutines.chunks):
            wait(-1)
            return

        def run_others() -> None:
            while not self._wait_in_task(wait, HELP_PAUSE[1]):
                self.runner.check_stop()

        self.runner.help(run_others)

    def _after_stop(self) -> None:
        self._output.look()
        if self._leases.owners:
            self._leases.release_all(self.execution.task)

    def _home(self) -> str:
        """Return the tag of the home of what the running task submits."""
        task = self.execution.task
        return home_of(task.job) if task else "".join(self._homes[:1])

    def help_until(
        self, wait: Callable[[float], bool], timeout: float | None, lanes: Collection[str]
    ) -> None:
        """Run deeper tasks, and those of `lanes`, until ``wait(seconds)`` returns true.

        A worker that is leaving just waits: other workers run them. So does one whose stack is half
        full: each task on top of a waiting one needs about 17 frames, and those of its function.
        And so does a coroutine that blocks: on top of it no event loop could run. So does a worker
        that has leases of limits: a task on top might wait for one of these.

        Source: leapfrogging, after D. Wagner and B. Calder, "Leapfrogging: a portable technique for
        implementing efficient futures", 1993; here by depth instead of by thief.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        served = {*deeper_lanes(self.execution.depth), *lanes}

        self._turn.pass_on()
        if self._leases.held or self._coroutines.are_running:
            return
        if _stack_height() > HELP_STACK * sys.getrecursionlimit():
            return

        def run_others() -> None:
            pause = HELP_PAUSE[0]
            while not self._wait_in_task(wait, min(pause, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    return
                self.runner.check_stop()
                helped = False
                if not self._leaving:
                    self._n_helps += 1
                    helped = self._help_once(served)
                pause = HELP_PAUSE[0] if helped else min(2 * pause, HELP_PAUSE[1])

        self.runner.help(run_others)

    def _wait_in_task(self, wait: Callable[[float], bool], seconds: float) -> bool:
        """Wait for so long, or until ``wait(seconds)`` returns true; coroutines run meanwhile."""
        if not self._coroutines.chunks:
            return wait(seconds)
        if not wait(0.0):
            self._coroutines.run(seconds)
        return wait(0.0)

    def _help_once(self, served: Collection[str]) -> bool:
        def take() -> None:
            # Tasks that came with the waiting one may be less deep: leave these to other workers.
            with self._talking:
                self._receive_replies(self._store)
            self.release_batch()
            self._lanes.find()
            self._take([lane for lane in self._lanes.known if base_lane(lane) in served], 1)

        try:
            self._until_reachable(take)
        except SecretMismatch:
            self._until_reachable(lambda: self._recover(self._store))
            return False
        return self._work_next() is not None


def _refuse_limit(limit: Limit) -> NoReturn:
    """Say that a process that a task has forked can't wait for a limit."""
    raise NbstreamqError(
        f"Limit {limit.name!r} is for calls, and this process was forked by one. Wait for the limit"
        " in the call, around what it starts."
    )


def _stack_height() -> int:
    return sum(1 for _ in traceback.walk_stack(None))
