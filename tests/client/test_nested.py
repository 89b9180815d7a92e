"""Tasks that submit tasks and wait for them, also where one worker does it all."""

from __future__ import annotations

import concurrent.futures

import pytest

WAITS = {
    "job": lambda job: job.result(),
    "future": lambda job: job[3].result(),
    "wait": lambda job: concurrent.futures.wait(job[:]),
}


class TestNested:
    @pytest.fixture
    def one_worker(self, make_queue):
        return make_queue("-nested", workers=1)

    def test_recursion_with_one_worker(self, one_worker):
        @one_worker.task
        def fib(n):
            if n < 2:
                return n
            a, b = fib(n - 1), fib(n - 2)
            return a.result() + b.result()

        assert fib(8).result(30) == 21

    def test_map_inside_a_task(self, one_worker):
        queue = one_worker

        def total(n):
            return sum(queue.map(lambda x: x * x, range(n)))

        assert queue.submit(total, 10).result(20) == 285
        assert list(queue.map(total, [1, 2, 3])) == [0, 1, 5]

    def test_all_ways_to_wait(self, one_worker):
        queue = one_worker

        def ask():
            called = queue.submit(abs, -1)()
            job = queue.map(abs, [-2, -3])
            listed = job.result()
            completed = sorted(f.result() for f in queue.map(abs, [-4, -5]).as_completed())
            return called, listed, completed

        assert queue.submit(ask).result(20) == (1, [2, 3], [4, 5])

    @pytest.mark.parametrize("lanes", [[None, None], ["high", "low"]], ids=["nested", "lanes"])
    def test_ways_of_the_standard_library_to_wait(self, one_worker, lanes):
        queue = one_worker

        def ask():
            first, second = [queue.options(lane=lane).submit(abs, -1) for lane in lanes]
            concurrent.futures.wait([first, second])
            futures = [queue.options(lane=lane).submit(abs, -3) for lane in lanes]
            completed = [f.result() for f in concurrent.futures.as_completed(futures)]
            late = queue.options(delay=60).submit(abs, -4)
            _, waits = concurrent.futures.wait([late], timeout=0.01)
            late.cancel()
            return first.result(0), second.result(0), completed, len(waits)

        assert queue.submit(ask).result(20) == (1, 1, [3, 3], 1)

    def test_error_of_the_inner_call(self, one_worker):
        queue = one_worker

        def outer():
            return queue.submit(int, "x").result()

        assert isinstance(queue.submit(outer).exception(20), ValueError)

    def test_queue_by_name_in_a_task(self, one_worker, server_url):
        name = one_worker.name

        def outer():
            from nbstreamq import TaskQueue

            with TaskQueue(name, server_url) as queue:
                return queue.submit(abs, -1).result(10)

        assert one_worker.submit(outer).result(20) == 1

    def test_with_two_workers_both_work(self, queue, gate, wait_until):
        hold = gate.hold

        def outer():
            import os

            return {*queue.map(lambda x: hold(x) or os.getpid(), [0, 0], chunksize=1)}

        future = queue.submit(outer)
        wait_until(lambda: gate.n_reached == 2, describe="both workers run an inner task")
        gate.open()
        assert future.result(20) == {w.pid for w in queue.workers()}

    @pytest.mark.parametrize("wait", WAITS)
    def test_a_task_that_is_cancelled_cancels_what_it_submitted(
        self, queue, gate, wait_until, wait
    ):
        hold, wait_for = gate.hold, WAITS[wait]

        def outer():
            queue.submit(hold)
            wait_for(queue.map(hold, range(4), chunksize=1))

        future = queue.submit(outer)
        wait_until(lambda: gate.n_reached == 2, describe="both workers run an inner task")
        assert future.cancel()
        wait_until(lambda: {w.state for w in queue.workers()} == {"idle"}, 20, "idle workers")
        # What is nested would come first, and hold the workers
        assert queue.map(abs, [-1] * 4, chunksize=1).result(20) == [1] * 4
        assert gate.n_reached <= 3  # one may begin between the two cancellations
