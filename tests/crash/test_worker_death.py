"""A worker dies: what it ran runs again at once; what it had not begun was never in danger."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from nbstreamq import WorkerLost
from nbstreamq.worker.retries import MAX_LOSSES
from tests.counting import check_once


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def note(path):
    """Write this process's id where the test finds it."""
    part = Path(f"{path}.part")
    part.write_text(str(os.getpid()))
    part.rename(path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_task_whose_worker_is_killed_runs_again(queue, gate, number):
    begun, again = gate("begun"), gate("again")

    def work():
        if again.first():
            note(begun.path)
            time.sleep(60)
        return os.getpid()

    future = queue.submit(work)
    begun.wait()
    victim = int(Path(begun.path).read_text())
    os.kill(victim, number)

    assert future.result(20) != victim
    assert not psutil.pid_exists(victim)


def test_a_death_is_seen_at_once(queue, gate):
    """The kernel tells the supervisor, which does not have to look; see docs/reliability.md."""
    begun, again = gate("begun"), gate("again")

    def work():
        if again.first():
            note(begun.path)
            time.sleep(60)
        return time.time()

    future = queue.submit(work)
    begun.wait()
    os.kill(int(Path(begun.path).read_text()), signal.SIGKILL)
    killed = time.time()

    assert future.result(20) - killed < 1


def test_it_runs_again_on_a_worker_that_is_there(queue, gate):
    """The other worker takes it: nothing has to start before."""
    before = {queue.submit(os.getpid).result(20)}
    before |= {worker.pid for worker in queue.workers()}
    again = gate()

    def work():
        if again.first():
            kill_me()
        return os.getpid()

    assert queue.submit(work).result(20) in before | {worker.pid for worker in queue.workers()}


def test_one_that_kills_every_worker_fails_after_its_attempts(queue, tmp_path):
    log = tmp_path / "log"

    def work():
        with log.open("a") as file:
            file.write("x")
        kill_me()

    error = queue.submit(work).exception(30)

    assert isinstance(error, WorkerLost)
    assert log.read_text() == "x" * MAX_LOSSES
    assert f"{MAX_LOSSES} times" in str(error)


def test_the_certificate_says_what_is_known(queue):
    def crash_here(number):
        print("the last words")
        bytearray(60 * 2**20)
        ctypes.string_at(number)

    future = queue.submit(crash_here, 0)
    error = future.exception(30)

    certificate = error.certificate
    assert certificate.cause == "SIGSEGV"
    assert "crash_here" in certificate.stack
    assert "the last words" in certificate.output
    assert certificate.peak_memory_bytes > 60 * 2**20
    assert certificate.item == "crash_here(0)"
    assert certificate.worker
    assert error.task == future.id
    for text in ("SIGSEGV", "crash_here", "the last words", "peak memory", certificate.worker):
        assert text in str(error)


def test_the_certificate_of_an_item_names_it(queue):
    job = queue.map(lambda x: os._exit(7) if x == "bad" else x, ["good", "bad"])
    job.wait(30)

    (error,) = job.errors.values()
    assert error.certificate.cause == "exit code 7"
    assert error.certificate.item == "'bad'"


def test_a_death_loses_only_its_item_and_doubles_none(queue, tmp_path):
    def work(i):
        if i in (3, 40, 77):
            os._exit(1)
        return i

    job = queue.map(work, range(100))
    job.wait(50)

    assert list(job.errors) == [3, 40, 77]
    assert [job[i].result(0) for i in range(100) if i not in job.errors] == [
        i for i in range(100) if i not in (3, 40, 77)
    ]
    assert sum(job.counts().values()) == 100


def test_what_a_lost_attempt_printed_is_kept(queue, gate):
    again = gate()

    def work():
        if again.first():
            print("first")
            kill_me()
        print("second")

    future = queue.submit(work)
    future.result(20)

    assert future.logs.endswith("second\n")


def test_workers_killed_while_they_wait_are_replaced(queue, wait_until):
    queue.submit(abs, 1).result(20)
    before = wait_until(
        lambda: found if len(found := {w.pid for w in queue.workers()}) == 2 else None,
        describe="two workers",
    )

    for pid in before:
        os.kill(pid, signal.SIGKILL)

    assert queue.map(abs, range(10)).result(20) == list(range(10))
    after = wait_until(
        lambda: (
            found
            if len(found := {w.pid for w in queue.workers()}) == 2 and not found & before
            else None
        ),
        describe="two new workers",
    )
    assert all(psutil.pid_exists(pid) for pid in after)


def test_killed_between_run_and_commit_it_is_run_again(queue, gate, tmp_path):
    again, runs = gate(), tmp_path / "runs"

    class Result:
        def __reduce__(self):
            # It has run; its result is not on the server yet.
            if again.first():
                kill_me()
            return str, ("the result",)

    def work():
        with runs.open("a") as file:
            file.write("x")
        return Result()

    assert queue.submit(work).result(20) == "the result"
    assert runs.read_text() == "xx"


def test_workers_killed_all_the_time_lose_nothing(queue, gate, wait_until):
    """The items are innocent, so they may be hit; most chunks are hit again and again."""
    job = queue.map(lambda i: time.sleep(0.01) or i, range(200), chunksize=10)

    for n_killed in range(1, 6):
        wait_until(
            lambda n=n_killed: job.done() or sum(f.done() for f in job[:]) > 25 * n,
            describe="progress",
        )
        for worker in queue.workers()[:1]:
            try:
                os.kill(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    job.wait(40)
    assert job.errors == {}
    assert job.result(0) == list(range(200))


@pytest.mark.parametrize("way", ["fork", "subprocess"])
def test_a_child_of_a_task_that_dies_is_no_death_of_the_worker(queue, way):
    def work():
        if way == "fork":
            pid = os.fork()
            if pid == 0:
                os._exit(3)
            return os.waitpid(pid, 0)[1]
        return os.system("exit 3")

    assert os.waitstatus_to_exitcode(queue.submit(work).result(20)) == 3


def test_stacks_of_earlier_tasks_are_not_in_the_certificate(queue):
    """Only a crash writes one; a kill leaves none."""
    error = queue.submit(kill_me).exception(20)

    assert error.certificate.stack == ""
    assert error.certificate.cause == "SIGKILL"


def test_the_stack_of_an_abort_names_the_function(queue):
    def guilty_function():
        os.abort()

    error = queue.submit(guilty_function).exception(20)

    assert "guilty_function" in error.certificate.stack


def test_the_certificate_has_the_end_of_a_long_output(queue):
    def work():
        for i in range(3000):
            print("line", i)
        kill_me()

    certificate = queue.submit(work).exception(20).certificate

    assert certificate.output.endswith("line 2999\n")
    assert len(certificate.output) < 10_000


def test_a_loss_takes_no_retry_from_the_task(queue, gate):
    died, failed = gate("died"), [gate("1"), gate("2")]

    def work():
        if died.first():
            kill_me()
        if any(g.first() for g in failed):
            raise ValueError("not yet")
        return "at last"

    assert queue.options(retries=2, backoff=0.01).submit(work).result(20) == "at last"


def test_a_killed_worker_is_no_zombie(queue, wait_until):
    pid, supervisor = queue.submit(lambda: (os.getpid(), os.getppid())).result(20)

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: not psutil.pid_exists(pid), describe="the end of the worker")
    wait_until(lambda: pid not in {w.pid for w in queue.workers()}, describe="its removal")
    children = psutil.Process(supervisor).children()
    assert [c.pid for c in children if c.status() == psutil.STATUS_ZOMBIE] == []


def test_a_worker_lost_once_under_a_nested_task_is_survived(new_queue, gate):
    queue, died = new_queue(workers=1), gate("died")

    def inner():
        if died.first():
            kill_me()
        return "inner"

    assert queue.submit(lambda: queue.submit(inner).result(30)).result(30) == "inner"


def overflow():
    """Fill the stack with the frames of compiled code."""
    sys.setrecursionlimit(10**8)

    def again(_):
        return sorted([0], key=again)

    again(0)


@pytest.mark.parametrize("act", [overflow, lambda: ctypes.string_at(0), lambda: os._exit(3)])
def test_each_end_in_its_own_chunk_costs_only_its_item(queue, act):
    job = queue.map(lambda i: act() if i % 20 == 7 else i, range(60), chunksize=20)
    job.wait(50)

    assert list(job.errors) == [7, 27, 47]
    for error in job.errors.values():
        # From Python 3.12 on the interpreter counts those frames, too.
        assert isinstance(error, WorkerLost | RecursionError)
    good = [i for i in range(60) if i % 20 != 7]
    assert [job[i].result(0) for i in good] == good


def test_killed_between_run_and_commit_while_the_server_hangs(start_server, new_queue, gate):
    """The item has run; its result is in the connection, or was never sent."""
    server = start_server()
    queue = new_queue(server.url, workers=1)
    begun, go, done = gate("begun"), gate("go"), gate("done")
    queue.submit(abs, -1).result(20)

    def work(i):
        begun.open()
        go.wait()
        if i == 4:
            done.open()
        return i, os.getpid()

    job = queue.map(work, range(5), chunksize=5)
    begun.wait()
    (victim,) = (worker.pid for worker in queue.workers())
    os.kill(server.pid, signal.SIGSTOP)
    try:
        go.open()
        done.wait()
        os.kill(victim, signal.SIGKILL)
    finally:
        os.kill(server.pid, signal.SIGCONT)

    job.wait(30)
    check_once(job, [(i, pid) for i, (_, pid) in enumerate(job.result(0))])


def test_killed_in_the_midst_of_its_read(one_worker, wait_until):
    """What is given to it in that very moment is not lost."""
    for i in range(10):
        (victim,) = {one_worker.submit(os.getpid).result(20)}
        futures = []
        submitting = threading.Thread(
            target=lambda: [futures.append(one_worker.submit(pow, 2, k)) for k in range(20)]
        )
        submitting.start()
        wait_until(lambda n=i: len(futures) >= n, describe="some calls")
        os.kill(victim, signal.SIGKILL)
        submitting.join()
        assert [f.result(20) for f in futures] == [2**k for k in range(20)]
