"""Workers that die: what they ran is run again, and one that kills them all gets a certificate."""

import ctypes
import os
import signal
import sys
import time

import psutil
import pytest

from nbstreamq.errors import WorkerLost

pytestmark = pytest.mark.crash


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once():
    os._exit(7)


def crash_in_c():
    ctypes.string_at(0)


def abort():
    os.abort()


DEATHS = {"SIGKILL": kill_me, "exit code 7": exit_at_once, "SIGSEGV": crash_in_c, "SIGABRT": abort}


@pytest.fixture(params=DEATHS)
def cause(request):
    return request.param


def test_what_a_killed_worker_ran_is_run_again_at_once(queue, gate):
    begun, again = gate("begun"), gate("again")

    def work():
        if begun.once():
            again.wait()
        return os.getpid()

    future = queue.submit(work)
    begun.wait()
    killed = _running_worker(queue, future)
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()

    assert future.result(20) != killed
    assert time.monotonic() - began < 1
    assert future.attempts == 1  # a loss is none of the task's own attempts


def test_a_death_is_survived_whatever_it_is(queue, gate, cause):
    die, died = DEATHS[cause], gate("died")

    future = queue.submit(lambda: die() if died.once() else "lived")

    assert future.result(20) == "lived"


def test_one_that_always_kills_its_worker_gets_a_certificate(queue, cause):
    die = DEATHS[cause]

    def work(number):
        print("my last words")
        die()

    with pytest.raises(WorkerLost) as caught:
        queue.submit(work, 4711).result(20)

    certificate = caught.value.certificate
    assert certificate.cause == cause
    assert certificate.peak_memory_bytes > 2**20
    assert "my last words" in certificate.output
    assert certificate.item == "work(4711)" or certificate.item.endswith(".work(4711)")
    assert cause in str(caught.value)
    assert "3 times" in str(caught.value)


@pytest.mark.parametrize("die", [crash_in_c, abort])
def test_the_stack_of_a_crash_names_the_function(queue, die):
    def guilty_function():
        die()

    with pytest.raises(WorkerLost) as caught:
        queue.submit(guilty_function).result(20)

    assert "guilty_function" in caught.value.certificate.stack
    assert die.__name__ in caught.value.certificate.stack


@pytest.mark.parametrize("chunksize", [20, "auto"])
def test_the_others_of_its_chunk_are_not_lost(queue, cause, chunksize):
    die = DEATHS[cause]

    job = queue.map(lambda x: die() if x == 13 else x * x, range(20), chunksize=chunksize)
    job.wait(30)

    assert list(job.errors) == [13]
    assert job.errors[13].certificate.item == "13"
    assert [f.result() for i, f in enumerate(job[:]) if i != 13] == [
        x * x for x in range(20) if x != 13
    ]


def test_several_that_kill_in_one_chunk(queue):
    job = queue.map(lambda x: os._exit(1) if x % 5 == 2 else x, range(10), chunksize=10)
    job.wait(30)

    assert sorted(job.errors) == [2, 7]
    assert all(isinstance(error, WorkerLost) for error in job.errors.values())


def test_an_idle_worker_that_is_killed_is_replaced(queue, wait_until):
    queue.submit(os.getpid).result(20)
    before = wait_until(lambda: len(w := _pids(queue)) == 2 and w, describe="two workers")

    os.kill(min(before), signal.SIGKILL)

    after = wait_until(
        lambda: len(w := _pids(queue)) == 2 and min(before) not in w and w, describe="another"
    )
    assert max(before) in after
    assert queue.map(lambda x: x, range(100)).result(20) == list(range(100))


def test_all_workers_killed_at_once(queue, gate):
    begun = gate("begun")
    job = queue.map(lambda x: (begun.open(), time.sleep(0.01), x)[2], range(100))
    begun.wait()

    for pid in _pids(queue):
        os.kill(pid, signal.SIGKILL)

    assert job.result(30) == list(range(100))


def test_a_worker_that_died_is_a_zombie_no_longer_and_registered_no_longer(queue, wait_until):
    died = queue.submit(lambda: (os.getpid(), os.getppid()))
    pid, supervisor = died.result(20)

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: not psutil.pid_exists(pid), describe="the end of the worker")
    wait_until(lambda: pid not in _pids(queue), describe="its removal")
    children = psutil.Process(supervisor).children()
    assert [c.pid for c in children if c.status() == psutil.STATUS_ZOMBIE] == []


def test_what_it_printed_before_it_died_is_in_the_certificate_only_at_its_end(queue):
    def work():
        for i in range(3000):
            print("line", i)
        kill_me()

    with pytest.raises(WorkerLost) as caught:
        queue.submit(work).result(20)

    assert caught.value.certificate.output.endswith("line 2999\n")
    assert len(caught.value.certificate.output) < 10_000


def test_retries_are_not_for_deaths(queue, cause):
    die = DEATHS[cause]

    with pytest.raises(WorkerLost):
        queue.options(retries=2, backoff=0.01).submit(lambda: die()).result(20)


def test_one_that_raises_after_it_lost_a_worker_is_retried_as_often_as_it_may(queue, gate):
    died, count = gate("died"), [gate(f"{i}") for i in range(4)]

    def work():
        if died.once():
            kill_me()
        n = next(i for i, g in enumerate(count) if g.once())
        if n < 2:
            raise ValueError(n)
        return n

    assert queue.options(retries=2, backoff=0.01).submit(work).result(20) == 2


def test_output_of_a_dying_interpreter_harms_nothing(queue, gate):
    died = gate("died")

    def work():
        if died.once():
            sys.stderr.write("half a line")
            os.write(1, b"\xff\xfe")
            kill_me()
        return "lived"

    assert queue.submit(work).result(20) == "lived"


def _pids(queue):
    return [worker.pid for worker in queue.workers()]


def _running_worker(queue, future):
    """The process id of the worker that runs the task, as the queue's own news say."""
    end = time.monotonic() + 10
    while future.worker is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    return next(w.pid for w in queue.workers() if w.id == future.worker)
