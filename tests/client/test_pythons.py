"""Workers and clients of several minor versions of Python on one queue.

The other Python is this one, which believes that it is Python 3.99: processes of their own, with
the real command. `make test-packages` does the same with a real Python 3.12.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbstreamq import TaskQueue
from nbstreamq.launch.launcher import Setting

ROOT = Path(__file__).parents[2]
PRETEND = "import sys, nbstreamq.home as home; home.PYTHON = '3.99'\n"
WORKER = PRETEND + "from nbstreamq.cli import main; main(sys.argv[1:])"
CLIENT = (
    PRETEND
    + """
import os
from nbstreamq import TaskQueue

with TaskQueue(sys.argv[2], sys.argv[1], workers=0) as queue:
    pids = {w.pid for w in queue.workers() if w.python == "3.99"}
    assert pids and set(queue.map(lambda _: os.getpid(), range(40))) <= pids
    assert {queue.submit(os.getpid).result()} <= pids
print("done")
"""
)


@contextmanager
def starting(url, name):
    """Give a function that starts a worker for a queue, and end what it has started."""
    started = []

    def start(*, is_other):
        how = ["-c", WORKER] if is_other else ["-m", "nbstreamq"]
        command = [sys.executable, *how, "worker", url, "--queue", name, "-n", "1"]
        command += ["--lane", "default", "--lane", "gpu"]
        started.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL))

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(20)


@pytest.fixture(scope="module")
def mixed(server_url):
    """The name of a queue with a worker of each Python."""
    name = f"pythons-{os.getpid()}"
    with starting(server_url, name) as start:
        start(is_other=False)
        start(is_other=True)
        yield name


@pytest.fixture
def queue(mixed, server_url, wait_until):
    """A queue with a worker of each Python, and none of its own."""
    with TaskQueue(mixed, server_url, workers=0) as queue:
        wait_until(lambda: len(queue.workers()) == 2, timeout=30, describe="two workers")
        yield queue


def ours(queue):
    """Return the process ids of the workers that have this Python."""
    return {worker.pid for worker in queue.workers() if worker.python != "3.99"}


@pytest.mark.parametrize("lane", ["default", "gpu"])
def test_calls_run_on_workers_that_have_the_client_s_python(queue, lane):
    there = queue.options(lane=lane)
    assert set(there.map(lambda _: os.getpid(), range(40))) == ours(queue)
    assert {there.submit(os.getpid).result() for _ in range(20)} == ours(queue)


def test_retries_and_nested_calls_stay_there(queue, tmp_path):
    path = tmp_path / "tried"

    def fails_once():
        if not path.exists():
            path.touch()
            raise ValueError
        return TaskQueue().submit(os.getpid).result()

    assert queue.options(retries=1).submit(fails_once).result() in ours(queue)


def test_another_client_gets_the_other_workers(queue, mixed, server_url):
    command = [sys.executable, "-c", CLIENT, server_url, mixed]
    assert subprocess.check_output(command, cwd=ROOT, text=True, timeout=50) == "done\n"


def test_everywhere_is_everywhere_where_it_can_run(queue):
    assert {*queue.everywhere(os.getpid)} == ours(queue)


@pytest.fixture
def start(server_url, queue_name):
    """``start(is_other=True)`` starts a worker of this test."""
    with starting(server_url, queue_name) as start:
        yield start


def test_it_is_said_if_there_are_only_others(queue_name, server_url, start, wait_until):
    start(is_other=True)
    minor = "{}.{}".format(*sys.version_info)
    text = rf"only workers of Python 3.99.*`python{minor} -m nbstreamq worker"
    with TaskQueue(queue_name, server_url, workers=0) as queue:
        wait_until(queue.workers, timeout=30, describe="the worker")
        future = queue.submit(os.getpid)
        with pytest.warns(RuntimeWarning, match=text), pytest.raises(TimeoutError):
            future.result(timeout=4)
        start(is_other=False)
        assert future.result(timeout=30) in ours(queue)


def test_workers_that_run_no_call_of_this_client_are_asked_for_with_a_warning():
    with pytest.warns(
        RuntimeWarning, match=r"calls of clients with Python 3\.99, and none of this"
    ):
        Setting(python="/opt/bin/python3.99")
