"""`TaskQueue()` with nothing started: the server and the workers come by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import nbstreamq
from nbstreamq import TaskQueue
from nbstreamq.launch.server import ensure_server, stop_server
from nbstreamq.settings import Settings

REPOSITORY = Path(nbstreamq.__file__).parent.parent


@pytest.fixture
def embedded(short_folder, monkeypatch, wait_until):
    """Folders of an embedded server that is not running yet."""
    runtime, data = short_folder(), short_folder()
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(data))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")
    yield runtime
    stop_server(Settings.from_environment())


def server_of(queue: TaskQueue) -> psutil.Process:
    """The process that listens at the queue's socket."""
    path = queue.status().server.removeprefix("unix://").partition("?")[0]
    for process in psutil.process_iter():
        try:
            if any(c.laddr == path for c in process.net_connections("unix")) and (
                "server" in process.name()
            ):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody listens at {path}")


def test_comes_up_by_itself(embedded):
    with TaskQueue() as queue:
        assert queue.submit(abs, -1).result(20) == 1
        assert list(queue.map(lambda x: x + 1, range(10))) == list(range(1, 11))
        assert queue.status().server.startswith("unix://")
        assert len(queue.workers()) <= len(os.sched_getaffinity(0))


def test_secret_is_made_at_first_use(embedded, monkeypatch):
    monkeypatch.delenv("NBSTREAMQ_SECRET")
    with TaskQueue(workers=1) as queue:
        assert queue.submit(abs, -1).result(20) == 1
    file = Path(os.environ["NBSTREAMQ_DATA_DIR"]) / "secret"
    assert file.stat().st_mode & 0o777 == 0o600


def test_two_interpreters_at_once_share_one_server(embedded):
    script = """
import os
from nbstreamq import TaskQueue
with TaskQueue("shared", workers=1) as queue:
    assert queue.submit(abs, -1).result(20) == 1
    print(queue.status().server, queue.submit(os.getppid).result(20))
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=40)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len({text.split()[0] for text in said}) == 1


# A busy machine may need longer for the next server than calls wait without a word.
@pytest.mark.filterwarnings("default:waiting for:RuntimeWarning")
def test_calls_survive_a_killed_server(embedded, gate, wait_until):
    with TaskQueue("durable", workers=1) as queue:
        held = queue.submit(gate.hold, "held")
        waiting = [queue.submit(abs, -i) for i in range(5)]
        job = queue.map(lambda x: x + 1, range(100))
        wait_until(lambda: gate.n_reached == 1, describe="the first task runs")
        server = server_of(queue)
        # The log of what was written reaches the disk within a second; here it is the kernel's.
        os.kill(server.pid, signal.SIGKILL)
        late = queue.submit(abs, -7)
        gate.open()
        assert held.result(30) == "held"
        assert [f.result(30) for f in waiting] == list(range(5))
        assert job.result(30) == list(range(1, 101))
        assert late.result(30) == 7
        assert server_of(queue).pid != server.pid
        assert gate.n_reached == 1


def test_a_server_that_ends_just_after_it_was_found_is_started_again(embedded, monkeypatch):
    def find_and_end(settings):
        monkeypatch.setattr("nbstreamq.client.connect.ensure_server", ensure_server)
        url = ensure_server(settings)
        assert stop_server(settings)
        return url

    monkeypatch.setattr("nbstreamq.client.connect.ensure_server", find_and_end)
    with TaskQueue(workers=1) as queue:
        assert queue.submit(abs, -1).result(20) == 1


def test_the_queue_outlives_its_client(embedded):
    with TaskQueue("later", workers=1) as first:
        assert first.map(abs, [-1, -2, -3], name="later").result(20) == [1, 2, 3]
    stop_server(Settings.from_environment())
    with TaskQueue("later", workers=0) as second:
        assert second.attach("later").result(20) == [1, 2, 3]


def test_interpreter_that_is_killed_leaves_nothing(embedded, tmp_path, wait_until):
    script = """
import sys
from nbstreamq import TaskQueue
queue = TaskQueue("killed", workers=2)
queue.submit(int).result(20)
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    with TaskQueue("killed", workers=0) as other:
        wait_until(lambda: len(other.workers()) == 2, describe="two workers")
        workers = [psutil.Process(w.pid) for w in other.workers()]
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    wait_until(lambda: not any(w.is_running() for w in workers), describe="no workers are left")


def test_processes_that_are_forked_after_shutdown_work(embedded):
    program = (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from nbstreamq import TaskQueue\n"
        "queue = TaskQueue()\n"
        "queue.shutdown()\n"
        "with ProcessPoolExecutor(2, get_context('fork')) as pool:\n"
        "    print(sum(pool.map(abs, range(100))))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.check_output(command, cwd=REPOSITORY, text=True, timeout=40) == "4950\n"
