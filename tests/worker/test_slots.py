import os
import signal
import tempfile

import pytest

from nbstreamq.wire.keys import RARE
from nbstreamq.worker.slot import MAX_DEPTH, NO_ITEM, SLOT_BYTES, Slot, Stop, WorkerState

ENTRY = ("default", b"1-2", "s.1", 40)


@pytest.fixture
def pair():
    """The same slot, as the worker and as the supervisor see it."""
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SLOT_BYTES)
        yield Slot(file.fileno()), Slot(file.fileno())


def test_a_new_slot_says_that_its_worker_starts(pair):
    _, seen = pair

    assert seen.state is WorkerState.STARTING
    assert seen.running() == []
    assert seen.stop_request() == (0, 0, Stop.NONE)


def test_the_supervisor_sees_what_the_worker_writes(pair):
    worker, seen = pair

    worker.set_state(WorkerState.BUSY)
    at = worker.push(*ENTRY)
    worker.begin(at, serial=7)
    worker.set_deadline(at, 102.5)
    worker.words[at] = 3

    assert seen.state is WorkerState.BUSY
    (level,) = seen.running()
    assert (level.lane, level.entry_id, level.job, level.n) == ENTRY
    assert (level.serial, level.item, level.deadline) == (7, 3, 102.5)


def test_a_delivery_is_seen_before_its_first_item(pair):
    worker, seen = pair
    at = worker.push(*ENTRY)
    worker.begin(at, serial=7)
    worker.set_deadline(at, 102.5)
    worker.words[at] = 3
    worker.restore(0)

    worker.push(*ENTRY)

    (level,) = seen.running()
    assert level.entry_id == b"1-2"
    assert level.item == NO_ITEM
    assert level.deadline == 0


def test_no_deadline_is_left_of_who_was_there_before(pair):
    worker, seen = pair
    worker.set_deadline(worker.push(*ENTRY), 102.5)
    worker.restore(0)

    worker.begin(worker.push(*ENTRY), serial=1)

    assert seen.running()[0].deadline == 0.0


def test_what_has_limits_wakes_the_supervisor(pair):
    worker, seen = pair
    worker.set_supervisor(os.getpid())
    heard = []
    before = signal.signal(signal.SIGCHLD, lambda *_: heard.append(seen.running()[-1].is_limited))
    try:
        worker.push(*ENTRY)
        worker.push(*ENTRY, is_limited=True)
        seen.set_watched(True)
        worker.push(*ENTRY, is_limited=True)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert heard == [True]
    assert [level.is_limited for level in seen.running()] == [False, True, True]


def test_levels_are_the_outermost_first(pair):
    worker, seen = pair
    for depth in range(3):
        at = worker.push("default", b"1-%d" % depth, "s.1", depth)
        worker.begin(at, serial=depth + 1)

    assert [level.n for level in seen.running()] == [0, 1, 2]
    worker.restore(2)
    assert [level.n for level in seen.running()] == [0, 1]


def test_a_stack_that_is_too_high_is_counted_all_the_same(pair):
    worker, seen = pair
    for depth in range(MAX_DEPTH + 5):
        at = worker.push("default", b"1-1", "s.1", depth)
        worker.begin(at, serial=depth + 1)

    assert len(seen.running()) == MAX_DEPTH
    worker.restore(1)
    assert len(seen.running()) == 1
    assert seen.running()[0].n == 0


def test_a_text_that_is_too_long_is_no_level(pair):
    worker, seen = pair

    worker.begin(worker.push("x" * 500, b"1-2", "s.1", 0), 1)

    assert seen.running() == []


def test_the_worker_sees_which_item_is_to_stop(pair):
    worker, seen = pair
    at = worker.push(*ENTRY)
    worker.begin(at, serial=9)
    worker.words[at] = 2

    seen.ask_to_stop(seen.running()[0], Stop.CANCELLED)

    assert worker.stop_request() == (9, 2, Stop.CANCELLED)


def test_the_worker_sees_which_lanes_are_unused(pair):
    worker, seen = pair
    assert worker.unused_lanes() == {*RARE}
    assert worker.n_lane_changes() == 0

    seen.set_lanes({"high", "nested1"}, 3)
    assert worker.unused_lanes() == {*RARE} - {"high", "nested1"}
    assert worker.n_lane_changes() == 3
