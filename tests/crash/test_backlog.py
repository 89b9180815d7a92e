"""Chunks that wait in a backlog run, or are dropped, whoever dies."""

import os
import signal

import pytest

_CLIENT = """
import sys, time
from nbstreamq import TaskQueue

url, name, job = sys.argv[1:]
queue = TaskQueue(name, url, workers=0, secret="secret")
job = queue.map(lambda i: time.sleep(0.02) or i, range(100), chunksize=1, name=job or None)
print(job[0].result(), flush=True)
time.sleep(100)
"""


def n_kept(store, client):
    return sum(map(client.llen, client.keys(store.keys.backlog("*").replace("{", "[{]"))))


@pytest.fixture
def start_client(start, server_url, queue_name):
    """``start_client(job)``: a client that maps in a process of its own, once a result has come."""

    def start_client(job=""):
        process = start("-c", _CLIENT, server_url, queue_name, job)
        assert process.line() == "0"
        return process

    return start_client


def test_a_named_job_goes_on_when_its_client_is_killed(
    start_node, start_client, new_queue, store, wait_until
):
    start_node(2)
    process = start_client("sweep")
    wait_until(lambda: store.find_job("sweep").total == 100, describe="all of it")
    process.kill()
    queue = new_queue(workers=0, secret="secret")
    assert queue.attach("sweep").result(40) == list(range(100))


def test_workers_drop_the_backlog_of_a_client_that_is_gone(
    start_node, start_client, store, client, wait_until
):
    start_node(1)
    process = start_client()
    assert n_kept(store, client) > 0
    process.kill()
    client.delete(*client.keys(store.keys.session("*").replace("{", "[{]")))  # as if it had expired
    wait_until(lambda: n_kept(store, client) == 0, timeout=40, describe="an empty backlog")


def test_the_chunks_behind_a_killed_worker_run(queue, gate):
    once = gate("once")

    def work(i):
        if i == 5 and once.first():
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert queue.map(work, range(60), chunksize=1).result(40) == list(range(60))


def test_the_chunks_of_all_workers_that_are_killed_run(queue, gate):
    def work(i):
        if gate(f"once{i % 2}").first():
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    assert queue.map(work, range(60), chunksize=1).result(40) == list(range(60))
