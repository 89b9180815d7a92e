"""A task that waits for tasks of its own runs others meanwhile: one worker is enough."""

import os
import signal
import time

import pytest

from nbstreamq.errors import TimeLimitExceeded, WorkerLost


def test_nested_tasks_with_one_worker(one_worker):
    def fib(n):
        if n < 2:
            return n
        left, right = one_worker.submit(fib, n - 1), one_worker.submit(fib, n - 2)
        return left.result(20) + right.result(20)

    assert one_worker.submit(fib, 6).result(30) == 8


def test_maps_in_a_map_with_one_worker(one_worker):
    def row(i):
        return sum(one_worker.map(lambda j: i * j, range(10)))

    assert one_worker.map(row, range(10)).result(30) == [45 * i for i in range(10)]


def test_what_runs_meanwhile_runs_in_the_same_process_if_there_is_no_other(one_worker):
    def outer():
        return os.getpid(), one_worker.submit(os.getpid).result(20)

    mine, inner = one_worker.submit(outer).result(20)
    assert mine == inner


def test_output_is_attributed_to_the_task_that_printed_it(one_worker):
    def inner():
        print("inner")
        os.write(1, b"inner, too\n")

    def outer():
        print("before")
        one_worker.submit(inner).result(20)
        print("after")

    future = one_worker.submit(outer)
    future.result(20)

    assert future.logs == "before\nafter\n"


def test_an_error_of_the_inner_task_comes_to_the_outer(one_worker):
    def outer():
        with pytest.raises(ZeroDivisionError):
            one_worker.submit(lambda: 1 // 0).result(20)
        return "caught"

    assert one_worker.submit(outer).result(20) == "caught"


def test_a_waiting_task_keeps_its_timeout(one_worker):
    def outer():
        began = time.monotonic()
        future = one_worker.options(delay=30).submit(int)
        with pytest.raises(TimeoutError):
            future.result(0.2)
        future.cancel()
        return time.monotonic() - began

    assert 0.2 <= one_worker.submit(outer).result(20) < 2


def test_the_time_limit_of_a_task_that_helps(one_worker, gate):
    inner_begun = gate("inner")

    def outer():
        one_worker.submit(lambda: (inner_begun.open(), time.sleep(60))).result(50)

    future = one_worker.options(time_limit=0.4).submit(outer)

    with pytest.raises(TimeLimitExceeded):
        future.result(20)
    assert inner_begun.is_open()


def test_the_cancellation_of_a_task_that_helps(one_worker, gate):
    begun = gate("inner")

    def outer():
        return one_worker.submit(lambda: (begun.open(), time.sleep(2), "inner")[2]).result(50)

    future = one_worker.submit(outer)
    begun.wait()

    assert future.cancel()

    assert one_worker.submit(lambda: "next").result(20) == "next"


def test_the_time_limit_of_the_inner_task_is_its_own(one_worker):
    def outer():
        limited = one_worker.options(time_limit=0.2)
        with pytest.raises(TimeLimitExceeded):
            limited.submit(time.sleep, 60).result(20)
        return "lives"

    assert one_worker.submit(outer).result(20) == "lives"


@pytest.mark.crash
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_crash_in_a_nested_task_does_not_loop_for_ever(new_queue, n_workers):
    queue = new_queue(workers=n_workers)

    def outer():
        queue.submit(os._exit, 9).result(30)

    with pytest.raises(WorkerLost):
        queue.submit(outer).result(30)
    assert queue.submit(lambda: "next").result(20) == "next"


@pytest.mark.crash
def test_a_worker_lost_once_under_a_nested_task_is_survived(one_worker, gate):
    died = gate("died")

    def inner():
        if died.once():
            os.kill(os.getpid(), signal.SIGKILL)
        return "inner"

    def outer():
        return one_worker.submit(inner).result(30)

    assert one_worker.submit(outer).result(30) == "inner"
