"""The loop of a worker, step by step, on a fake queue: what it asks for and gives back."""

import contextlib
import os
import tempfile
from collections import deque
from types import SimpleNamespace

import pytest

from nbstreamq.errors import DataLost, ServerUnreachable
from nbstreamq.wire.connection import RECONNECT
from nbstreamq.wire.messages import Task
from nbstreamq.wire.settlement import Delivery, Settlement
from nbstreamq.worker import loop as module
from nbstreamq.worker.loop import FLUSH, LULL, TaskWorker
from nbstreamq.worker.output import Output
from nbstreamq.worker.settled import SETTLED_BYTES, SettledCache
from nbstreamq.worker.slot import SLOT_BYTES, Slot
from nbstreamq.worker.turns import TURNS_BYTES, Turn, TurnWatch
from nbstreamq.worker_context import WorkerContext


class Clock:
    """A clock that only sleeping moves: no test depends on how busy the machine is."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Lane:
    """A lane that takes and gives as the server does, and notes what was asked for."""

    keys = SimpleNamespace(queue="q")

    def __init__(self, clock):
        self.clock = clock
        self.waiting = deque()
        self.pending = {}
        self.counts, self.refused = [], []
        self.n = 0

    def clone(self):
        return self

    def home_lanes(self):
        return []

    def ping(self):
        return 0.0

    def ensure_lanes(self, lanes):
        """All lanes are there."""

    def add(self, task):
        self.n += 1
        self.waiting.append(
            Delivery(lane="default", entry_id=b"%d-0" % self.n, task=task, mark=self.n)
        )

    def take(self, settled, lanes, worker, count, *, on_settled, block=None, spin=0.0):
        on_settled(self.settle(settled))
        if block and not self.waiting:
            self.clock.sleep(min(block, 2 * LULL))
        taken = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self.pending |= {d.entry_id: d for d in taken}
        self.counts.append(count)
        return taken

    def settle(self, settled):
        for one in settled:
            del self.pending[one.delivery.entry_id]
            for successor in one.successors:
                self.add(successor.task)
        return [1] * len(settled)

    def held(self, lanes, worker):
        return list(self.pending.values())

    def refuse_copy(self, delivery):
        self.refused.append(delivery.entry_id)


class Calls:
    """Runs a task by sleeping for as many seconds as its arguments say."""

    depth, task, running = 0, None, ()

    def __init__(self, clock):
        self.clock = clock
        self.order = []
        self.collect_unattributed_output = list

    def report_progress(self, done, total):
        """Nobody wants to know."""

    def execute(self, delivery):
        self.order.append(delivery.task.n)
        self.clock.sleep(float(delivery.task.args))
        return Settlement(delivery=delivery), None


def call(n, seconds=0.0):
    return Task(
        job="s.1", n=n, span=(range(1),), fn="f", name="f", call="apply", args=b"%f" % seconds
    )


@pytest.fixture
def shared():
    """``shared(size)``: the descriptor of a file of zero bytes."""
    with contextlib.ExitStack() as files:

        def shared(size):
            file = files.enter_context(tempfile.TemporaryFile())
            os.ftruncate(file.fileno(), size)
            return file.fileno()

        yield shared


@pytest.fixture
def turns(shared):
    """The turn of the worker, and that of another one."""
    descriptor = shared(TURNS_BYTES)
    TurnWatch(descriptor).add(1)
    return [Turn(descriptor, place, os.getpid()) for place in range(2)]


@pytest.fixture
def worker(monkeypatch, shared, turns):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(WorkerContext, "current", None)  # set back after the test
    monkeypatch.setattr(module, "fetch_by", lambda _: None)
    worker = TaskWorker(
        Lane(clock),
        Slot(shared(SLOT_BYTES)),
        SettledCache(shared(SETTLED_BYTES)),
        turns[0],
        Output(),
        worker="w",
        lanes=["default"],
        url="",
        secret="s",
    )
    worker.execution = Calls(clock)
    return worker


@pytest.fixture
def lane(worker):
    return worker._store


def rounds(worker):
    """Let it work until nothing waits."""
    while worker._store.waiting or worker._batch:
        worker._round()


def test_batches_grow_while_calls_are_short(worker, lane):
    for n in range(100):
        lane.add(call(n))
    rounds(worker)
    assert lane.counts[:4] == [1, 2, 4, 8]
    assert worker.execution.order == list(range(100))


def test_after_a_lull_it_takes_one(worker, lane):
    for n in range(100):
        lane.add(call(n))
    rounds(worker)
    worker._round()
    worker._round()
    assert worker._count == 1


def test_of_a_batch_that_takes_too_long_it_keeps_the_next(worker, lane):
    for n in range(100):
        lane.add(call(n, 3 * FLUSH if n == 20 else 0.0))
    rounds(worker)
    order = worker.execution.order
    assert sorted(order) == list(range(100))
    assert order[:22] == list(range(22))
    assert order[22] > 22, "the others are given back"


@pytest.mark.parametrize(("n_failures", "n_pauses"), [(1, 0), (3, 2)])
def test_only_a_server_that_stays_away_is_paused_for(worker, lane, n_failures, n_pauses):
    undisturbed, left, began = lane.take, [None] * n_failures, lane.clock.now

    def take(*args, **options):
        if left:
            left.pop()
            raise ServerUnreachable("cut")
        return undisturbed(*args, **options)

    lane.take = take
    lane.add(call(0))
    worker._until_reachable(worker._round)
    assert worker.execution.order == [0]
    assert lane.clock.now == pytest.approx(began + n_pauses * RECONNECT)


def test_while_it_makes_lost_lanes_again_another_worker_may_wait(worker, lane, turns, monkeypatch):
    found = []

    def join(*_):
        found.append(turns[1].take())
        worker._leaving = len(found) == 2
        return []

    def take(*_, **__):
        turns[1].pass_on()
        assert turns[0].take()
        raise DataLost("The lanes are gone.")

    monkeypatch.setattr(worker._monitor, "start", lambda: None)
    lane.join, lane.take = join, take
    worker.run({})
    assert found == [True, True]


@pytest.mark.parametrize("where", ["collect_unattributed_output", "take"])
def test_a_signal_to_look_loses_nothing(worker, lane, where):
    target = worker.execution if where == "collect_unattributed_output" else lane
    undisturbed = getattr(target, where)

    def disturbed(*args, **options):
        setattr(target, where, undisturbed)
        worker._slot.set_lanes(["high"], 0)
        worker.on_look_signal(0, None)
        return undisturbed(*args, **options)

    lane.add(call(0))
    worker._round()
    worker._was_full = False
    lane.add(call(1))
    setattr(target, where, disturbed)
    worker._until_reachable(worker._round)
    worker.flush(lane)

    assert worker.execution.order == [0, 1]
    assert lane.refused == []
    assert not lane.pending
