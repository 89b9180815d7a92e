"""A whole machine falls silent, or is frozen: another takes its tasks, and none counts twice."""

import os
import signal
import time

import pytest


@pytest.fixture
def held(new_queue, start_node, gate):
    """A queue, a task in the hands of a node that shall vanish, the node, and a gate to end it."""
    queue = new_queue(workers=0)
    begun, again, go = gate("begun"), gate("again"), gate("go")
    first = start_node()

    def work():
        if again.first():
            begun.open()
            go.wait()
            return "the first"
        return "the second"

    future = queue.submit(work)
    begun.wait()
    yield queue, future, first, go
    go.open()


def test_a_second_node_takes_over_from_a_killed_one(held, start_node):
    _, future, first, _ = held
    start_node()

    first.kill()

    assert future.result(30) == "the second"


def test_a_node_that_starts_later_takes_over_at_once(held, start_node):
    _, future, first, _ = held
    first.kill()
    first.wait()

    start_node()

    assert future.result(30) == "the second"


def test_a_frozen_node_comes_too_late(held, start_node, store, wait_until):
    queue, future, first, go = held
    start_node()
    frozen = first.family()

    for process in frozen:
        process.suspend()
    assert future.result(30) == "the second"
    go.open()
    for process in frozen:
        process.resume()

    # It lives on, with new workers where the old ones were given up.
    wait_until(lambda: len(store.workers()) >= 2, describe="both nodes at work")
    assert queue.map(lambda i: time.sleep(0.01) or i, range(50)).result(30) == list(range(50))
    assert future.result(0) == "the second"


def test_a_frozen_supervisor_does_not_stop_its_workers(held):
    _, future, first, go = held

    os.kill(first.pid, signal.SIGSTOP)
    go.open()

    assert future.result(20) == "the first"
    os.kill(first.pid, signal.SIGCONT)


def test_a_map_on_two_nodes_survives_one(new_queue, start_node, wait_until):
    queue = new_queue(workers=0)
    nodes = [start_node(), start_node()]

    job = queue.map(lambda i: time.sleep(0.02) or i, range(100), chunksize=5)
    wait_until(lambda: sum(f.done() for f in job[:]) > 10, describe="some results")
    nodes[0].kill()

    assert job.result(40) == list(range(100))
