"""What the exit of an interpreter waits for, and what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nbstreamq
from nbstreamq import TaskQueue

REPOSITORY = Path(nbstreamq.__file__).parent.parent
#: Seconds after which a script hangs.
HANGS = 60

BEGIN = """
import os, sys, threading, time
from pathlib import Path
from nbstreamq import TaskQueue

name, url, folder = sys.argv[1:4]

def write(x):
    while not Path(folder, "open").exists():
        time.sleep(0.002)
    Path(folder, f"wrote-{x}").touch()

"""


class Script:
    """A script that was started, and the folder in which its tasks write."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self._folder = folder

    def hear(self, pattern: str) -> str:
        """Return the line of standard error that `pattern` is found in, once it is there."""
        assert self.process.stderr is not None
        heard = []
        for line in self.process.stderr:
            heard.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"it never said {pattern!r}, but:\n{''.join(heard)}")

    def open_gate(self) -> None:
        (self._folder / "open").touch()

    def end(self, code: int = 0) -> str:
        """Return what else it said, once it has ended with this exit status."""
        _, errors = self.process.communicate(timeout=HANGS)
        assert self.process.returncode == code, errors
        return errors

    @property
    def written(self) -> set[str]:
        return {file.name.partition("-")[2] for file in self._folder.glob("wrote-*")}


@pytest.fixture
def start(tmp_path: Path, queue_name: str, server_url: str) -> Iterator[Callable[..., Script]]:
    """``start(source, *arguments, how="-m")`` starts a script, which is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *args: str, how: str = "script", url: str = server_url) -> Script:
        source = BEGIN + source
        (tmp_path / "program.py").write_text(source)
        program = {"script": ["program.py"], "-c": ["-c", source], "-m": ["-m", "program"]}[how]
        process = subprocess.Popen(
            [sys.executable, *program, queue_name, url, str(tmp_path), *args],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return Script(process, tmp_path)

    yield start
    for process in started:
        process.kill()
        process.communicate()


SUBMIT = """
queue = TaskQueue(name, url, workers=2)
for x in range(10):
    queue.submit(write, x)
