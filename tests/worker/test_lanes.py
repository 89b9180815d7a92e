"""Workers take from a lane once it is in use, also those that were waiting already."""

import time

import pytest

from nbstreamq.wire.addresses import open_client


@pytest.fixture
def idle(wait_until):
    """``idle(queue, n)`` waits until it has `n` workers, which have nothing to do."""

    def wait(queue, n):
        queue.run(n)
        wait_until(
            lambda: [w.state for w in queue.workers()] == ["idle"] * n, 20, f"{n} idle workers"
        )

    return wait


@pytest.mark.parametrize("lane", ["high", "low"])
@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_waiting_workers_hear_of_the_first_task_in_a_lane(queue, idle, lane, delay):
    idle(queue, 2)
    assert queue.map(abs, [-1] * 20, chunksize=1).result(10) == [1] * 20
    assert queue.options(lane=lane, delay=delay).submit(abs, -2).result(10) == 2


def n_blocked(client, command):
    """Return how many clients of the server wait inside `command`."""
    return sum(c["cmd"] == command and "b" in c["flags"] for c in client.client_list())


def worker_waits(client):
    return n_blocked(client, "xreadgroup") == 1


def test_workers_wait_only_on_lanes_in_use(start_server, new_queue, idle, wait_until):
    url = start_server().url
    queue = new_queue(url)
    idle(queue, 2)
    with open_client(url) as client:

        def n_lanes():
            # The supervisor waits on one key, and so may the kernel.
            n_keys = client.info("clients")["total_blocking_keys"]
            return n_keys - n_blocked(client, "xread")

        if "total_blocking_keys" not in client.info("clients"):
            pytest.skip("this server does not tell on how many keys its clients wait")
        # The worker with the turn waits on its own lane and the usual one.
        wait_until(lambda: n_lanes() == 2, describe="two lanes")
        assert queue.options(lane="low").submit(abs, -1).result(10) == 1
        wait_until(lambda: n_lanes() == 3, describe="three lanes")


@pytest.mark.parametrize("lane", ["high", "low"])
def test_the_task_wakes_them_itself(lane, start_server, new_queue, wait_until, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_SILENCE", "400")  # a supervisor looks for itself every 100 s
    url = start_server().url
    queue = new_queue(url, workers=1)
    assert queue.submit(abs, -1).result(10) == 1
    with open_client(url) as client:
        wait_until(lambda: worker_waits(client), describe="the worker to wait")
    assert queue.options(lane=lane).submit(abs, -2).result(10) == 2


def test_a_worker_asks_once_for_each_isolated_call(start_server, new_queue, wait_until):
    url = start_server().url
    queue, n_calls = new_queue(url, workers=1), 10
    assert queue.submit(abs, -1).result(10) == 1
    with open_client(url) as client:
        wait_until(lambda: worker_waits(client), describe="the worker to wait")
        client.config_resetstat()
        for _ in range(n_calls):
            assert queue.submit(abs, -1).result(10) == 1
            wait_until(lambda: worker_waits(client), describe="the worker to wait")
            time.sleep(0.05)
        n_requests = client.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    assert n_calls <= n_requests <= n_calls + 1  # a signal to look costs another one


def test_a_named_job_too(queue, idle):
    idle(queue, 2)
    job = queue.options(lane="high").map(abs, [-1] * 20, name="urgent")
    assert job.result(10) == [1] * 20
    job.delete()


def test_all_waiting_workers_help_with_what_nests_twice(new_queue, idle, gate):
    queue = new_queue(workers=3)
    idle(queue, 3)
    gates = [gate(str(k)) for k in range(3)]

    def innermost(k):
        # Returns when all three are there: each in a worker of its own.
        gates[k].open()
        for other in gates:
            other.wait()
        return k

    def inner():
        return queue.map(innermost, range(3), chunksize=1).result(40)

    outer = queue.submit(lambda: queue.submit(inner).result(40))
    assert outer.result(40) == [0, 1, 2]


def test_workers_that_come_later_take_from_the_lanes_in_use(queue, idle, gate, wait_until):
    idle(queue, 1)
    urgent = queue.options(lane="high")
    assert urgent.submit(abs, -1).result(10) == 1

    held, reached = gate("held"), gate("reached")
    first = queue.submit(lambda: reached.open() or held.wait())
    wait_until(reached.is_open, describe="the first worker is busy")
    queue.run(2)
    assert urgent.submit(abs, -2).result(10) == 2
    held.open()
    first.result(10)


def test_those_of_a_new_supervisor_too(new_queue, idle):
    with new_queue() as queue:
        assert queue.options(lane="high").submit(abs, -1).result(10) == 1
    again = new_queue()
    idle(again, 2)
    assert again.options(lane="high").submit(abs, -2).result(10) == 2
    assert again.submit(abs, -3).result(10) == 3


def test_after_lone_calls_no_worker_takes_two_long_chunks(queue, monkeypatch):
    monkeypatch.setattr("nbstreamq.client.submit.HURRY", 10.0)  # whatever else this machine does

    def work(seconds):
        begun = time.monotonic()
        time.sleep(seconds)
        return begun

    for _ in range(8):  # each worker learns that calls are short, and asks for two
        queue.submit(work, 0).result(10)
    begun = list(queue.map(work, [0.15] * 7))  # a worker gives back what waits for so long
    assert begun[2] < begun[-1], "given back, it was the last"
