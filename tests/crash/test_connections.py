"""Connections are cut, or lead to a server that does not answer: each task has one result."""

import contextlib
import os
import signal
import time
from collections import Counter

import pytest

from nbstreamq import ServerUnreachable
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from tests.counting import Runs, check_nothing_left, check_once


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

    def n_reading(idle):
        """How many connections wait for a task for so many seconds already, says the server."""
        age = time.monotonic() - begun + 2
        reading = [c for c in client.client_list() if c["cmd"] == "xreadgroup"]
        return sum(int(c["age"]) <= age and int(c["idle"]) >= idle for c in reading)

    # Right after a call it waits for 10 ms only: that ends though nobody is there.
    wait_until(lambda: n_reading(idle=1) == 1, describe="the worker's wait")
    proxy.abandon()
    wait_until(lambda: n_reading(idle=0) == 2, describe="the worker's second wait")

    assert [queue.submit(pow, 2, i).result(20) for i in range(3)] == [1, 2, 4]
    check_nothing_left(store)


@pytest.mark.parametrize("way", ["cut", "silent"])
def test_an_order_reaches_a_node_that_was_cut_off(
    proxy, new_queue, start_node, gate, wait_until, way
):
    """What is cancelled meanwhile is stopped when it is back."""
    queue = new_queue(workers=0)
    start_node(url=proxy.url)
    begun = gate("begun")
    long = queue.submit(lambda: begun.open() or time.sleep(60))
    begun.wait()

    if way == "cut":
        proxy.is_open = False
        wait_until(proxy.cut, describe="a connection to cut")
    else:
        wait_until(lambda: proxy.mute(b":control\r"), describe="the wait for orders")
    assert long.cancel()
    proxy.is_open = True

    assert queue.submit(abs, -1).result(20) == 1


class TestPausedServer:
    """It neither answers nor ends: a machine that swaps, a virtual one that is moved."""

    #: Seconds; longer than the nodes here may be silent.
    PAUSE = 1.5

    def pause(self, server):
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(self.PAUSE)
        os.kill(server.pid, signal.SIGCONT)

    @pytest.fixture
    def own(self, start_server, start_node, queue_name, new_queue):
        """A server that may be paused, a store and a queue on it, and two nodes."""
        server = start_server("--appendonly", "yes")
        with open_client(server.url) as client:
            store = Store(client, queue_name, Signer("secret", queue_name))
            queue = new_queue(server.url, workers=0)
            for _ in range(2):
                start_node(url=server.url, store=store)
            yield server, store, queue
            store.close()

    def test_under_load(self, own, wait_until):
        server, store, queue = own
        job = queue.map(lambda i: time.sleep(0.005) or i, range(200), chunksize=10)
        for _ in range(2):
            wait_until(some_more(job, 30), describe="some results")
            self.pause(server)

        job.wait(40)
        check_once(job, list(range(200)))
        check_nothing_left(store)

    @pytest.mark.parametrize("away", ["paused", "restarted"])
    def test_nobody_is_taken_for_dead(self, own, gate, tmp_path, wait_until, away):
        """All were silent: the first that is heard again must not bury the others."""
        server, store, queue = own
        go, runs = gate(), Runs(tmp_path / "runs")

        def work(i):
            runs.note(i)
            go.wait()
            return i

        job = queue.map(work, range(2), chunksize=1)
        wait_until(lambda: len(runs.counts) == 2, describe="both at work")
        before = set(store.workers())
        if away == "paused":
            self.pause(server)
        else:
            server.stop()
            time.sleep(self.PAUSE)
            server.start()
            wait_until(lambda: reachable(store), describe="the server")
        wait_for_beats(store, 4, wait_until)
        go.open()

        job.wait(20)
        check_once(job, [0, 1])
        assert runs.counts == Counter(range(2))
        assert set(store.workers()) == before


def reachable(store):
    with contextlib.suppress(ServerUnreachable):
        store.workers()
        return True
    return False


def wait_for_beats(store, n, wait_until):
    """Wait until the first node has given `n` signs of life."""
    for _ in range(n):
        key = store.keys.nodes
        before = max(store._client.zrange(key, 0, -1, withscores=True), key=lambda p: p[1])[1]
        wait_until(
            lambda b=before: all(
                s > b for _, s in store._client.zrange(key, 0, -1, withscores=True)
            ),
            describe="a sign of life of all",
        )
