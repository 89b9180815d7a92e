"""A whole machine is cut off the network, works on, and comes back late with what it has done."""

import contextlib
import os
import time

import pytest

from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from tests.counting import check_nothing_left, check_once
from tests.crash.conftest import TIMING
from tests.link import Link
from tests.real_workers import node_command


@pytest.fixture
def link():
    """A cable to another network; needs the rights to lay it."""
    try:
        link = Link()
    except OSError as error:
        pytest.skip(f"no networks can be made here: {error}")
    yield link
    link.close()


@pytest.fixture
def machines(link, start_server, new_queue, queue_name, start, start_node, wait_until):
    """A server, a queue on it, its store, and a node that only the link connects."""
    port = str(20_000 + os.getpid() % 20_000)
    server = start_server("--port", port, "--bind", link.address, "--protected-mode", "no")
    with open_client(server.url) as client:
        store = Store(client, queue_name, Signer("secret", queue_name))
        url = f"redis://{link.address}:{port}"
        node = start(*link.beyond(*node_command(url, queue_name, **TIMING)))
        wait_until(lambda: len(store.workers()) == 1, describe="the far worker")
        yield server, new_queue(server.url, workers=0), store, node
        store.close()


def test_a_machine_that_was_cut_off_comes_too_late(
    machines, link, start_node, gate, tmp_path, wait_until
):
    server, queue, store, _ = machines
    begun, again, go = gate("begun"), gate("again"), gate("go")

    def work(i):
        if again.first():
            begun.open()
            go.wait()
            with (tmp_path / "late").open("a") as file:
                file.write("x")
            return i, "late"
        return i, "in time"

    future = queue.map(work, range(1))
    begun.wait()
    start_node(url=server.url, store=store)
    link.cut()

    assert future.result(30) == [(0, "in time")]
    go.open()
    wait_until((tmp_path / "late").exists, describe="the late result")
    link.plug()

    # The one that was given up joins again.
    wait_until(lambda: len(store.workers()) == 2, 30, describe="both at work")
    check_once(future, [(0, "in time")])
    check_nothing_left(store)


def test_cut_off_for_a_moment_under_load(machines, link, start_node, wait_until):
    server, queue, store, _ = machines
    start_node(url=server.url, store=store)
    job = queue.map(lambda i: time.sleep(0.01) or i, range(300), chunksize=10)

    for _ in range(2):
        n = sum(f.done() for f in job[:])
        wait_until(lambda n=n: sum(f.done() for f in job[:]) > n + 40, describe="some results")
        link.cut()
        with contextlib.suppress(TimeoutError):
            job.result(1.5)
        link.plug()

    job.wait(40)
    check_once(job, list(range(300)))
    wait_until(
        lambda: all(v["running"] == 0 for v in store.lanes(["default"])), 20, describe="the end"
    )
    check_nothing_left(store)
