"""The server is killed and comes back, while work goes on."""

import os
import time
from collections import Counter

import pytest

pytestmark = pytest.mark.crash


@pytest.fixture
def lasting_server(start_server):
    """A server that writes every command to its disk before it answers."""
    return start_server("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def queue(new_queue, lasting_server):
    return new_queue(lasting_server.url)


def test_a_map_survives_a_restart_with_one_result_each(queue, lasting_server, gate, wait_until):
    counts = Counter()
    job = queue.map(lambda x: (time.sleep(0.005), x * x)[1], range(300))
    for future in job[:]:
        future.add_done_callback(lambda f: counts.update([f.id]))
    wait_until(lambda: len(counts) > 30, describe="the first results")
    assert not job.done()

    lasting_server.stop()
    lasting_server.start()

    assert job.result(30) == [x * x for x in range(300)]
    assert set(counts.values()) == {1}
    assert len(counts) == 300


def test_one_that_runs_while_the_server_is_away_is_not_lost(queue, lasting_server, gate):
    begun, go, runs = gate("begun"), gate("go"), gate("runs")

    def work():
        with open(runs.path, "a") as file:
            file.write("x")
        begun.open()
        go.wait()
        return "done"

    future = queue.submit(work)
    begun.wait()
    lasting_server.stop()
    go.open()
    lasting_server.start()

    assert future.result(30) == "done"
    with open(runs.path) as file:
        assert file.read() == "x"


def test_what_is_submitted_while_the_server_is_away_is_run_when_it_is_back(queue, lasting_server):
    queue.submit(os.getpid).result(20)

    lasting_server.stop()
    future = queue.submit(lambda: "late")
    assert not future.done()
    lasting_server.start()

    assert future.result(30) == "late"


def test_a_worker_killed_while_the_server_is_away_is_buried_when_it_is_back(
    queue, lasting_server, gate
):
    begun, go = gate("begun"), gate("go")

    def work():
        if begun.once():
            go.wait()
        return os.getpid()

    queue.submit(os.getpid).result(20)
    future = queue.submit(work)
    begun.wait()
    workers = [w.pid for w in queue.workers()]
    lasting_server.stop()
    for pid in workers:
        os.kill(pid, 9)
    lasting_server.start()

    assert future.result(30) not in workers
