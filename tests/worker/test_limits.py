"""Tasks that are stopped: by their time limit, or because somebody cancels them."""

import ctypes
import os
import time
from concurrent.futures import CancelledError

import pytest

from nbstreamq.errors import TimeLimitExceeded
from nbstreamq.protocol.states import State


def sleep():
    time.sleep(60)


def loop():
    while True:
        pass


def hang_in_c():
    libc = ctypes.PyDLL(None)  # unlike CDLL it keeps the GIL
    for _ in range(60):
        libc.sleep(60)


def hang_in_c_for_good():
    # One call, which no signal ends, and with the GIL held: reads from a pipe that never fills.
    libc, (read, _) = ctypes.PyDLL(None), os.pipe()
    libc.signal(10, ctypes.c_void_p(1))  # SIGUSR1 is ignored
    libc.read(read, ctypes.create_string_buffer(1), 1)


def swallow():
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(60)
        except BaseException:
            continue


POLITE = [sleep, loop]
RUDE = [hang_in_c, hang_in_c_for_good, swallow]


@pytest.mark.parametrize("hang", POLITE + RUDE)
def test_a_time_limit_holds_whatever_the_task_does(queue, hang):
    began = time.monotonic()

    future = queue.options(time_limit=0.2).submit(hang)

    with pytest.raises(TimeLimitExceeded, match=r"0\.2 s") as caught:
        future.result(20)
    assert caught.value.task == future.id
    assert time.monotonic() - began < 4
    assert queue.submit(lambda: "next").result(20) == "next"


@pytest.mark.parametrize("hang", [sleep, hang_in_c_for_good, swallow])
def test_the_others_of_its_chunk_are_unharmed(queue, hang):
    limited = queue.options(time_limit=0.3)

    job = limited.map(lambda x: hang() if x == 4 else x, range(9), chunksize=9)
    job.wait(20)

    assert list(job.errors) == [4]
    assert isinstance(job.errors[4], TimeLimitExceeded)
    assert [f.result() for i, f in enumerate(job[:]) if i != 4] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_the_limit_is_for_each_item_not_for_the_chunk(queue):
    limited = queue.options(time_limit=0.5)

    job = limited.map(lambda x: time.sleep(0.1) or x, range(12), chunksize=12)

    assert job.result(20) == list(range(12))


def test_a_task_can_clean_up_when_its_time_is_over(queue, gate):
    cleaned = gate("cleaned")

    def work():
        try:
            time.sleep(60)
        finally:
            cleaned.open()

    with pytest.raises(TimeLimitExceeded):
        queue.options(time_limit=0.2).submit(work).result(20)
    assert cleaned.is_open()


def test_one_over_its_time_is_retried(queue, gate):
    first = gate("first")

    def work():
        if first.once():
            time.sleep(60)
        return "in time"

    assert queue.options(time_limit=0.2, retries=1).submit(work).result(20) == "in time"


def test_a_killed_one_is_retried(queue, gate):
    first = gate("first")

    def work():
        if first.once():
            hang_in_c_for_good()
        return "in time"

    assert queue.options(time_limit=0.2, retries=1).submit(work).result(20) == "in time"


@pytest.mark.parametrize("hang", POLITE + RUDE)
def test_a_running_task_is_cancelled(one_worker, gate, hang, wait_until):
    begun = gate("begun")
    future = one_worker.submit(lambda: (begun.open(), hang()))
    begun.wait()

    assert future.cancel()

    assert future.status is State.CANCELLED
    with pytest.raises(CancelledError):
        future.result(0)
    # The only worker is free again.
    assert one_worker.submit(lambda: "next").result(10) == "next"


def test_waiting_tasks_are_cancelled_and_never_run(one_worker, gate):
    begun, go = gate("begun"), gate("go")
    first = one_worker.submit(lambda: (begun.open(), go.wait()))
    begun.wait()
    ran = [gate(f"ran-{i}") for i in range(5)]
    waiting = [one_worker.submit(g.open) for g in ran]
    last = one_worker.submit(lambda: "last")

    assert all(f.cancel() for f in waiting)
    go.open()

    assert last.result(20) == "last"
    assert first.result(20) == (None, None)
    assert [g.is_open() for g in ran] == [False] * 5


def test_a_delayed_task_is_cancelled(queue, gate):
    ran = gate("ran")
    future = queue.options(delay=0.3).submit(ran.open)

    assert future.cancel()

    assert queue.options(delay=0.6).submit(ran.is_open).result(20) is False


def test_items_of_a_map_are_cancelled_and_the_others_run(one_worker, gate):
    go = gate("go")
    job = one_worker.map(lambda x: go.wait() or x, range(8), chunksize=4)

    cancelled = [job[i].cancel() for i in (2, 3, 6)]
    go.open()
    job.wait(20)

    assert cancelled == [True] * 3
    assert [i for i, f in enumerate(job[:]) if f.cancelled()] == [2, 3, 6]
    assert [f.result() for f in job[:] if not f.cancelled()] == [0, 1, 4, 5, 7]


def test_a_whole_job_is_cancelled(queue, gate, wait_until):
    begun = gate("begun")
    job = queue.map(lambda x: (begun.open(), time.sleep(30)), range(100))
    begun.wait()

    assert job.cancel()

    assert job.counts()[State.CANCELLED] == 100
    assert queue.submit(lambda: "next").result(10) == "next"


def test_a_cancellation_never_hits_the_next_task(one_worker):
    """Cancelled just as it ends: the one behind it must not feel it."""
    for i in range(60):
        future = one_worker.submit(time.sleep, 0.001 * (i % 8))
        behind = [one_worker.submit(lambda x=x: time.sleep(0.002) or x) for x in range(3)]
        time.sleep(0.0007 * (i % 11))
        future.cancel()

        assert [f.result(20) for f in behind] == [0, 1, 2]


def test_a_finished_task_is_not_cancelled(queue):
    future = queue.submit(lambda: 1)
    future.result(20)

    assert future.cancel() is False
    assert future.result() == 1


def test_a_task_stopped_twice_ends_once(one_worker, gate):
    begun = gate("begun")
    future = one_worker.options(time_limit=0.3).submit(lambda: (begun.open(), swallow()))
    begun.wait()

    future.cancel()

    assert future.cancelled()
    assert one_worker.submit(lambda: "next").result(10) == "next"
