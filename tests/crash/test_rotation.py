"""A queue gets another secret while it works: nothing is lost, and nothing is refused.

First everybody learns to accept the new one (``old,new``), then to sign with it (``new,old``); who
signs with it first makes it the queue's. Who knows only the old one then finishes, and ends.
"""

import concurrent.futures
import contextlib
import os
import threading
import warnings

import pytest

from nbstreamq import SecretMismatch, TaskQueue
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store


@pytest.fixture
def start_workers(start, server_url, queue_name, client, wait_until):
    """``start_workers(secret)``: ``nbstreamq worker`` with one worker that has joined."""
    store = Store(client, queue_name, Signer("any", queue_name))

    def start_workers(secret):
        before = set(store.workers())
        command = ("-m", "nbstreamq", "worker", server_url, "-n", "1", "--queue", queue_name)
        process = start(*command, env={"NBSTREAMQ_SECRET": secret})
        wait_until(lambda: set(store.workers()) - before, describe="a worker")
        return process

    yield start_workers
    store.close()


@pytest.fixture
def client_with(new_queue):
    """``client_with(secret)``: a queue without workers of its own."""
    return lambda secret: new_queue(workers=0, secret=secret)


def test_a_secret_is_changed_while_tasks_wait_and_run(start_workers, client_with, gate):
    old_workers = start_workers("old")
    first = client_with("old,new")
    begun, finish = gate("begun"), gate("finish")

    def work(i):
        begun.open()
        finish.wait()
        return i, os.getppid()

    held = first.submit(work, -1)
    begun.wait()
    waiting = [first.submit(lambda i=i: i) for i in range(50)]
    job = first.map(abs, range(-200, 0), chunksize=10)

    second = client_with("new,old")
    later = [second.submit(lambda i=i: i) for i in range(50)]
    late_job = second.map(abs, range(-200, 0), chunksize=10)
    second.everywhere(abs, -1)

    finish.open()
    status, said = old_workers.wait()
    assert status == 1
    assert "another secret" in said
    assert "Traceback" not in said
    assert held.result(20) == (-1, old_workers.pid), "what ran was finished where it ran"

    new_workers = start_workers("new,old")
    assert [f.result(20) for f in waiting] == [f.result(20) for f in later] == list(range(50))
    assert list(job) == list(late_job) == list(range(200, 0, -1))

    third = client_with("new")
    assert third.submit(abs, -3).result(20) == 3
    assert first.submit(abs, -4).result(20) == 4
    assert third.status().refused == {}
    assert third.dead() == []
    new_workers.interrupt()
    assert new_workers.wait()[0] == 0


def test_tasks_wait_for_workers_that_know_the_new_secret(start_workers, client_with, wait_until):
    """The old workers take tasks for a moment yet; they put back what they can't read."""
    start_workers("old")
    queue = client_with("new,old")
    futures = [queue.submit(abs, -i) for i in range(300)]
    wait_until(lambda: queue.workers() == [], describe="the end of the old workers")
    start_workers("new")
    assert [f.result(20) for f in futures] == list(range(300))
    assert queue.status().refused == {}


def test_who_comes_with_the_old_one_is_told(client_with, server_url, queue_name):
    client_with("old")
    client_with("new,old")
    with pytest.raises(SecretMismatch, match="NBSTREAMQ_SECRET"):
        TaskQueue(queue_name, server_url, secret="old")


def test_a_client_with_the_old_one_is_told_once(start_workers, client_with, wait_until):
    left_behind = client_with("old")
    client_with("new,old")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        futures = [left_behind.submit(abs, -i) for i in range(5)]
        start_workers("new,old")
        other = client_with("new")
        assert other.submit(abs, -7).result(20) == 7
        wait_until(
            lambda: [w for w in caught if "another secret" in str(w.message)], describe="a warning"
        )
    assert len(caught) == 1
    assert not any(f.done() for f in futures)
    assert other.status().refused == {}


def test_a_client_whose_local_workers_end_is_told(new_queue, client_with, wait_until):
    left_behind = new_queue(workers=1, secret="old")
    assert left_behind.submit(abs, -1).result(20) == 1
    client_with("new,old")
    wait_until(lambda: left_behind.workers() == [], describe="the end of the local workers")
    future = left_behind.submit(abs, -2)

    def wait():
        with contextlib.suppress(concurrent.futures.CancelledError):
            future.result()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        waiting = threading.Thread(target=wait)
        waiting.start()
        try:
            wait_until(
                lambda: [w for w in caught if "another secret" in str(w.message)],
                timeout=30,
                describe="a warning",
            )
        finally:
            future.cancel()
            waiting.join(10)


def test_the_local_workers_of_a_client_follow_its_secrets(new_queue):
    queue = new_queue(workers=1, secret="new,old")
    assert queue.map(abs, range(-20, 0)).result(20) == list(range(20, 0, -1))

    def inside():
        return queue.submit(abs, -5).result(20)

    assert queue.submit(inside).result(20) == 5
