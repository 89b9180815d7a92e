"""A forked process: what it inherited says so, at once; what it makes itself works."""

from __future__ import annotations

import pytest

START = """
import os, sys, threading, warnings
from concurrent.futures import as_completed, wait
from nbstreamq import QueueClosed, TaskQueue

warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork beside threads
name, url, gate = sys.argv[1:]

def hold(x):
    import os, time
    while not os.path.exists(gate):
        time.sleep(0.002)
    return x

def check_closed(call, *args, **kwargs):
    try:
        found = call(*args, **kwargs)
    except QueueClosed as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError(f"{call} returned {found!r}")

def fork(child):
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

queue = TaskQueue(name, url, workers=1)
done = queue.submit(abs, -1)
assert done.result(10) == 1
"""

END = """
open(gate, "w").close()
assert queue.submit(abs, -3).result(10) == 3
queue.shutdown()
print("fine")
"""


@pytest.fixture
def run_forking(run_script, server_url, queue_name, tmp_path):
    def run(middle):
        out = run_script(START + middle + END, queue_name, server_url, str(tmp_path / "gate"))
        assert out.split()[-1] == "fine"

    return run


def test_inherited_queue_is_closed(run_forking):
    run_forking("""
def child():
    check_closed(queue.submit, int)
    check_closed(queue.map, int, [1])
    check_closed(queue.put, 1)
    check_closed(queue.run, 1)
    check_closed(queue.everywhere, int)
    check_closed(queue.status)
    check_closed(queue.workers)
    check_closed(queue.options(retries=1).submit, int)
    queue.shutdown()
    repr(queue)

fork(child)
""")


def test_inherited_futures_never_hang(run_forking):
    run_forking("""
future = queue.submit(hold, 2)
job = queue.map(hold, range(3))
watched = job[0]

def child():
    for f in (future, watched, job[1]):
        check_closed(f.result)
        check_closed(f, timeout=1)
        assert isinstance(f.exception(), QueueClosed)
        assert f.done()
    check_closed(list, job)
    check_closed(job.result)
    assert done.result() == 1
    assert set(as_completed([future, watched])) == {future, watched}
    assert not wait([future]).not_done

fork(child)
open(gate, "w").close()
assert future.result(10) == 2
assert job.result(10) == [0, 1, 2]
""")


def test_new_queue_in_the_child(run_forking):
    run_forking("""
def child():
    with TaskQueue(name, url, workers=1) as mine:
        assert mine.submit(abs, -2).result(10) == 2
        assert list(mine.map(lambda x: x + 1, range(10))) == list(range(1, 11))

fork(child)
assert queue.submit(abs, -2).result(10) == 2
""")


def test_while_other_threads_are_busy(run_forking):
    run_forking("""
stop = threading.Event()

def submit():
    while not stop.is_set():
        assert queue.submit(abs, -1).result(10) == 1
        assert list(queue.map(abs, [-1, -2])) == [1, 2]

threads = [threading.Thread(target=submit) for _ in range(3)]
for thread in threads:
    thread.start()

def child():
    check_closed(queue.submit, int)
    with TaskQueue(name, url, workers=0) as mine:
        assert mine.submit(abs, -2).result(10) == 2

for _ in range(10):
    fork(child)
stop.set()
for thread in threads:
    thread.join()
""")


def test_end_of_the_child_ends_nothing_of_the_parent(run_forking):
    run_forking("""
future = queue.submit(hold, 2)
pid = os.fork()
if pid == 0:
    sys.exit(0)  # with all that runs at an exit
assert os.waitpid(pid, 0)[1] == 0
open(gate, "w").close()
assert future.result(10) == 2
""")


def test_multiprocessing(run_forking):
    run_forking("""
import multiprocessing

def child(_):
    with TaskQueue(name, url, workers=0) as mine:
        return mine.submit(abs, -2).result(10)

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(child, range(4)) == [2] * 4
""")
