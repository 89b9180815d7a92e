"""Time limits, cancellation and tasks that wait for tasks, on real workers."""

import contextlib
import ctypes
import os
import time

import pytest

from nbstreamq import TimeLimitExceeded, WorkerLost
from nbstreamq.wire.messages import State


def loop():
    while True:
        pass


def sleep():
    time.sleep(60)


def sleep_often():
    while True:
        time.sleep(0.001)


def hang_in_c():
    """Wait for ever in C, with the GIL, deaf to signals: lock a mutex that this thread holds."""
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def swallow():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


POLITE = [loop, sleep, sleep_often]
STUBBORN = [hang_in_c, swallow]


# -- time_limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", POLITE)
def test_a_task_over_its_time_is_stopped_and_its_worker_lives(one_worker, task):
    pid = one_worker.submit(os.getpid).result(20)

    future = one_worker.options(time_limit=0.2).submit(task)

    with pytest.raises(TimeLimitExceeded, match=r"0\.2 s"):
        future.result(20)
    assert one_worker.submit(os.getpid).result(20) == pid


@pytest.mark.parametrize("task", STUBBORN)
def test_one_that_does_not_react_is_killed_with_its_worker(one_worker, task):
    pid = one_worker.submit(os.getpid).result(20)

    future = one_worker.options(time_limit=0.2).submit(task)

    with pytest.raises(TimeLimitExceeded, match=task.__name__) as caught:
        future.result(20)
    assert "stack at death" in str(caught.value)
    assert one_worker.submit(os.getpid).result(20) != pid


@pytest.mark.parametrize("task", [sleep, hang_in_c])
def test_the_other_items_of_a_chunk_are_unharmed(one_worker, task):
    def maybe(i):
        return task() if i == 3 else i

    job = one_worker.options(time_limit=0.5).map(maybe, range(8), chunksize=8)
    job.wait(20)

    assert list(job.errors) == [3]
    assert isinstance(job.errors[3], TimeLimitExceeded)
    assert [job[i].result(0) for i in range(8) if i != 3] == [0, 1, 2, 4, 5, 6, 7]


def test_the_limit_is_for_each_item_not_for_the_chunk(one_worker):
    job = one_worker.options(time_limit=1).map(time.sleep, [0.15] * 9, chunksize=9)

    assert job.result(30) == [None] * 9


def test_what_a_task_cleans_up_is_cleaned_up(one_worker, gate):
    cleaned = gate()

    def work():
        try:
            time.sleep(60)
        finally:
            cleaned.open()

    future = one_worker.options(time_limit=0.2).submit(work)

    assert isinstance(future.exception(20), TimeLimitExceeded)
    assert cleaned.is_open()


def test_one_that_catches_it_and_returns_is_done(one_worker):
    def work():
        try:
            time.sleep(60)
        except BaseException:
            return "a partial result"

    assert one_worker.options(time_limit=0.2).submit(work).result(20) == "a partial result"


@pytest.mark.parametrize("task", [sleep, hang_in_c])
def test_a_task_over_its_time_is_retried(one_worker, gate, task):
    again = gate()

    def first_slow():
        if again.is_open():
            return "quick"
        again.open()
        return task()

    future = one_worker.options(time_limit=0.3, retries=1).submit(first_slow)

    assert future.result(20) == "quick"
    assert future.attempts == 2


# -- cancel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*POLITE, *STUBBORN])
def test_a_running_task_is_cancelled(one_worker, gate, task):
    begun = gate()

    def work():
        begun.open()
        task()

    future = one_worker.submit(work)
    begun.wait()

    assert future.cancel()
    assert future.cancelled()
    assert one_worker.submit(lambda: "next").result(20) == "next"


def test_a_waiting_task_that_is_cancelled_is_not_run(one_worker, gate):
    go, begun, ran = gate("go"), gate("begun"), gate("ran")

    def first():
        begun.open()
        go.wait()

    running = one_worker.submit(first)
    begun.wait()
    waiting = [one_worker.submit(ran.open) for _ in range(3)]

    assert all(future.cancel() for future in waiting)
    go.open()
    running.result(20)

    assert one_worker.submit(lambda: "next").result(20) == "next"
    assert not ran.is_open()


