"""What workers of a machine know of the messages that were settled."""

import os
import tempfile

import pytest

from nbstreamq.wire.messages import Task
from nbstreamq.wire.settlement import Delivery, Requeue, Settlement
from nbstreamq.worker.settled import N_MARKS, SETTLED_BYTES, SettledCache


@pytest.fixture
def pair():
    """The same table, as two workers see it."""
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SETTLED_BYTES)
        yield SettledCache(file.fileno()), SettledCache(file.fileno())


def settlement(mark, *spans):
    task = Task(job="s.1", n=0, span=(range(10),), fn="f", name="f", call="map", args=b"")
    delivery = Delivery(lane="default", entry_id=b"1-1", task=task, mark=mark)
    successors = [Requeue(task=task.again(span)) for span in spans]
    return Settlement(delivery=delivery, successors=successors)


def test_what_was_run_is_known_to_others_once_it_is_settled(pair):
    worker, other = pair
    done = settlement(2**64 - 1)
    assert 2**64 - 1 not in worker
    worker.add_run(done)
    assert (2**64 - 1 in worker, 2**64 - 1 in other) == (True, False)
    worker.add_settled([done], [1])
    assert (2**64 - 1 in worker, 2**64 - 1 in other) == (True, True)


def test_a_slice_is_known_and_what_goes_back_as_it_is_is_not(pair):
    worker, other = pair
    sliced, returned = settlement(7, (range(4, 10),)), settlement(8, (range(10),))
    for one in (sliced, returned):
        worker.add_run(one)
        worker.add_settled([one], [1])
    assert (7 in other, 8 in worker, 8 in other) == (True, False, False)


def test_what_was_no_longer_ours_may_come_again(pair):
    worker, other = pair
    late = settlement(9)
    worker.add_run(late)
    worker.add_settled([late], [0])
    assert (9 in worker, 9 in other) == (False, False)


def test_a_later_one_may_take_the_place_of_an_earlier_one(pair):
    worker, other = pair
    for mark in (5, 5 + N_MARKS):
        worker.add_run(settlement(mark))
        worker.add_settled([settlement(mark)], [1])
    assert (5 in other, 5 + N_MARKS in other) == (False, True)
