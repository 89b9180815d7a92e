"""A server that is 20 ms away from the workers: how often they ask, and what a cut loses.

All tests count what happens; how long it takes is measured by ``python -m benchmarks.far``.
"""

import time

import pytest

from tests.counting import Runs, check_nothing_left, check_once
from tests.forwarder import Forwarder


@pytest.fixture
def road(server_url):
    """The way to the server, in a process of its own."""
    with Forwarder(server_url, 0.02) as road:
        yield road


@pytest.fixture
def runs(tmp_path):
    """Counts the runs of each item."""
    return Runs(tmp_path / "runs")


@pytest.fixture
def far(new_queue, start_node, road):
    """A queue whose one worker is far away."""
    start_node(url=road.url)
    return new_queue(workers=0)


def test_a_far_worker_has_work_in_hand_while_nothing_reaches_it(far, road, runs, wait_until):
    queue = far

    def work(i):
        runs.note(i)
        time.sleep(0.01)
        return i

    job = queue.map(work, range(60), chunksize=1)
    wait_until(lambda: len(runs.counts) > 20, describe="some items")
    road.mute()
    n_then = len(runs.counts)
    wait_until(lambda: len(runs.counts) > n_then + 4, describe="items that it had in hand")
    road.restore()
    job.result(60)
    check_once(job, list(range(60)))
    assert set(runs.counts.values()) == {1}


def test_of_long_items_it_takes_no_other_ahead(far, runs, gate, store, wait_until):
    queue = far

    def work(i):
        runs.note(i)
        gate().wait()

    job = queue.map(work, range(3), chunksize=1)
    wait_until(lambda: runs.counts, describe="the first item")
    assert sum(lane["running"] for lane in store.lanes(["default"])) == 1
    gate().open()
    job.result()


@pytest.mark.parametrize("what", ["cut", "scripts"])
def test_a_cut_or_forgotten_scripts_lose_nothing_of_what_is_under_way(
    far, road, client, store, runs, wait_until, what
):
    queue = far

    def work(i):
        runs.note(i)
        time.sleep(0.002)
        return i

    job = queue.map(work, range(200), chunksize=2)
    wait_until(lambda: len(runs.counts) > 40, describe="some items")
    if what == "cut":
        road.cut()
        road.restore()
    else:
        client.script_flush()
    job.result(60)
    check_once(job, list(range(200)))
    assert set(runs.counts.values()) == {1}
    wait_until(lambda: store.lanes(["default"])[0]["running"] == 0, describe="the last settlement")
    check_nothing_left(store)


def test_a_task_that_waits_finds_its_tasks_among_those_that_are_under_way(far):
    queue = far

    def outer(x):
        inner = queue.submit(lambda y: y + 1, x)
        return inner.result()

    assert list(queue.map(outer, range(8), chunksize=1, timeout=60)) == list(range(1, 9))


def test_a_lone_call_costs_as_few_requests_as_beside_the_server(far, client):
    queue = far

    def n_reads():
        return client.info("commandstats")["cmdstat_xreadgroup"]["calls"]

    for _ in range(3):
        queue.submit(int).result()
    before = n_reads()
    for _ in range(5):
        queue.submit(int).result()
    assert n_reads() - before <= 6


def test_a_lost_machine_s_calls_run_elsewhere(far, road, start_node, gate, wait_until):
    queue = far
    begun, again = gate("begun"), gate("again")

    def work():
        if begun.first():
            again.wait()
            return "late"
        return "elsewhere"

    future = queue.submit(work)
    wait_until(begun.is_open, describe="the far worker")
    start_node()
    road.mute()
    assert future.result(30) == "elsewhere"
    again.open()
    road.restore()
