"""What the task monitor says of a long delivery, without a worker around it."""

import contextlib
import threading
import time
from itertools import count

import pytest

from nbstreamq.wire.messages import Event, Task
from nbstreamq.wire.settlement import Delivery
from nbstreamq.worker.monitor import TaskMonitor

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

TASK = Task(job="s.1", n=0, span=(range(1000),), fn="f", name="f", call="map", args=b"")


class LongDelivery:
    """Execution, coroutines, output and store of a worker that runs a delivery since a while."""

    def __init__(self, items):
        delivery = Delivery(lane="default", entry_id=b"1-1", task=TASK)
        self.running = [(delivery, time.monotonic() - 1)]
        self.chunks, self.step, self.hold_up_plain_calls = [], (None, 0.0), False
        self._items = items
        self.published = []

    @property
    def item(self):
        return next(self._items)

    def watch(self):
        pass

    def started(self, task, item):
        return Event(kind="started", job=task.job, n=item, worker="w")

    def reporting(self):
        return contextlib.nullcontext()

    def collect(self):
        return []

    def reports(self, _pieces):
        return []

    def publish(self, events):
        self.published += events


@pytest.fixture
def beats():
    """``beats(items)``: the events that are published in six beats, which see these items run."""

    def run(items):
        delivery, over, seen = LongDelivery(items), threading.Event(), count(1)

        def free(_store):
            if next(seen) > 6:
                over.set()
                raise SystemExit  # of its thread, which else lives as long as its process

        monitor = TaskMonitor(
            delivery, delivery, delivery, delivery, free=free, set_waits=lambda _: None
        )
        monitor.start()
        monitor.wake()
        assert over.wait(10)
        return [event.n for event in delivery.published]

    return run


def test_an_item_that_runs_for_long_is_announced_once(beats):
    assert beats(iter([7] * 100)) == [7]


def test_each_long_item_of_a_chunk_is(beats):
    assert beats(iter([3, 3, 3, 4, 4, 5, 6, 6])) == [3, 4]


def test_short_items_of_a_long_chunk_are_not(beats):
    assert beats(count()) == []
