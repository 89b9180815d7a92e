"""Short hands for the tests of the scripts: make tasks, submit them, take them, read events."""

import itertools

import pytest

from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.messages import Event, Task
from nbstreamq.wire.settlement import Settlement
from tests.wire.reading import read_events

#: Session and job of all these tests.
SESSION = "s"
JOB = "s.1"


@pytest.fixture
def make_task():
    """``make_task(n, **changes)``: a task of the job ``s.1``."""

    def make(n=0, **changes):
        fields = {"job": JOB, "fn": "f" * 8, "name": "f", "call": "map", "args": b"\x80items"}
        return Task(n=n, **fields | changes)

    return make


@pytest.fixture
def submit(store, make_task):
    """``submit(*tasks, lane=, delay=)``: put tasks, or new ones of these numbers, into a lane."""
    batches = itertools.count(1)

    def submit(*tasks, lane="default", delay=0.0):
        made = [t if isinstance(t, Task) else make_task(t) for t in tasks]
        store.submit(
            SESSION, next(batches), [(lane, delay, store.encode_task(t), "") for t in made]
        )

    return submit


@pytest.fixture
def take(store):
    """``take(worker, count, lanes)``: what the server delivers to a worker."""

    def take(worker="w1", count=100, lanes=("high", "default", "low")):
        return store.take([], lanes, worker, count)

    return take


@pytest.fixture
def finish():
    """``finish(delivery, body)``: the settlement of a task that is done, with one event."""

    def finish(delivery, body=b"result"):
        task = delivery.task
        event = Event(kind="finished", job=task.job, n=task.n, span=ONE, worker="w1", body=body)
        return Settlement(delivery=delivery, events=[event])

    return finish


@pytest.fixture
def bodies(store):
    """``bodies()``: the bodies of all events that the session has been sent."""

    def bodies():
        _, events = read_events(store, SESSION, b"0", 0)
        return [event.body for event in events]

    return bodies
