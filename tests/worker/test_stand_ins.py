"""A task may wait for its own tasks in any way, with one worker, too: another one stands in."""

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbstreamq import NestedTooDeep
from nbstreamq.worker.limits import MOST_STAND_INS
from nbstreamq.worker.supervisor import STAND_IN_TIME
from tests.real_workers import node_command


def in_asyncio(queue, fn, *args):
    async def main():
        return await queue.submit(fn, *args)

    return asyncio.run(main())


def in_a_thread(queue, fn, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(queue.submit(fn, *args).result).result()


def in_a_callback(queue, fn, *args):
    found, over = [], threading.Event()
    future = queue.submit(fn, *args)
    future.add_done_callback(lambda f: found.append(f.result()) or over.set())
    over.wait()
    return found[0]


def as_completed_in_a_thread(queue, fn, *args):
    def first():
        return next(concurrent.futures.as_completed([queue.submit(fn, *args)])).result()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(first).result()


def a_map_in_a_thread(queue, fn, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: next(queue.map(fn, *([arg] for arg in args)))).result()


def in_the_main_thread(queue, fn, *args):
    return queue.submit(fn, *args).result()


WAYS = [in_asyncio, in_a_thread, in_a_callback, as_completed_in_a_thread, a_map_in_a_thread]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_task_may_wait_for_its_tasks(one_worker, way):
    queue = one_worker

    def count(n):
        return 1 + way(queue, count, n - 1) if n else 0

    assert queue.submit(count, 3).result(60) == 3


def test_ways_may_be_mixed(one_worker):
    queue, ways = one_worker, [*WAYS, in_the_main_thread] * 2

    def count(n):
        return 1 + ways[n](queue, count, n - 1) if n else 0

    assert queue.submit(count, len(ways) - 1).result(90) == len(ways) - 1


def test_waits_in_the_main_thread_may_nest_deeper_than_the_stack(one_worker):
    queue = one_worker

    def count(n):
        return 1 + in_the_main_thread(queue, count, n - 1) if n else 0

    assert queue.submit(count, 200).result(60) == 200


def test_one_that_stands_in_is_no_further_worker(one_worker, gate, wait_until):
    queue, held = one_worker, gate()
    future = queue.submit(lambda: in_asyncio(queue, held.wait))
    states = ["busy", "waiting"]
    wait_until(lambda: sorted(w.state for w in queue.workers()) == states, 20, "the stand-in")
    assert queue.size == 1
    held.open()
    future.result(30)


def test_those_that_stand_in_leave(one_worker, wait_until):
    queue = one_worker
    assert queue.submit(lambda: in_asyncio(queue, abs, -1)).result(60) == 1
    wait_until(lambda: len(queue.workers()) == 1, 20, "the worker that stood in to leave")


def test_too_deep_ends_with_an_error(one_worker):
    queue = one_worker

    def count(n):
        return 1 + in_asyncio(queue, count, n - 1) if n else 0

    future = queue.submit(count, MOST_STAND_INS + 5)
    with pytest.raises(NestedTooDeep, match=f"At most {MOST_STAND_INS} more workers"):
        future.result(120)
    assert queue.submit(abs, -1).result(60) == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_waits_in_the_main_thread_that_nest_too_deep_end_with_an_error(one_worker):
    queue = one_worker

    def count(n):
        return 1 + in_the_main_thread(queue, count, n - 1) if n else 0

    future = queue.submit(count, 1100)
    with pytest.raises(NestedTooDeep, match="hundreds of levels deep"):
        future.result(150)
    assert queue.submit(abs, -1).result(60) == 1


def test_a_task_that_is_cancelled_in_asyncio_cancels_what_it_submitted(
    one_worker, gate, wait_until
):
    queue = one_worker

    def inner():
        gate("in").open()
        try:
            gate("never").wait(60)
        finally:
            gate("out").open()

    future = queue.submit(lambda: in_asyncio(queue, inner))
    wait_until(gate("in").is_open, 20, "the inner task in the stand-in")
    assert future.cancel()
    wait_until(gate("out").is_open, 20, "the end of the inner task")


@pytest.fixture
def other_worker(one_worker, server_url, queue_name, wait_until):
    """A second supervisor with one worker; both workers are there."""
    command = [sys.executable, *node_command(server_url, queue_name)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            assert one_worker.submit(abs, -1).result(20) == 1
            wait_until(lambda: len(one_worker.workers()) == 2, 20, "the other worker")
            yield process.pid
        finally:
            process.terminate()


def test_as_long_as_another_supervisor_may_help_no_task_fails(
    one_worker, other_worker, gate, wait_until
):
    queue = one_worker

    def hold():
        where = "other" if os.getppid() == other_worker else "own"
        gate(f"in {where}").open()
        gate(f"go {where}").wait(60)

    for _ in range(2):
        queue.submit(hold)
    for where in ("own", "other"):
        wait_until(gate(f"in {where}").is_open, 20, "a task in each worker")
    gate("go own").open()

    def count(n):
        return 1 + in_asyncio(queue, count, n - 1) if n else 0

    future = queue.submit(count, MOST_STAND_INS + 1)
    wait_until(lambda: len(queue.workers()) == MOST_STAND_INS + 2, 60, "all stand-ins")
    with pytest.raises(TimeoutError):
        future.result(2.5 * STAND_IN_TIME)
    gate("go other").open()
    assert future.result(60) == MOST_STAND_INS + 1
