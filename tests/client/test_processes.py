"""Forks of the process that made a queue, and its end."""

from __future__ import annotations

import pytest

FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from nbstreamq import QueueClosed, TaskQueue

name, url = sys.argv[1:]
queue = TaskQueue(name, url, workers=1)
assert queue.submit(abs, -1).result(20) == 1
held = queue.options(delay=60).submit(int)
job = queue.options(delay=60).map(int, [1, 2])

def refused(call):
    try:
        call()
    except QueueClosed as error:
        return "forked from" in str(error)
    return False

def child():
    print(refused(lambda: queue.submit(int)), refused(lambda: queue.map(int, [1])))
    print(refused(held.result), refused(held), refused(job.result), refused(lambda: list(job)))
    print(isinstance(held.exception(), QueueClosed), refused(lambda: queue.put(1)))
    queue.shutdown()
    with TaskQueue(name, url, workers=1) as mine:
        print(mine.submit(abs, -5).result(20), list(mine.map(abs, [-6])))

pid = os.fork()
if pid == 0:
    status = 1
    try:
        child()
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
print("parent", queue.submit(abs, -7).result(20), held.done())
queue.shutdown(cancel_futures=True)
"""


def test_fork(run_script, server_url, queue_name):
    printed = run_script(FORK, queue_name, server_url)
    assert printed.splitlines() == [
        "True True",
        "True True True True",
        "True True",
        "5 [6]",
        "parent 7 False",
    ]


SHUTDOWN = """
import sys
from nbstreamq import TaskQueue

queue = TaskQueue(sys.argv[1], sys.argv[2], workers=1)
future = queue.submit(lambda: 7)
queue.shutdown(wait=False)
print(future.result(20))
"""


def test_exit_after_shutdown_without_waiting(run_script, server_url, queue_name):
    assert run_script(SHUTDOWN, queue_name, server_url) == "7\n"


SERVER_GONE = """
import os, signal, sys, warnings
from nbstreamq import TaskQueue

warnings.simplefilter("ignore")
name, url, server = sys.argv[1:]
queue = TaskQueue(name, url, workers=0)
future = queue.submit(abs, -1)
queue.shutdown(wait=False)
os.kill(int(server), signal.SIGKILL)
"""


def test_exit_after_shutdown_when_the_server_is_gone(run_script, start_server, queue_name):
    server = start_server()
    assert run_script(SERVER_GONE, queue_name, server.url, str(server.pid)) == ""


IN_FLIGHT = """
import os, sys, time
from pathlib import Path
from nbstreamq import TaskQueue
from nbstreamq.client import waiting
from tests.interrupts import interrupt_wait

waiting.SPAN = 60
name, url, folder, end = sys.argv[1:]
queue = TaskQueue(name, url, workers=2)

def hold(x):
    Path(folder, f"reached-{x}").touch()
    while not Path(folder, "open").exists():
        time.sleep(0.002)
    return x

endless = queue.map(time.sleep, [600] * 2, chunksize=1)
sweep = queue.map(hold, range(4), chunksize=1, name="sweep")
queue.run(3)
while not Path(folder, "reached-0").exists():
    time.sleep(0.002)
"""
ENDS = {
    "nothing": "endless.cancel()",
    "Ctrl-C": """
interrupt_wait()
try:
    endless.wait()
except KeyboardInterrupt:
    endless.cancel()
""",
    "Ctrl-C twice": """
try:
    try:
        interrupt_wait()
        endless.wait()
    finally:
        interrupt_wait()
        queue.shutdown()
except KeyboardInterrupt:
    assert endless.done() and not sweep.done()
""",
    "shutdown": "endless.cancel()\nqueue.shutdown(wait=False)",
}


@pytest.mark.parametrize("end", ENDS)
def test_exit_with_work_in_flight(run_script, make_queue, queue_name, server_url, tmp_path, end):
    """It takes no time, and named jobs go on."""
    run_script(IN_FLIGHT + ENDS[end], queue_name, server_url, str(tmp_path), end)
    (tmp_path / "open").touch()
    queue = make_queue(workers=0)
    sweep = queue.attach("sweep")
    assert sweep.result(20) == [0, 1, 2, 3]
    assert {future.attempts for future in sweep[:]} == {1}
    sweep.delete()


CHILD = """
import enum
import multiprocessing
import sys
from dataclasses import dataclass
from nbstreamq import TaskQueue

@dataclass
class Point:
    x: int

class Colour(enum.Enum):
    RED = 1

class Wrong(Exception):
    pass

def shift(point):
    if point.x < 0:
        raise Wrong(point)
    return Point(helper(point.x)), Colour.RED

def helper(x):
    return x + 1

def run(name, url):
    with TaskQueue(name, url, workers=1) as q:
        assert q.map(shift, [Point(1)]).result(20) == [(Point(2), Colour.RED)]
        assert q.submit(Point, 1).result(20) == Point(1)
        try:
            q.submit(shift, Point(-1)).result(20)
        except Wrong as error:
            assert error.args == (Point(-1),)
        job = q.map(shift, [Point(1)], name=f"child-{sys.argv[3]}")
        assert job.result(20) == [(Point(2), Colour.RED)]
        job.delete()

if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[3]).Process(target=run, args=sys.argv[1:3])
    child.start()
    child.join(30)
    print(child.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_of_multiprocessing_maps_functions_of_the_script(
    run_script, server_url, queue_name, method
):
    assert run_script(CHILD, queue_name, server_url, method) == "0\n"
