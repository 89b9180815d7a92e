"""Forks of the process that made a queue, and its end."""

from __future__ import annotations

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
    with TaskQueue(name, url, workers=0) as mine:
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


NO_SHUTDOWN = """
import sys
from nbstreamq import TaskQueue

queue = TaskQueue(*sys.argv[1:], workers=1)
print(queue.submit(abs, -1).result(20))
queue.options(delay=60).submit(int)
"""


def test_exit_without_shutdown_does_not_wait(run_script, server_url, queue_name):
    assert run_script(NO_SHUTDOWN, queue_name, server_url) == "1\n"


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