def test_cancelling_does_not_hit_the_next_task(one_worker, gate):
    for i in range(20):
        begun = gate(str(i))

        def work(begun=begun):
            begun.open()
            time.sleep(60)

        future = one_worker.submit(work)
        following = [one_worker.submit(lambda j=j: j) for j in range(5)]
        begun.wait()
        future.cancel()

        assert [f.result(20) for f in following] == [0, 1, 2, 3, 4]


def test_all_of_a_chunk_is_cancelled_however_soon(one_worker, gate):
    begun = [gate(str(i)) for i in range(5)]

    def work(gate):
        gate.open()
        time.sleep(60)

    job = one_worker.map(work, begun, chunksize=5)
    begun[0].wait()
    job.cancel()

    assert one_worker.submit(lambda: "next").result(20) == "next"
    assert job.counts()[State.CANCELLED] == 5


def test_a_task_is_cancelled_that_was_taken_and_has_not_begun(one_worker, gate):
    unpickling, go = gate("unpickling"), gate("go")

    class Slow:
        def __reduce__(self):
            return load_slowly, ()

    def load_slowly():
        unpickling.open()
        go.wait()

    future = one_worker.submit(lambda _: time.sleep(60), Slow())
    unpickling.wait()
    future.cancel()
    # The supervisors are told, and only then the task begins.
    one_worker.submit(lambda: None).cancel()
    go.open()

    assert one_worker.submit(lambda: "next").result(20) == "next"


def test_one_item_of_a_map_is_cancelled(one_worker, gate):
    begun, go = gate("begun"), gate("go")

    def work(i):
        if i == 0:
            begun.open()
            go.wait()
        return i

    job = one_worker.map(work, range(5), chunksize=1)
    begun.wait()
    job[3].cancel()
    go.open()
    job.wait(20)

    assert [job[i].result(0) for i in (0, 1, 2, 4)] == [0, 1, 2, 4]
    assert job[3].cancelled()


def test_a_cancellation_that_comes_late_does_not_hit_the_next_task(one_worker):
    """Cancelled about when it ends by itself: before, meanwhile, after."""
    for i in range(40):
        future = one_worker.submit(time.sleep, 0.001 * (i % 8))
        following = [one_worker.submit(lambda j=j: time.sleep(0.002) or j) for j in range(3)]
        time.sleep(0.0007 * (i % 11))
        future.cancel()

        assert [f.result(20) for f in following] == [0, 1, 2]


def test_a_delayed_task_that_is_cancelled_is_not_run(one_worker, gate):
    ran = gate()
    future = one_worker.options(delay=0.2).submit(ran.open)

    assert future.cancel()

    assert one_worker.options(delay=0.4).submit(ran.is_open).result(20) is False


def test_a_task_over_its_time_is_cancelled_all_the_same(one_worker, gate):
    begun = gate()
    future = one_worker.options(time_limit=0.3).submit(lambda: (begun.open(), swallow()))
    begun.wait()

    assert future.cancel()

    assert one_worker.submit(lambda: "next").result(20) == "next"


# -- lanes, delays, set-up ------------------------------------------------------------------------


def test_the_urgent_ones_come_first(one_worker, gate, tmp_path, wait_until):
    begun, go, log = gate("begun"), gate("go"), tmp_path / "log"

    def first():
        begun.open()
        go.wait()

    def write(word):
        with log.open("a") as file:
            file.write(word + "\n")

    running = one_worker.submit(first)
    begun.wait()
    futures = [
        one_worker.options(lane=lane).submit(write, lane)
        for lane in ("low", "default", "high", "low", "default", "high")
    ]
    wait_until(
        lambda: sum(lane.waiting for lane in one_worker.status().lanes) == 6,
        describe="all to wait",
    )
    go.open()
    running.result(20)
    for future in futures:
        future.result(20)

    assert log.read_text().split() == ["high", "high", "default", "default", "low", "low"]


