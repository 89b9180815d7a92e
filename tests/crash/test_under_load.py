"""Supervisors and clients end, of all machines or of one, while others work on."""

import signal
import threading
import time

import pytest

from nbstreamq.wire.addresses import open_client
from tests.counting import check_nothing_left, check_once
from tests.real_workers import node_command

MAPPER = """
import sys, time
from nbstreamq import TaskQueue

name, url = sys.argv[1:]
queue = TaskQueue(name, url, workers=2)
job = queue.map(lambda i: time.sleep(0.02) or i, range(3000), chunksize=50)
while sum(f.done() for f in job[:100]) < 10:
    time.sleep(0.01)
print("running", flush=True)
time.sleep(60)
"""


def slowly(i):
    time.sleep(0.005)
    return i


def n_done(job):
    return sum(f.done() for f in job[:])


def test_another_supervisor_takes_over(
    start, new_queue, queue_name, server_url, store, wait_until, wait_for_end
):
    nodes = [start(*node_command(server_url, queue_name, n_workers=2)) for _ in range(2)]
    wait_until(lambda: len(store.workers()) == 4, describe="four workers")
    queue = new_queue(workers=0)
    job = queue.map(slowly, range(400), chunksize=20)
    wait_until(lambda: n_done(job) > 40, describe="some results")
    family = nodes[0].family()

    nodes[0].kill()

    wait_for_end(family[1:])
    job.wait(30)
    check_once(job, list(range(400)))
    check_nothing_left(store)
    wait_until(lambda: len(store.workers()) == 2, describe="the end of the others")


def test_all_workers_gone_and_new_ones_come(new_queue, start_node, store, wait_until):
    queue = new_queue(workers=0)
    job = queue.map(slowly, range(300), chunksize=10)
    for n in (1, 2, 3):
        node = start_node(2)
        wait_until(lambda m=n: n_done(job) > 50 * m, describe="some results")
        node.kill()
        node.wait()
        assert not job.done()

    start_node()

    job.wait(30)
    check_once(job, list(range(300)))
    check_nothing_left(store)


@pytest.mark.parametrize("at_rest", [False, True], ids=["under load", "server away"])
def test_a_client_killed_in_the_midst_of_its_map(
    start, start_server, new_queue, queue_name, server_url, wait_until, at_rest
):
    """What it has submitted is dropped, and the other client's map goes on."""
    server = start_server("--appendonly", "yes")
    queue = new_queue(server.url)
    client = start("-c", MAPPER, queue_name, server.url)
    assert client.line() == "running"
    job = queue.map(slowly, range(100), chunksize=10)

    if at_rest:
        server.stop()
    client.kill()
    client.wait()
    if at_rest:
        time.sleep(0.3)
        server.start()

    begun = time.monotonic()
    job.wait(40)
    check_once(job, list(range(100)))
    assert time.monotonic() < begun + 20, "3000 items of the other would take half a minute"
    wait_until(lambda: all(v.waiting + v.running == 0 for v in queue.status().lanes), 20)
    queue.shutdown()
    with open_client(server.url) as admin:
        lasting = {k.decode().rpartition("}:")[2] for k in admin.scan_iter() if admin.ttl(k) == -1}
    assert {key.partition(":")[0] for key in lasting} <= {"meta", "lane", "lanes"}


def test_two_clients_on_one_queue(start_node, new_queue, store):
    """Each gets what is its own."""
    start_node(2)
    queues = [new_queue(workers=0) for _ in range(2)]
    jobs = {}

    def use(k):
        jobs[k] = [
            queues[k].map(lambda i, k=k: (k, slowly(i)), range(50), chunksize=3) for _ in range(3)
        ]
        for job in jobs[k]:
            job.wait(40)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        for job in jobs[k]:
            check_once(job, [(k, i) for i in range(50)])
    check_nothing_left(store)


def interrupted(act, seconds):
    """Press Ctrl-C so many seconds after `act` begins; return whether it was noticed."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            act()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


@pytest.fixture
def ctrl_c_by_alarm():
    """An alarm does what Ctrl-C does, but at a moment of our choice."""
    usual = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, usual)


# Python itself swallows what is raised in a finalizer, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["submit", "map", "submits"])
def test_interrupted_at_many_moments(new_queue, store, ctrl_c_by_alarm, what):
    queue = new_queue()
    assert queue.submit(abs, -1).result(20) == 1
    act = {
        "submit": lambda: queue.submit(abs, -1),
        "map": lambda: queue.map(abs, range(40), chunksize=4),
        "submits": lambda: [queue.submit(abs, -1) for _ in range(8)],
    }[what]
    span, n_noticed = 0.001, 0
    for i in range(4000):
        if i >= 400 and n_noticed > 50:  # a busy machine needs more tries to be hit so often
            break
        begun = time.perf_counter()
        if interrupted(act, max(1e-6, span * (i % 40) / 40)):
            n_noticed += 1
        else:
            span = 1.5 * (time.perf_counter() - begun)

    assert n_noticed > 50
    assert queue.submit(abs, -2).result(20) == 2
    assert queue.map(abs, range(100)).result(20) == list(range(100))
    closing = threading.Thread(target=queue.shutdown, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive(), "what was interrupted is waited for in vain"
    check_nothing_left(store)
