"""Queues whose workers are killed, and processes around them: clients, supervisors.

Their tests are marked ``crash``.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.proxy import proxy
from tests.real_workers import gate, new_queue, node_command, one_worker, queue, shared_queue

__all__ = ["gate", "new_queue", "one_worker", "proxy", "queue", "shared_queue"]

ROOT = Path(__file__).parents[2]

#: Of a supervisor that is soon known to be silent.
TIMING = {"heartbeat": 0.2, "silence": 1.0, "hearing": 2.0}


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.crash)


class Process:
    """A Python process of our own, in a process group of its own."""

    def __init__(self, *arguments, env=None):
        self._process = subprocess.Popen(
            (sys.executable, *arguments),
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def line(self):
        """The next line that it prints."""
        return self._process.stdout.readline().strip()

    def kill(self, number=signal.SIGKILL):
        self._process.send_signal(number)

    def interrupt(self):
        """What Ctrl-C in its terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self):
        """Its exit status, and what it printed besides."""
        rest = self._process.stdout.read()  # not communicate(): lines may be read ahead
        return self._process.wait(30), rest

    def family(self):
        """All its descendants, and itself: as `psutil` knows them, however they are killed."""
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def close(self):
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def start():
    """``start(*arguments, env=)``: a Python with these arguments, killed after the test."""
    processes = []

    def start(*arguments, env=None):
        processes.append(Process(*arguments, env=env))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture
def start_node(start, server_url, queue_name, store, wait_until):
    """``start_node(n_workers, url, store)``: a supervisor, once its workers have joined.

    Elsewhere than on the session's server with the address and a store of that.
    """

    def start_node(n_workers=1, url=None, store=store):
        before = set(store.workers())
        node = start(*node_command(url or server_url, queue_name, n_workers, **TIMING))
        wait_until(
            lambda: len(set(store.workers()) - before) >= n_workers, describe="the node's workers"
        )
        return node

    return start_node


@pytest.fixture
def wait_for_end(wait_until):
    """``wait_for_end(processes)``: until all are gone, zombies too.

    Not those whose parents have gone: init looks after them, when it pleases.
    """

    def wait(processes):
        parents = {os.getpid(), *(p.pid for p in processes)}

        def is_there(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                return process.status() != psutil.STATUS_ZOMBIE or process.ppid() in parents
            return False

        def living():
            return [p for p in processes if p.is_running() and is_there(p)]

        wait_until(lambda: not living(), describe=f"the end of {processes}")

    return wait