def test_a_delayed_task_starts_in_time(one_worker):
    submitted = time.time()

    started = one_worker.options(delay=0.4).submit(time.time).result(20)

    assert started - submitted >= 0.39


def test_a_late_joiner_is_set_up_before_its_first_task(new_queue, wait_until):
    queue = new_queue(workers=1)
    queue.submit(lambda: None).result(20)

    def set_up():
        os.environ["SET_UP"] = "yes"
        return os.getpid()

    (first,) = queue.everywhere(set_up).result(20)
    queue.run(3)
    wait_until(lambda: len(queue.workers()) == 3, describe="three workers")

    def look(_):
        time.sleep(0.02)
        return os.getpid(), os.environ.get("SET_UP")

    found = queue.map(look, range(30), chunksize=1).result(20)
    assert {answer for _, answer in found} == {"yes"}
    assert len({first, *(pid for pid, _ in found)}) > 1


# -- help first -----------------------------------------------------------------------------------


def test_a_task_waits_for_its_own_with_one_worker(one_worker):
    def outer():
        return one_worker.submit(lambda: 20).result() + sum(one_worker.map(abs, range(3)))

    assert one_worker.submit(outer).result(20) == 23


def test_tasks_nest_deeply_with_one_worker(one_worker):
    def nest(depth):
        return 1 + one_worker.submit(nest, depth - 1).result() if depth else 0

    assert one_worker.submit(nest, 12).result(20) == 12


def test_tasks_branch_with_two_workers(queue):
    def fib(n):
        if n < 2:
            return n
        a, b = queue.submit(fib, n - 1), queue.submit(fib, n - 2)
        return a.result() + b.result()

    assert queue.map(fib, [7, 6, 5]).result(40) == [13, 8, 5]


def test_output_of_outer_and_inner_is_told_apart(one_worker):
    def inner():
        print("inner")

    def outer():
        print("before")
        one_worker.submit(inner).result()
        print("after")

    future = one_worker.submit(outer)
    future.result(20)

    lines = future.logs.splitlines()
    assert [line for line in lines if "inner" not in line] == ["before", "after"]


@pytest.fixture
def waiting_outer(one_worker, gate):
    """An outer task that helps with an inner one, which waits for a gate; the gates of both."""
    begun, go = gate("begun"), gate("go")

    def inner():
        begun.open()
        go.wait()

    def outer():
        one_worker.submit(inner).result()

    yield outer, begun, go
    go.open()


def test_the_time_limit_of_an_outer_task_holds_while_it_helps(one_worker, waiting_outer):
    outer, begun, go = waiting_outer

    future = one_worker.options(time_limit=1).submit(outer)
    begun.wait()

    assert isinstance(future.exception(20), TimeLimitExceeded)
    go.open()
    assert one_worker.submit(lambda: "next").result(20) == "next"


def test_an_outer_task_is_cancelled_while_it_helps(one_worker, waiting_outer, gate):
    outer, begun, go = waiting_outer
    future = one_worker.submit(outer)
    begun.wait()

    future.cancel()
    go.open()

    assert one_worker.submit(lambda: "next").result(20) == "next"


def test_an_outer_task_is_cancelled_while_it_waits_for_nothing(one_worker, gate):
    begun = gate()

    def outer():
        never = one_worker.options(delay=3600).submit(abs, 1)
        begun.open()
        never.result()

    future = one_worker.submit(outer)
    begun.wait()
    future.cancel()

    assert one_worker.submit(lambda: "next").result(20) == "next"


@pytest.mark.crash
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_crash_in_an_inner_task_ends_the_outer_one(new_queue, n_workers):
    queue = new_queue(workers=n_workers)

    def outer():
        return queue.submit(os._exit, 3).result()

    future = queue.submit(outer)

    assert isinstance(future.exception(30), WorkerLost)
    assert queue.submit(lambda: "next").result(20) == "next"
