"""The server is killed while a map runs, and comes back with what it had written."""

import os
import time
from collections import Counter

import pytest

AOF = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def durable(start_server, new_queue):
    """A server that keeps what it was told, and a queue on it."""
    server = start_server(*AOF)
    return server, new_queue(server.url)


def test_every_item_has_one_result(durable, wait_until):
    server, queue = durable
    job = queue.map(lambda i: time.sleep(0.005) or i, range(300), chunksize=10)
    n_results = Counter()
    for future in job[:]:
        future.add_done_callback(lambda f: n_results.update([f.id]))

    for n_restarts in (1, 2):
        wait_until(
            lambda n=n_restarts: job.done() or sum(f.done() for f in job[:]) > 60 * n,
            describe="some results",
        )
        server.stop()
        server.start()

    assert job.result(50) == list(range(300))
    assert job.errors == {}
    assert sorted(n_results.values()) == [1] * 300


def test_what_was_waiting_is_run_after_it(durable, gate):
    server, queue = durable
    begun, go = gate("begun"), gate("go")

    def first():
        begun.open()
        go.wait()
        return "first"

    running = queue.map(lambda _: first(), range(2), chunksize=1)
    begun.wait()
    waiting = [queue.submit(pow, 2, i) for i in range(20)]
    server.stop()
    server.start()
    go.open()

    assert running.result(40) == ["first"] * 2
    assert [f.result(40) for f in waiting] == [2**i for i in range(20)]


def test_a_worker_that_dies_while_the_server_is_away(durable, gate, wait_until):
    server, queue = durable
    begun, again, go = gate("begun"), gate("again"), gate("go")

    def work():
        if again.first():
            begun.open()
            go.wait()
            os._exit(3)
        return "again"

    future = queue.submit(work)
    begun.wait()
    server.stop()
    go.open()
    server.start()

    assert future.result(40) == "again"


def test_what_ends_while_the_server_is_away_is_not_run_again(durable, gate, tmp_path):
    server, queue = durable
    begun, go, runs = gate("begun"), gate("go"), tmp_path / "runs"

    def work():
        with runs.open("a") as file:
            file.write("x")
        begun.open()
        go.wait()
        return "done"

    future = queue.submit(work)
    begun.wait()
    server.stop()
    go.open()
    server.start()

    # At once: long before the worker's wait for its next task is over.
    assert future.result(15) == "done"
    assert runs.read_text() == "x"


def test_what_is_submitted_while_the_server_is_away_is_run_when_it_is_back(durable):
    server, queue = durable
    queue.submit(os.getpid).result(20)

    server.stop()
    future = queue.submit(lambda: "late")
    assert not future.done()
    server.start()

    assert future.result(40) == "late"
