"""Fixtures of the tests with real workers: queues, and gates that hold their tasks up.

A folder's conftest imports those it wants.
"""

import json
import os
import time
from pathlib import Path

import pytest

from nbstreamq import TaskQueue

_NODE = """
import json, sys
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from nbstreamq.worker.supervisor import Supervisor, SupervisorSettings

url, queue, n_workers, homes, timing = sys.argv[1:]
Supervisor(
    Store(open_client(url), queue, Signer("secret", queue)),
    url=url,
    secret="secret",
    n_workers=int(n_workers),
    homes=json.loads(homes),
    settings=SupervisorSettings(**json.loads(timing)),
).run()
"""


def node_command(url, queue, n_workers=1, homes=(), **timing):
    """Return arguments of a Python, with which it is a supervisor on its own, with this timing."""
    return ("-c", _NODE, url, queue, str(n_workers), json.dumps(homes), json.dumps(timing))


class Gate:
    """A file that a task waits for, or shows that it has come so far."""

    def __init__(self, path):
        self.path = str(path)

    def open(self):
        Path(self.path).touch()

    def is_open(self):
        return Path(self.path).exists()

    def wait(self, timeout=30):
        end = time.monotonic() + timeout
        while not self.is_open():
            if time.monotonic() > end:
                raise TimeoutError(f"nobody opened {self.path}")
            time.sleep(0.002)

    def first(self):
        """Open it; return whether nobody did before."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


@pytest.fixture
def gate(tmp_path):
    """``gate(name)``: the gate of that name; the same for test and tasks."""
    return lambda name="gate": Gate(tmp_path / name)


@pytest.fixture
def new_queue(server_url, queue_name):
    """``new_queue(**options)``: a TaskQueue, shut down after the test."""
    queues = []

    def make(url=None, **options):
        queues.append(TaskQueue(queue_name, url or server_url, **{"workers": 2, **options}))
        return queues[-1]

    yield make
    for queue in queues:
        queue.shutdown(cancel_futures=True)


@pytest.fixture
def queue(new_queue):
    """A queue with two workers."""
    return new_queue()


@pytest.fixture(scope="module")
def shared_queue(request, server_url, wait_until):
    """A queue with two workers for the tests of a file that leave it as it was."""
    with TaskQueue(f"{request.module.__name__}-{os.getpid()}", server_url, workers=2) as queue:
        queue.run(2)
        wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
        yield queue


@pytest.fixture(scope="module")
def shared_worker(request, server_url, wait_until):
    """A queue with one worker, for the tests of a file that leave it as it was."""
    with TaskQueue(f"{request.module.__name__}-one-{os.getpid()}", server_url, workers=1) as queue:
        queue.run(1)
        wait_until(lambda: len(queue.workers()) == 1, describe="a worker")
        yield queue


@pytest.fixture
def one_worker(new_queue):
    """A queue with one worker."""
    return new_queue(workers=1)
