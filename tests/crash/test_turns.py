"""One idle worker waits on the server; whatever happens to it, the next call does not wait."""

import itertools
import os
import signal
import time

import pytest

from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.keys import Keys

N_WORKERS = 4


@pytest.fixture
def parked(start_server, new_queue, wait_until):
    """A queue with its own server and idle workers, of which one waits there; and a client."""
    server = start_server()
    queue = new_queue(server.url, workers=N_WORKERS)
    with open_client(server.url) as client:

        def n_waiting():
            return sum(c["cmd"] == "xreadgroup" and "b" in c["flags"] for c in client.client_list())

        def is_parked():
            return [w.state for w in queue.workers()] == ["idle"] * N_WORKERS and n_waiting() == 1

        queue.run(N_WORKERS)
        assert queue.submit(abs, -1).result(20) == 1
        wait_until(is_parked, 20, "one waiting worker")
        yield queue, client


@pytest.fixture
def holder(parked, wait_until):
    """Process id of the worker whose turn it is: it gets call after call."""
    queue, _ = parked

    def same():
        first, second = (queue.submit(os.getpid).result(10) for _ in range(2))
        return first == second and first

    return wait_until(same, 20, "two calls in the same worker")


def end_of(pid, way, client):
    if way == "cut":
        reading = [c for c in client.client_list() if c["cmd"] == "xreadgroup"]
        for one in reading:
            client.client_kill_filter(_id=one["id"])
    else:
        os.kill(pid, signal.SIGKILL if way == "killed" else signal.SIGSTOP)


@pytest.mark.parametrize("way", ["killed", "stopped", "cut"])
def test_the_next_call_does_not_wait(parked, holder, way):
    queue, client = parked
    end_of(holder, way, client)
    try:
        begun = time.monotonic()
        assert queue.submit(abs, -2).result(10) == 2
        assert time.monotonic() - begun < 1, "it waited until a worker looked by itself"
        assert queue.map(abs, range(100), chunksize=1).result(20) == list(range(100))
    finally:
        if way == "stopped":
            os.kill(holder, signal.SIGCONT)
    assert not queue.dead()


def test_one_that_goes_on_takes_part_again(parked, holder, wait_until):
    queue, _ = parked
    os.kill(holder, signal.SIGSTOP)
    assert [queue.submit(abs, -i).result(10) for i in range(5)] == list(range(5))
    os.kill(holder, signal.SIGCONT)

    def all_take_part():
        return holder in queue.map(lambda _: time.sleep(0.05) or os.getpid(), [0] * 8, chunksize=1)

    wait_until(all_take_part, 20, "the worker that was stopped")
    assert not queue.dead()


def test_no_call_waits_behind_a_long_one_that_lets_no_thread_run(parked):
    queue, _ = parked

    def hold(n):  # the interpreter's lock is held, so no monitor of this process can run
        began = time.time()
        sum(itertools.repeat(1, n))
        return began, time.time()

    assert queue.submit(hold, 1).result(10)
    long = queue.submit(hold, 200_000_000)
    began = queue.submit(time.time).result(20)
    assert began < long.result(30)[1]


def test_what_everywhere_asks_for_wakes_the_others(parked):
    queue, _ = parked
    pids = {w.pid for w in queue.workers()}
    assert set(queue.everywhere(os.getpid).result(10)) == pids


def test_a_burst_reaches_all(parked, gate):
    queue, _ = parked
    gates = [gate(str(k)) for k in range(N_WORKERS)]

    def meet(k):
        gates[k].open()
        for other in gates:
            other.wait()
        return os.getpid()

    pids = [queue.submit(meet, k) for k in range(N_WORKERS)]
    assert len({future.result(30) for future in pids}) == N_WORKERS


def test_a_call_that_is_put_back_from_a_stopped_worker_is_not_taken_for_a_copy(
    parked, gate, wait_until
):
    """The worker goes on with it, and its result is too late: what was put back counts."""
    queue, client = parked
    go, lane = gate("go"), Keys(queue.name).lane("default")
    busy = [queue.submit(go.wait) for _ in range(N_WORKERS - 1)]  # so what is put back waits

    def idle():
        reading = [c for c in client.client_list() if c["cmd"] == "xreadgroup"]
        pids = [w.pid for w in queue.workers() if w.state == "idle"]
        return sum("b" in c["flags"] for c in reading) == len(pids) == 1 and pids[0]

    def n_added():
        return client.xinfo_stream(lane)["entries-added"]

    pid, before = wait_until(idle, describe="one idle worker"), n_added()
    os.kill(pid, signal.SIGSTOP)
    try:
        call = queue.submit(abs, -3)
        wait_until(lambda: n_added() == before + 2, describe="the call put back")
    finally:
        os.kill(pid, signal.SIGCONT)

    try:
        assert call.result(10) == 3
        assert not queue.dead()
    finally:
        go.open()
    assert all(f.exception(20) is None for f in busy)