"""
ENDS = {
    "the last line": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an error": ("1 / 0", 1),
    "Ctrl-C that was caught": (
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass",
        0,
    ),
}


@pytest.mark.parametrize("how", ["script", "-c", "-m"])
@pytest.mark.parametrize("end", ENDS)
def test_open_calls_are_waited_for(start, end, how):
    source, code = ENDS[end]
    script = start("import signal" + SUBMIT + source, how=how)
    assert "10 open calls" in script.hear("waiting")
    script.open_gate()
    script.end(code)
    assert script.written == set(map(str, range(10)))


def test_a_script_without_open_calls_says_nothing(start):
    script = start("queue = TaskQueue(name, url, workers=1)\nqueue.submit(abs, -1).result()")
    assert script.end() == ""


def test_ctrl_c_that_ends_the_script_drops_them(start, make_queue):
    script = start(SUBMIT + "raise KeyboardInterrupt")
    assert "10 open calls" in script.hear("dropped")
    script.end(-signal.SIGINT)
    script.open_gate()
    assert make_queue().submit(abs, -1).result(20) == 1  # behind all that was open
    assert script.written <= {"0", "1"}  # of those that ran one may have been over already


def test_ctrl_c_in_the_wait_drops_them(start):
    script = start(SUBMIT)
    script.hear("waiting")
    script.process.send_signal(signal.SIGINT)
    assert "10 open calls" in script.hear("dropped")
    script.end()


def test_of_two_queues_and_of_a_map(start):
    script = start(
        "queues = [TaskQueue(name + end, url, workers=1) for end in 'ab']\n"
        "queues[0].map(write, range(5))\nqueues[1].submit(write, 5)\nqueues[1].shutdown(wait=False)"
    )
    said = {script.hear("waiting"), script.hear("waiting")}
    assert {re.sub(r"'.*(.)'.*\n", r"\1", line) for line in said} == {
        "nbstreamq: waiting for 5 open calls of queue a",
        "nbstreamq: waiting for 1 open call of queue b",
    }
    script.open_gate()
    script.end()
    assert script.written == set(map(str, range(6)))


def test_calls_that_callbacks_and_threads_submit(start):
    script = start(
        "queue = TaskQueue(name, url, workers=1)\n"
        "queue.submit(abs, -1).add_done_callback(\n"
        "    lambda _: (time.sleep(0.3), queue.submit(write, 'callback')))\n"
        "def work():\n"
        "    while not Path(folder, 'wrote-callback').exists():\n"
        "        time.sleep(0.01)\n"
        "    queue.submit(write, 'thread')\n"
        "threading.Thread(target=work).start()\n"
    )
    script.open_gate()
    script.end()
    assert script.written == {"callback", "thread"}


def test_daemon_threads_do_not_keep_it_up(start):
    script = start(
        "queue = TaskQueue(name, url, workers=1)\n"
        "def work():\n"
        "    while True:\n"
        "        queue.submit(time.sleep, 0.01).result()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "queue.submit(write, 1)\n"
    )
    script.open_gate()
    script.end()
    assert script.written == {"1"}


def test_functions_of_atexit_run_behind_the_calls(start):
    script = start(
        "import atexit\n"
        "atexit.register(lambda: Path(folder, 'wrote-atexit-behind-'"
        " + str(Path(folder, 'wrote-1').exists())).touch())\n"
        "queue = TaskQueue(name, url, workers=1)\nqueue.submit(write, 1)"
    )
    script.hear("waiting")
    script.open_gate()
    script.end()
    assert script.written == {"1", "atexit-behind-True"}


def test_inputs_that_nobody_takes_any_more_are_not_waited_for(start):
    script = start(
        "import itertools\nqueue = TaskQueue(name, url, workers=1)\n"
        "job = queue.map(abs, itertools.count(), buffersize=4)\nnext(job)"
    )
    script.end()


def test_a_named_job_is_sent_but_not_waited_for(start, make_queue):
    script = start(
        "queue = TaskQueue(name, url, workers=1)\n"
        "queue.map(write, ['x' * 2000 + str(i) for i in range(20_000)], name='j')"
    )
    assert "waiting" not in script.end()
    job = make_queue(workers=0).attach("j")
    assert len(job) == 20_000
    job.cancel()
    job.delete()


def test_says_why_nothing_runs(start, server_url, queue_name):
    script = start("queue = TaskQueue(name, url, workers=0)\nqueue.submit(write, 1)")
    script.open_gate()
    assert "1 open call" in script.hear("waiting")
    assert "no workers" in script.hear("waiting for write")
    command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "-n", "1"]
    with subprocess.Popen([*command, "--queue", queue_name]) as worker:
        script.end()  # it did not give up
        worker.terminate()
    assert script.written == {"1"}


def test_says_that_it_waits_for_a_callback(start):
    script = start(
        "queue = TaskQueue(name, url, workers=1)\n"
        "def call_back(_):\n"
        "    Path(folder, 'wrote-begun').touch()\n"
        "    write('callback')\n"
        "def held():\n"
        "    while not Path(folder, 'added').exists():\n"
        "        time.sleep(0.002)\n"
        "queue.submit(held).add_done_callback(call_back)\n"  # not at once, in this thread
        "Path(folder, 'added').touch()\n"
        "while not Path(folder, 'wrote-begun').exists():\n"
        "    time.sleep(0.002)\n"
    )
    script.hear(r"waiting for a callback of queue .* Ctrl-C ends the wait")
    script.open_gate()
    script.end()
    assert script.written == {"begun", "callback"}


def test_a_lost_server_is_not_waited_for(start, start_server):
    server = start_server()
    script = start(
        "queue = TaskQueue(name, url, workers=0)\nqueue.submit(write, 1)", url=server.url
    )
    script.hear("waiting")
    server.stop()
    script.hear("can't wait any longer")
    assert "dropped 1 open call" in script.end()


CHILD = """
def child():
    queue = TaskQueue(name, url, workers=1)
    queue.submit(time.sleep, 0.5)
    queue.submit(Path(folder, "wrote-child").touch)

if __name__ == "__main__":
    import multiprocessing
    queue = TaskQueue(name + "-parent", url, workers=1)
    held = queue.options(delay=60).submit(int)
    context = multiprocessing.get_context(sys.argv[4])
    process = context.Process(target=child)
    process.start()
    process.join()
    held.cancel()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_waits_for_its_own_calls(start, method):
    script = start(CHILD, method)
    script.hear("waiting for . open call")
    assert "open call" not in script.end()
    assert script.written == {"child"}


def test_a_forked_child_has_nothing_to_wait_for(start):
    script = start(
        # Python 3.12 and newer warn of any fork beside threads.
        "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
        "queue = TaskQueue(name, url, workers=1)\nheld = queue.submit(write, 1)\n"
        "if os.fork() == 0:\n    sys.exit(7)\n"
        "assert os.wait()[1] >> 8 == 7\nPath(folder, 'open').touch()\nheld.result()"
    )
    assert script.end() == ""


def test_at_a_prompt_ctrl_c_ended_only_a_statement(start):
    script = start(SUBMIT + "sys.ps1 = '>>> '\nsys.last_type = KeyboardInterrupt")
    assert "10 open calls" in script.hear("waiting")
    script.open_gate()
    script.end()


def test_a_worker_waits_for_nothing(queue, server_url):
    def submit_and_forget(name):
        TaskQueue(name, server_url, workers=0).submit(abs, -1)

    queue.submit(submit_and_forget, f"{queue.name}-nobody").result(20)
    queue.shutdown()
