"""Which calls a worker begins whose lifetime is limited."""

import time

import pytest

from nbstreamq.wire.messages import Event, Task
from nbstreamq.wire.settlement import Delivery, Settlement
from nbstreamq.worker.life import Term

LIFETIME = 1000.0


def deliver(fn="f", lane="default", **changes):
    task = Task(job="s.1", n=0, fn=fn, name=fn, call="apply", args=b"", **changes)
    return Delivery(lane=lane, entry_id=b"1-0", task=task)


@pytest.fixture
def term():
    """``term(left)``: of a worker with so many seconds left, whose calls of f took 300 s."""

    def make(left):
        term = Term(time.monotonic() + left, LIFETIME)
        finished = Event(kind="finished", job="s.1", n=0, worker="w", seconds=300.0)
        term.learn(Settlement(delivery=deliver(), events=[finished]))
        return term

    return make


@pytest.mark.parametrize(
    ("left", "delivery", "allows"),
    [
        (310, deliver(), True),
        (290, deliver(), False),
        (290, deliver("unknown"), True),
        (290, deliver("unknown", ran=295), False),
        (290, deliver(lane="@worker"), True),
        (880, deliver(ran=2000), False),
        (950, deliver(ran=2000), True),  # It is fresh: nobody could do better.
    ],
)
def test_it_begins_what_it_can_finish(term, left, delivery, allows):
    assert term(left).allows(delivery) is allows


def test_it_expects_what_took_longest_of_late(term):
    short = Event(kind="finished", job="s.1", n=0, worker="w", span=(range(10),), seconds=10.0)
    one = term(290)
    one.learn(Settlement(delivery=deliver(), events=[short]))
    assert one.allows(deliver())
    assert not term(200).allows(deliver())
