"""The server is out of memory for a while: calls are refused clearly, what runs is not lost."""

import contextlib
import itertools
import time
from collections import Counter

import pytest

from nbstreamq import NbstreamqError, ServerRefused
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.keys import Keys
from tests.counting import Runs, check_once
from tests.crash.conftest import TIMING
from tests.real_workers import node_command


@pytest.fixture
def admin(start_server):
    """A client of a server whose memory may be taken away."""
    server = start_server("--maxmemory-policy", "noeviction")
    with open_client(server.url) as client:
        client.server_url = server.url
        yield client


@contextlib.contextmanager
def full(admin, *last):
    """Leave the server no memory, right after some last commands."""
    with admin.pipeline() as both:
        for command in last:
            both.execute_command(*command)
        both.config_set("maxmemory", "1").execute()
    try:
        yield
    finally:
        admin.config_set("maxmemory", "0")


def test_a_call_fails_clearly_and_the_next_works(admin, new_queue):
    queue = new_queue(admin.server_url)
    assert queue.submit(abs, -1).result(20) == 1

    with full(admin):
        refused = [queue.submit(abs, -1), *queue.map(abs, range(10), chunksize=3)[:]]
        for future in refused:
            with pytest.raises(ServerRefused, match="maxmemory"):
                future.result(20)

    assert queue.submit(abs, -2).result(20) == 2
    assert queue.map(abs, range(10)).result(20) == list(range(10))


def test_a_function_that_was_refused_is_sent_again(admin, new_queue):
    queue = new_queue(admin.server_url)
    assert queue.submit(abs, -1).result(20) == 1

    def double(x):
        return 2 * x

    with full(admin), pytest.raises(ServerRefused, match="maxmemory"):
        queue.submit(double, 1).result(20)

    assert queue.submit(double, 2).result(20) == 4


def test_a_named_job_that_fails_here_goes_on_there(admin, new_queue, gate, tmp_path, wait_until):
    queue = new_queue(admin.server_url)
    go, runs = gate(), Runs(tmp_path / "runs")

    def work(i):
        runs.note(i)
        go.wait()
        return i

    job = queue.map(work, range(6), name="j", chunksize=1)
    wait_until(lambda: len(runs.counts) == 2, describe="both at work")
    with full(admin):
        # Its function can't be sent: all that is open fails.
        queue.submit(lambda: None).exception(20)
        assert len(job.errors) == 6
    again = queue.map(work, range(6), name="j", chunksize=1)
    go.open()

    assert again.result(20) == list(range(6))
    check_once(again, list(range(6)))
    assert runs.counts == Counter(range(6))


def test_so_does_one_without_an_end(admin, new_queue, gate, wait_until):
    """What failed only here must not be run again there: that looked like another client's work."""
    queue, go = new_queue(admin.server_url), gate()

    def inputs():
        yield from (1, 0, 2)
        raise KeyboardInterrupt

    def work(i):
        if i == 2:
            go.wait()
        return 6 // i

    with pytest.raises(KeyboardInterrupt):
        queue.map(work, inputs(), name="j", chunksize=1)
    job = queue.attach("j")
    wait_until(lambda: job[0].done() and job[1].done(), describe="the first two")
    with full(admin):
        queue.submit(lambda: None).exception(20)
    assert sorted(job.errors) == [1, 2]

    again = queue.map(work, [1, 0, 2, 3], name="j", chunksize=1)
    go.open()
    again.wait(20)
    assert list(again.errors) == [1]
    assert [again[i].result(0) for i in (0, 2, 3)] == [6, 3, 2]


def test_what_failed_only_here_is_not_run_again(admin, new_queue, gate):
    queue, go = new_queue(admin.server_url), gate()
    job = queue.map(lambda i: go.wait() or i, range(2), name="j", chunksize=1)
    with full(admin):
        queue.submit(lambda: None).exception(20)
    assert len(job.errors) == 2

    with pytest.raises(NbstreamqError, match=r"has failed here, but not at the server"):
        job.retry_failed()

    go.open()
    assert queue.attach("j").result(20) == [0, 1]


def test_what_is_deleted_makes_room(admin, new_queue):
    queue = new_queue(admin.server_url)
    job = queue.map(abs, range(5), name="j")
    job.wait(20)

    with full(admin), contextlib.suppress(ServerRefused):
        job.delete()

    assert queue.jobs() == []


def test_what_runs_meanwhile_runs_once_and_is_not_lost(
    admin, new_queue, gate, tmp_path, wait_until
):
    queue = new_queue(admin.server_url)
    go = gate()

    def work(i):
        print("begun", i)
        with (tmp_path / f"run-{i}").open("a") as file:
            file.write("x")
        if i < 2:
            go.wait()
        print("done", i)
        return i

    job = queue.map(work, range(40), chunksize=1)
    wait_until(lambda: len(list(tmp_path.glob("run-*"))) >= 2, describe="both at work")
    workers = {worker.pid for worker in queue.workers()}
    with full(admin):
        # Long enough for signs of life, output and news to be refused.
        time.sleep(1.2)
        go.open()
        wait_until(lambda: len(list(tmp_path.glob("run-*"))) == 40, describe="the others")

    job.wait(20)
    check_once(job, list(range(40)))
    assert {(tmp_path / f"run-{i}").read_text() for i in range(40)} == {"x"}
    assert {worker.pid for worker in queue.workers()} == workers
    later = gate("later")
    talking = queue.map(lambda i: print("and on it goes") or later.wait(), range(2), chunksize=1)
    for future in talking[:]:
        wait_until(lambda f=future: f.logs == "and on it goes\n", describe="output of a task")
    later.open()


def test_retries_and_slices_meanwhile(admin, new_queue, gate, wait_until):
    queue = new_queue(admin.server_url)
    begun, go = gate("begun"), gate("go")
    queue.submit(abs, -1).result(20)

    def work(i, tried):
        begun.open()
        go.wait()
        time.sleep(0.02)
        if tried.first():
            raise ValueError("once more")
        return i

    gates = [gate(str(i)) for i in range(30)]
    job = queue.options(retries=1, backoff=0.05).map(work, range(30), gates, chunksize=30)
    begun.wait()
    with full(admin):
        go.open()
        time.sleep(1)

    job.wait(30)
    check_once(job, list(range(30)))


def test_a_call_that_a_worker_of_another_home_took_is_not_lost(
    admin, new_queue, queue_name, start, wait_until
):
    """The worker can't tell where it would put the call, and then its machine is gone."""
    queue = new_queue(admin.server_url, workers=0)
    keys = Keys(queue_name)
    lane = keys.lane("default")
    call = queue.submit(abs, -1)
    wait_until(lambda: admin.xlen(lane), describe="the call")
    ((entry_id, fields),) = admin.xrange(lane)
    admin.xdel(lane, entry_id)
    node = start(*node_command(admin.server_url, queue_name, homes=["elsewhere"], **TIMING))
    wait_until(lambda: admin.hlen(keys.workers) == 1, describe="the worker")

    def n_refused():
        return admin.info("commandstats").get("cmdstat_hset", {}).get("rejected_calls", 0)

    with full(admin, ("XADD", lane, "*", *itertools.chain(*fields.items()))):
        wait_until(lambda: n_refused() >= 2, describe="what it tells refused twice")
        for process in node.family():
            process.kill()

    start(*node_command(admin.server_url, queue_name, **TIMING))
    assert call.result(20) == 1
