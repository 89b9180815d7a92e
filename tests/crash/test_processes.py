"""Nothing stays behind, however clients and supervisors end: no orphans and no zombies."""

import os
import signal
import time

import psutil
import pytest

CLIENT = """
import os, sys, time
from nbstreamq import TaskQueue

name, url, what = sys.argv[1:]
queue = TaskQueue(name, url)
queue.run(2)
print(queue.submit(os.getppid).result(), flush=True)
if what == "busy":
    job = queue.map(time.sleep, [60] * 10, chunksize=1)
    while not any(f.running() for f in job[:]):
        time.sleep(0.01)
    print("running", flush=True)
if what in ("stay", "busy"):
    time.sleep(60)
if what == "raise":
    raise ValueError("the end")
"""


@pytest.fixture
def start_client(start, queue_name, server_url):
    """``start_client(what)``: a process with a queue; its supervisor and the workers of that."""

    def start_client(what="stay"):
        client = start("-W", "error", "-c", CLIENT, queue_name, server_url, what)
        line = client.line()
        if not line.isdigit():
            pytest.fail(line + client.wait()[1])
        try:
            supervisor = psutil.Process(int(line))
            return client, [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return client, []

    return start_client


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_client_leaves_nothing(start_client, wait_for_end, number):
    client, family = start_client()
    assert len(family) >= 2

    client.kill(number)

    wait_for_end(family)


def test_a_client_killed_in_the_midst_of_work_leaves_nothing(start_client, wait_for_end, store):
    client, family = start_client("busy")
    assert client.line() == "running"

    client.kill()

    wait_for_end(family)
    assert store.workers() == {}


def test_what_a_killed_client_has_submitted_is_not_run_by_others(
    start_client, wait_for_end, new_queue
):
    client, family = start_client("busy")
    assert client.line() == "running"
    client.kill()
    wait_for_end(family)

    queue = new_queue(workers=1)

    # Its ten tasks of a minute are dropped.
    assert queue.submit(abs, -1).result(20) == 1


@pytest.mark.parametrize(("what", "status"), [("end", 0), ("raise", 1)])
def test_a_client_that_ends_without_shutdown_leaves_nothing(
    start_client, wait_for_end, what, status
):
    client, family = start_client(what)

    code, output = client.wait()

    assert code == status
    assert (output == "") == (status == 0)
    wait_for_end(family)


def test_a_second_client_keeps_its_workers(start_client, wait_for_end, new_queue):
    client, family = start_client()
    queue = new_queue(workers=2)
    own = queue.submit(os.getppid).result(20)

    client.kill()
    client.wait()
    wait_for_end(family)

    assert own != family[0].pid
    assert queue.submit(os.getppid).result(20) == own


def test_clients_that_start_at_once_have_a_supervisor_each(start, queue_name, server_url):
    clients = [start("-c", CLIENT, queue_name, server_url, "stay") for _ in range(3)]

    assert len({client.line() for client in clients}) == 3
    for client in clients:
        client.kill()


def test_workers_die_with_their_supervisor(start_client, wait_for_end):
    _, family = start_client("busy")

    family[0].kill()

    wait_for_end(family)


def test_the_client_starts_the_supervisor_again(queue, gate, tmp_path):
    again, begun = gate("again"), gate("begun")

    def work(i):
        if i == 3 and again.first():
            begun.open()
            time.sleep(60)
        return i, os.getppid()

    job = queue.map(work, range(10), chunksize=1)
    begun.wait()
    supervisor = psutil.Process(queue.workers()[0].pid).parent()
    supervisor.kill()

    results = job.result(40)
    assert [i for i, _ in results] == list(range(10))
    assert results[3][1] != supervisor.pid


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def start_cli(start, queue_name, server_url, store, wait_until):
    """``start_cli(*options)``: ``nbstreamq worker`` with two workers, and all its processes."""

    def start_cli(*options):
        command = ("-m", "nbstreamq", "worker", server_url, "-n", "2", "--queue", queue_name)
        process = start(*command, *options)
        wait_until(lambda: len(store.workers()) == 2, describe="two workers")
        return process, process.family()

    return start_cli


def test_the_command_serves_a_queue(start_cli, new_queue):
    _, family = start_cli()
    queue = new_queue(workers=0)

    parents = queue.map(lambda _: os.getppid(), range(10)).result(20)

    assert set(parents) == {family[0].pid}


def test_ctrl_c_ends_it(start_cli, wait_for_end, store, queue_name, server_url):
    process, family = start_cli()

    process.interrupt()

    status, said = process.wait()
    assert status == 0
    banner, *lines = said.splitlines()
    assert f"starting 2 workers for queue {queue_name!r} on {server_url}; process" in banner
    assert [line.partition(" INFO: ")[2].split()[-2:] for line in lines[-2:]] == 2 * [
        ["has", "ended"]
    ]
    assert "told to end (SIGINT)" in lines[-3]
    wait_for_end(family)
    assert store.workers() == {}


def test_ctrl_c_ends_it_while_tasks_run_and_others_run_them_again(
    start_cli, wait_for_end, new_queue, gate
):
    process, family = start_cli()
    queue = new_queue(workers=0)
    begun, again = gate("begun"), gate("again")

    def work():
        if again.first():
            begun.open()
            time.sleep(60)
        return os.getppid()

    future = queue.submit(work)
    begun.wait()
    process.interrupt()
    assert process.wait()[0] == 0
    wait_for_end(family)

    queue.run(1)

    assert future.result(20) != family[0].pid


def test_a_killed_command_leaves_nothing(start_cli, wait_for_end):
    process, family = start_cli()

    process.kill()
    process.wait()

    wait_for_end(family)


def test_a_tagged_lane_is_served_by_who_offers_it(start_cli, new_queue):
    _, family = start_cli("--lane", "gpu", "--lane", "default")
    queue = new_queue(workers=0)

    assert queue.options(lane="gpu").submit(os.getppid).result(20) == family[0].pid
    assert queue.submit(os.getppid).result(20) == family[0].pid
