"""A supervisor that is killed comes back, however its client waits; a stop is no death."""

import asyncio
import concurrent.futures
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from nbstreamq import TaskQueue
from nbstreamq.notebook.view import JobView

HANGS = 40


def supervisor_of(queue):
    return psutil.Process(queue.submit(os.getppid).result(HANGS))


def kill_supervisor_of(queue):
    """Kill it, and return when none of its workers can take anything any more."""
    supervisor = supervisor_of(queue)
    family = supervisor.children()
    supervisor.kill()
    end = time.monotonic() + HANGS
    while any(map(psutil.Process.is_running, family)) and time.monotonic() < end:
        time.sleep(0.005)
    return supervisor


def why_stalled(job):
    return job._session.survey(job._table)[1]


def poll(futures):
    end = time.monotonic() + HANGS
    while not all(f.done() for f in futures) and time.monotonic() < end:
        time.sleep(0.01)


def count_callbacks(futures):
    called, left = threading.Event(), list(futures)
    for future in futures:
        future.add_done_callback(lambda f: (left.remove(f), left or called.set()))
    called.wait(HANGS)


async def gather(futures):
    await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, futures)), HANGS)


WAITS = {
    "wait": lambda futures: concurrent.futures.wait(futures, HANGS),
    "as_completed": lambda futures: list(concurrent.futures.as_completed(futures, HANGS)),
    "await": lambda futures: asyncio.run(gather(futures)),
    "callbacks": count_callbacks,
    "polling": poll,
    "result": lambda futures: [f.result(HANGS) for f in futures],
}


@pytest.mark.parametrize("how", WAITS)
def test_it_comes_back_however_one_waits(queue, how):
    gated, supervisor = queue.submit(time.sleep, 0.5), supervisor_of(queue)
    futures = [gated, *(queue.submit(time.sleep, 0.02) for _ in range(40))]
    supervisor.kill()
    WAITS[how](futures)
    assert all(f.done() for f in futures)
    assert supervisor_of(queue) != supervisor


def test_it_comes_back_though_nobody_waits(queue, wait_until):
    supervisor = kill_supervisor_of(queue)
    wait_until(
        lambda: {psutil.Process(w.pid).ppid() for w in _living(queue)} - {supervisor.pid},
        timeout=HANGS,
        describe="new workers",
    )


def _living(queue):
    return [worker for worker in queue.workers() if psutil.pid_exists(worker.pid)]


def test_it_comes_back_for_each_session_of_its_kernel(queue, server_url):
    with TaskQueue(queue.name, server_url, workers=2) as other:
        assert supervisor_of(other) == supervisor_of(queue)
        supervisor = kill_supervisor_of(other)
        again = supervisor_of(queue)
        assert supervisor_of(other) == again != supervisor


def test_one_that_dies_often_is_left_alone_for_a_minute_and_the_reason_is_told(
    queue, monkeypatch, wait_until
):
    monkeypatch.setattr("nbstreamq.launch.local.RESTART_SPAN", 25.0)  # a busy machine starts slowly
    for _ in range(6):
        kill_supervisor_of(queue)
    job = queue.map(abs, range(3))
    view = JobView(job)
    wait_until(lambda: "died 6 times" in str(view.picture()), describe="the reason")
    with pytest.warns(RuntimeWarning, match=r"waiting for abs: the supervisor .* died 6 times"):
        assert job.result(HANGS) == [0, 1, 2]
    assert why_stalled(job) == ""


def test_run_starts_one_that_was_left_alone(queue, wait_until):
    for _ in range(6):
        kill_supervisor_of(queue)
    wait_until(lambda: queue._session.workers.local.trouble, describe="the brake")
    queue.run(1)
    assert queue.submit(abs, -1).result(HANGS) == 1


@pytest.fixture
def stopped(queue):
    """A supervisor that was stopped by a signal, and goes on after the test."""
    supervisor = supervisor_of(queue)
    supervisor.suspend()
    yield supervisor
    supervisor.resume()


def test_a_client_of_one_that_was_stopped_is_not_dead(queue, stopped, gate, wait_until):
    future = queue.submit(lambda: gate().wait())
    queue.run(3)
    assert "has not answered" in why_stalled(queue.map(abs, [1]))
    stopped.resume()
    wait_until(lambda: not queue._session.workers.local.trouble, describe="its late answer")
    gate().open()
    assert future.result(HANGS) is None
    assert supervisor_of(queue) == stopped
    queue.run(2)
    assert queue.submit(abs, -1).result(HANGS) == 1


def test_a_client_whose_connection_was_lost_is_not_dead(queue, gate):
    supervisor = supervisor_of(queue)
    future = queue.submit(lambda: gate().wait())
    for connection in _connections_to(queue):
        connection.shutdown(socket.SHUT_RDWR)
    queue.run(3)
    gate().open()
    assert future.result(HANGS) is None
    assert supervisor_of(queue) == supervisor


def _connections_to(queue):
    """Return our ends of the connections to the supervisor of a queue."""
    path = os.fspath(queue._session.workers.local.log.with_suffix(".sock"))
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.exists() or not entry.is_socket():
            continue
        connection = socket.socket(fileno=os.dup(int(entry.name)))
        with connection:
            if connection.family == socket.AF_UNIX and _leads_to(connection, path):
                yield connection


def _leads_to(connection, path):
    try:
        return connection.getpeername() == path
    except OSError:
        return False


def test_a_client_that_was_stopped_is_not_dead(start, queue_name, server_url, wait_until):
    client = start(
        "-c",
        "import sys, time; from nbstreamq import TaskQueue\n"
        "queue = TaskQueue(*sys.argv[1:], workers=1)\n"
        "futures = [queue.submit(time.sleep, 0.5) for _ in range(6)]\n"
        "futures[0].result(20)\nprint('begun', flush=True)\n"
        "for f in futures: f.result(20)\nprint('done', flush=True)",
        queue_name,
        server_url,
    )
    assert client.line() == "begun"
    client.kill(signal.SIGSTOP)
    time.sleep(1.5)  # as long as others would wait for a sign of life
    client.kill(signal.SIGCONT)
    assert client.line() == "done"


@pytest.mark.parametrize("wrong", [2.0, "3", True, -1, None])
def test_a_bad_request_to_the_supervisor_cancels_nothing(queue, gate, wrong):
    future = queue.submit(lambda: gate().wait())
    path = os.fspath(queue._session.workers.local.log.with_suffix(".sock"))
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(path)
        line = f'{{"session": "{queue._session.id}", "scale": {wrong!r}}}\n'
        visitor.sendall(line.replace("'", '"').replace("True", "true").encode())
        visitor.shutdown(socket.SHUT_WR)
        visitor.settimeout(HANGS)
        while visitor.recv(100):
            pass
    gate().open()
    assert future.result(HANGS) is None
    assert queue.submit(abs, -1).result(HANGS) == 1
