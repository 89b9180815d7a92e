"""Workers as they come up: how many, how they are set up, and what they serve."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nbstreamq import MemoryLimitExceeded, TimeLimitExceeded
from nbstreamq.worker.process import WorkerProcess
from tests.real_workers import node_command

ROOT = Path(__file__).parents[2]

#: Of a supervisor that looks at its workers once a minute, unless something happens.
SELDOM = {"rest": 60.0, "heartbeat": 60.0, "silence": 240.0}


def pids(queue):
    return sorted(worker.pid for worker in queue.workers())


class Workers(list):
    """Process ids; true also when there are none."""

    def __bool__(self):
        return True


@pytest.fixture
def wait_for_workers(wait_until):
    """``wait_for_workers(queue, n)``: their process ids, once there are n."""

    def wait(queue, n):
        return wait_until(
            lambda: found if len(found := Workers(pids(queue))) == n else None,
            describe=f"{n} workers",
        )

    return wait


def test_run_starts_as_many_as_it_says(new_queue, wait_for_workers):
    queue = new_queue(workers=0)

    queue.run(3)

    found = wait_for_workers(queue, 3)
    assert all(psutil.pid_exists(pid) for pid in found)


def test_run_again_changes_nothing(new_queue, wait_for_workers):
    queue = new_queue(workers=0)
    queue.run(2)
    before = wait_for_workers(queue, 2)

    queue.run(2)
    queue.map(lambda x: x, range(100)).result(20)

    assert pids(queue) == before


def test_run_scales_up_and_down(new_queue, wait_for_workers, wait_until):
    queue = new_queue(workers=0)
    queue.run(1)
    first = wait_for_workers(queue, 1)

    queue.run(3)
    three = wait_for_workers(queue, 3)
    queue.run(1)
    last = wait_for_workers(queue, 1)

    assert first[0] in three
    assert last[0] in three
    gone = set(three) - set(last)
    wait_until(lambda: not any(map(psutil.pid_exists, gone)), describe="the end of the others")
    assert queue.submit(os.getpid).result(20) == last[0]


def test_a_busy_worker_that_is_too_many_finishes_its_task(new_queue, gate, wait_for_workers):
    queue = new_queue(workers=0)
    queue.run(1)
    begun, go = gate("begun"), gate("go")

    def work():
        begun.open()
        go.wait()
        return "done"

    future = queue.submit(work)
    begun.wait()
    queue.run(0)
    go.open()

    assert future.result(20) == "done"
    assert future.attempts == 1
    wait_for_workers(queue, 0)


def test_none_can_be_asked_for_and_then_some(new_queue, wait_for_workers):
    queue = new_queue(workers=0)
    queue.run(0)
    future = queue.submit(lambda: 1)

    assert not future.done()
    queue.run(1)

    assert future.result(20) == 1


def test_workers_that_die_young_are_started_ever_more_seldom(new_queue, gate, tmp_path, wait_until):
    queue = new_queue(workers=0)
    healed, births = gate(), tmp_path / "births"

    def set_up():
        with births.open("a") as file:
            file.write("x")
        if not healed.is_open():
            os._exit(3)

    queue.everywhere(set_up)
    queue.run(1)
    told = wait_until(lambda: queue.status().warnings, describe="the warning")

    assert any("die young" in text and "exit code 3" in text for text in told)
    before = len(births.read_text())
    wait_until(lambda: len(births.read_text()) == before + 1, describe="one more try")
    assert len(births.read_text()) < 6
    healed.open()
    assert queue.submit(abs, -1).result(30) == 1


def test_two_queues_share_a_supervisor(new_queue, wait_for_workers):
    first, second = new_queue(workers=0), new_queue(workers=0)
    first.run(2)
    found = wait_for_workers(first, 2)

    second.run(2)

    assert second.submit(os.getppid).result(20) == first.submit(os.getppid).result(20)
    assert pids(second) == found


def test_the_first_to_leave_leaves_the_workers_to_the_other(new_queue, wait_for_workers):
    first, second = new_queue(workers=0), new_queue(workers=0)
    first.run(2)
    second.run(2)
    found = wait_for_workers(first, 2)

    first.shutdown()

    assert second.submit(lambda: 1).result(20) == 1
    assert pids(second) == found


def test_the_last_to_leave_ends_all(new_queue, wait_for_workers):
    queue = new_queue()
    supervisor = queue.submit(os.getppid).result(20)
    workers = wait_for_workers(queue, 2)

    queue.shutdown()

    assert not any(map(psutil.pid_exists, [supervisor, *workers]))


def test_a_worker_that_leaves_is_registered_no_more(new_queue, store, wait_for_workers):
    queue = new_queue()
    queue.submit(lambda: 1).result(20)
    wait_for_workers(queue, 2)

    queue.shutdown()

    assert store.workers() == {}


def test_tasks_run_in_the_main_thread(queue):
    def where():
        def handler(*_):
            pass

        signal.signal(signal.SIGALRM, handler)  # only the main thread may
        return threading.current_thread() is threading.main_thread()

    assert queue.submit(where).result(20) is True


def test_numerical_libraries_do_not_oversubscribe_the_machine(queue):
    from nbstreamq.cores import n_cores

    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = queue.submit(lambda: [os.environ.get(name) for name in names]).result(20)

    assert found == [str(max(1, n_cores() // 2))] * 3


def test_what_the_user_set_for_threads_stays(new_queue, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    queue = new_queue()

    found = queue.submit(lambda: os.environ["OMP_NUM_THREADS"]).result(20)

    assert found == "7"


def test_blas_obeys_the_limit(queue):
    def threads_of_blas():
        import numpy as np

        np.ones((200, 200)) @ np.ones((200, 200))
        return psutil.Process().num_threads()

    from nbstreamq.cores import n_cores

    before = queue.submit(lambda: psutil.Process().num_threads())
    # The main thread, the monitor, and what a BLAS of so many threads adds.
    assert queue.submit(threads_of_blas).result(20) <= before.result(20) + n_cores() // 2


def test_a_fresh_worker_is_light(queue):
    heavy = {"IPython", "ipywidgets", "ipykernel", "anywidget", "numpy"}

    assert queue.submit(lambda: heavy & set(sys.modules)).result(20) == set()


def test_no_command_line_shows_the_secret(new_queue):
    def look():
        worker = psutil.Process()
        return worker.cmdline() + worker.parent().cmdline()

    queue = new_queue(secret="Sesame")

    assert "Sesame" not in " ".join(queue.submit(look).result(20))


def test_a_worker_says_who_it_is(queue):
    future = queue.submit(os.getpid)
    pid = future.result(20)

    (mine,) = [w for w in queue.workers() if w.pid == pid]
    assert future.worker == mine.id
    assert "default" in mine.lanes


# -- spawn ----------------------------------------------------------------------------------------


@pytest.fixture
def spawning(new_queue, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", "spawn")
    return new_queue()


def test_spawned_workers_work(spawning):
    assert spawning.map(lambda x: x * x, range(100)).result(30) == [x * x for x in range(100)]


def test_spawned_workers_capture_output(spawning):
    future = spawning.submit(print, "hello")
    future.result(30)

    assert future.logs == "hello\n"


def test_the_death_of_a_spawned_worker_is_seen(spawning, gate):
    again = gate("again")

    def die_once():
        if not again.is_open():
            again.open()
            os.kill(os.getpid(), signal.SIGKILL)
        return "lived"

    assert spawning.submit(die_once).result(30) == "lived"


def test_spawned_workers_do_not_show_the_secret(new_queue, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", "spawn")
    queue = new_queue(secret="Sesame")

    command = queue.submit(lambda: psutil.Process().cmdline()).result(30)

    assert "nbstreamq.worker" in command
    assert "Sesame" not in " ".join(command)


@pytest.fixture
def seldom(server_url, queue_name, new_queue, store, wait_until):
    """A queue whose only worker has a supervisor that looks at it once a minute."""
    command = [sys.executable, *node_command(server_url, queue_name, **SELDOM)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(store.workers, describe="its worker")
            yield new_queue(workers=0)
        finally:
            process.terminate()


def test_what_is_cancelled_stops_at_once(seldom, gate):
    begun = gate("begun")
    future = seldom.submit(lambda: (begun.open(), time.sleep(50)))
    begun.wait()
    future.cancel()
    assert seldom.submit(abs, -1).result(20) == 1, "the worker is free again"


def test_a_time_limit_holds_though_nobody_looked_for_long(seldom):
    assert seldom.submit(abs, -1).result(20) == 1
    future = seldom.options(time_limit=0.1).submit(time.sleep, 50)
    with pytest.raises(TimeLimitExceeded):
        future.result(20)


def test_a_memory_limit_holds_though_nobody_looked_for_long(seldom):
    assert seldom.submit(abs, -1).result(20) == 1
    limited = seldom.options(memory_limit=2**28)
    future = limited.submit(lambda: (bytearray(2**29).count(1), time.sleep(50)))
    with pytest.raises(MemoryLimitExceeded):
        future.result(20)


def test_what_was_told_to_wait_begins_in_time(seldom):
    assert seldom.options(delay=0.5).submit(abs, -1).result(20) == 1


def test_the_first_task_in_a_lane_is_taken_at_once(seldom):
    assert seldom.submit(abs, -1).result(20) == 1
    assert seldom.options(lane="high").submit(abs, -1).result(20) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_signal_to_a_process_that_has_become_another_users_is_no_error():
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setuid(65534)  # As a supervisor that is not root, whose worker became root.
            WorkerProcess(spec=None, pid=1, slot=None).signal(0)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_worker_is_replaced_after_so_many_calls(new_queue):
    queue = new_queue(workers=0)
    queue.run(1, max_tasks_per_worker=2)

    of_map = queue.map(lambda _: os.getpid(), range(6), chunksize=6).result(30)
    assert sorted(map(of_map.count, set(of_map))) == [2, 2, 2]
    of_calls = [queue.submit(os.getpid).result(30) for _ in range(4)]
    assert len(set(of_calls)) == 2
    queue.run(1)
    assert len({queue.submit(os.getpid).result(30) for _ in range(6)} - set(of_calls)) == 1
    assert "is replaced after 2 calls" in queue.logs()


def test_a_worker_that_uses_much_memory_after_a_call_is_replaced(new_queue):
    def work(n_bytes):
        sys.kept = b"x" * n_bytes
        return os.getpid()

    queue = new_queue(workers=0)
    queue.run(1, max_memory=300_000_000)

    small, large, next_one = (queue.submit(work, n).result(30) for n in (1, 400_000_000, 1))
    assert small == large != next_one
