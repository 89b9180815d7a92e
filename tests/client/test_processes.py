"""Forks of the process that made a queue, its end, and the embedded server's death."""

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


PROCESS_POOL = """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")
from nbstreamq import TaskQueue

def ask(arguments):
    with TaskQueue(*arguments[1:], workers=0) as queue:
        return queue.submit(abs, -arguments[0]).result(20)

name, url = sys.argv[1:]
with TaskQueue(name, url, workers=1) as queue:
    queue.submit(int).result(20)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(ask, [(i, name, url) for i in range(4)]))
"""


def test_queues_in_a_pool_of_processes(run_script, server_url, queue_name):
    assert run_script(PROCESS_POOL, queue_name, server_url) == "[0, 1, 2, 3]\n"


NO_SHUTDOWN = """
import sys
from nbstreamq import TaskQueue

queue = TaskQueue(*sys.argv[1:], workers=1)
print(queue.submit(abs, -1).result(20))
queue.options(delay=60).submit(int)
"""


def test_exit_without_shutdown_does_not_wait(run_script, server_url, queue_name, client):
    assert run_script(NO_SHUTDOWN, queue_name, server_url) == "1\n"


ONLY_A_SCRIPT = """
import sys
from nbstreamq import TaskQueue

queue = TaskQueue(sys.argv[1], sys.argv[2], workers=1)
future = queue.submit(lambda: 7)
queue.shutdown(wait=False)
print(future.result(20))
"""


def test_exit_after_shutdown_without_waiting(run_script, server_url, queue_name):
    assert run_script(ONLY_A_SCRIPT, queue_name, server_url) == "7\n"


KILL_SERVER = """
import os, signal, sys, time
from pathlib import Path
import psutil
from nbstreamq import TaskQueue
from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings

def servers():
    found = []
    for p in psutil.process_iter():
        try:
            words = p.cmdline()
        except psutil.Error:
            continue
        if words and "server" in os.path.basename(words[0]) and any(
            os.environ["NBSTREAMQ_RUNTIME_DIR"] in w for w in words
        ):
            found.append(p.pid)
    return found

gate = Path(sys.argv[2])

def hold(x):
    (gate / f"reached-{x}").touch()
    while not (gate / "open").exists():
        time.sleep(0.005)
    return x

with TaskQueue(sys.argv[1], workers=2) as queue:
    job = queue.map(hold, range(8), chunksize=1)
    single = queue.submit(hold, "single")
    while len(list(gate.glob("reached-*"))) < 2:
        time.sleep(0.005)
    # What was submitted is on the server: the last of it is answered for.
    while sum(l.waiting + l.running for l in queue.status().lanes) < 9:
        time.sleep(0.005)
    time.sleep(1.1)  # the server writes its file once a second
    (before,) = servers()
    os.kill(before, signal.SIGKILL)
    later = queue.submit(abs, -3)
    (gate / "open").touch()
    print(later.result(20), job.result(20), single.result(20))
    (after,) = servers()
    print(before != after, repr(queue.status().trouble))
stop_server(Settings.from_environment())
"""


def test_killed_embedded_server_comes_back(run_script, queue_name, tmp_path, short_folder):
    gate = tmp_path / "gate"
    gate.mkdir()
    printed = run_script(
        KILL_SERVER,
        queue_name,
        str(gate),
        NBSTREAMQ_RUNTIME_DIR=str(short_folder()),
        NBSTREAMQ_DATA_DIR=str(short_folder()),
    )
    assert printed.splitlines() == ["3 [0, 1, 2, 3, 4, 5, 6, 7] single", "True ''"]
