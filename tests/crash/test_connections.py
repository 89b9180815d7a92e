"""Connections are cut, or lead to a server that does not answer: nothing is lost, none counts twice."""

import os
import signal
import time

import pytest

from nbstreamq.protocol import clients
from tests.counting import check_nothing_left, check_once


def some_more(job, n):
    """Return whether `n` more results are there than at the first call."""
    first = sum(f.done() for f in job[:])
    return lambda: job.done() or sum(f.done() for f in job[:]) >= first + n


@pytest.mark.parametrize("who", ["both", "client", "workers"])
def test_cut_again_and_again_under_load(proxy, new_queue, start_node, store, wait_until, who):
    queue = new_queue(proxy.url if who != "workers" else None, workers=0)
    node = {"url": proxy.url} if who != "client" else {}
    for _ in range(2):
        start_node(**node)

    job = queue.map(lambda i: time.sleep(0.005) or i, range(300), chunksize=10)
    singles = []
    for i in range(8):
        wait_until(some_more(job, 15), describe="some results")
        wait_until(proxy.cut, describe="a connection to cut")
        singles.append(queue.submit(pow, 2, i))

    job.wait(40)
    check_once(job, list(range(300)))
    assert [f.result(20) for f in singles] == [2**i for i in range(8)]
    check_nothing_left(store)


def test_the_server_does_not_know_that_a_waiting_worker_is_gone(
    proxy, new_queue, start_node, store, client, wait_until
):
    """It gives the next task to a connection that leads nowhere."""
    queue = new_queue(workers=0)
    start_node(url=proxy.url)
    assert queue.submit(abs, -1).result(20) == 1
    begun = time.monotonic()

    def n_reading():
        """How many connections wait for a task, says the server."""
        age = time.monotonic() - begun + 1
        return sum(c["cmd"] == "xreadgroup" and int(c["age"]) <= age for c in client.client_list())

    wait_until(lambda: n_reading() == 1, describe="the worker's wait")
    proxy.abandon()
    wait_until(lambda: n_reading() == 2, describe="the worker's second wait")

    assert [queue.submit(pow, 2, i).result(20) for i in range(3)] == [1, 2, 4]
    check_nothing_left(store)
