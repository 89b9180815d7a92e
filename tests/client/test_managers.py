"""Objects of a `multiprocessing.Manager` of the notebook, used by tasks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def manager():
    with multiprocessing.get_context("spawn").Manager() as found:
        yield found


def test_tasks_share_the_objects_of_a_manager(manager, shared_queue):
    # Given a dict, a list, a lock, a queue and a value of a manager
    shared, seen, lock = manager.dict(total=0), manager.list(), manager.Lock()
    results, last = manager.Queue(), manager.Value("i", 0)

    def add(x):
        with lock:
            shared["total"] += x
        seen.append(x)
        results.put(x)
        last.value = x
        return shared

    # When tasks use them, as arguments and as what they capture
    job = shared_queue.map(add, range(20))
    returned = job.result(30)
    shared_queue.submit(lambda d: d.update(done=True), shared).result(20)
    # Then it is one object for all
    assert shared.copy() == {"total": 190, "done": True}
    assert sorted(seen) == list(range(20))
    assert results.qsize() == 20
    assert last.value in range(20)
    assert returned[0].copy() == shared.copy()


def test_the_key_is_in_no_environment(manager, shared_queue):
    key = multiprocessing.current_process().authkey.hex()

    def look():
        own = multiprocessing.current_process().authkey.hex()
        with Path("/proc/self/cmdline").open() as file:
            return own, own in file.read() or own in str(os.environ)

    assert shared_queue.submit(look).result(20) == (key, False)


def test_workers_that_another_process_started_are_refused(
    manager, make_queue, queue_name, server_url
):
    # Given a worker from a command line
    queue = make_queue(workers=0)
    command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "--queue", queue.name]
    worker = subprocess.Popen([*command, "-n", "1"], stderr=subprocess.DEVNULL)
    try:
        # When a task gets a proxy
        error = queue.submit(len, manager.list()).exception(30)
    finally:
        worker.terminate()
        worker.wait(20)
    # Then the error says who can use it
    assert isinstance(error, ConnectionError)
    assert "because they have its authkey" in str(error)
    assert multiprocessing.current_process().authkey.hex() not in str(error)
