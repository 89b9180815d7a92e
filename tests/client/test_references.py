"""Futures and Refs as arguments, and tasks that submit tasks."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from nbstreamq import NbstreamqError, TaskQueue


class TestFuturesAsArguments:
    def test_stand_for_their_results(self, shared_queue):
        a, b = shared_queue.submit(abs, -1), shared_queue.submit(abs, -2)
        assert shared_queue.submit(pow, b, a).result(10) == 2
        assert shared_queue.submit(dict, x=a, y=b).result(10) == {"x": 1, "y": 2}

    def test_in_containers(self, shared_queue):
        a, b = shared_queue.submit(abs, -1), shared_queue.submit(list, "xy")
        nested = {"a": [a, (b, {"again": a})]}
        expected = {"a": [1, (["x", "y"], {"again": 1})]}
        assert shared_queue.submit(dict, nested).result(10) == expected

    def test_in_an_object(self, shared_queue):
        @dataclass
        class Pair:
            left: object
            right: object

        pair = Pair(shared_queue.submit(abs, -1), 2)
        assert shared_queue.submit(lambda p: p.left + p.right, pair).result(10) == 3

    def test_chain(self, shared_queue):
        future = shared_queue.submit(int)
        for _ in range(20):
            future = shared_queue.submit(lambda x: x + 1, future)
        assert future.result(20) == 20

    def test_items_of_a_job(self, shared_queue):
        job = shared_queue.map(lambda x: x * x, range(10))
        assert shared_queue.submit(sum, job[:]).result(10) == 285

    def test_that_fail_fail_the_call(self, shared_queue):
        failing = shared_queue.submit(int, "x")
        future = shared_queue.submit(str, [failing])
        assert isinstance(future.exception(10), ValueError)
        assert isinstance(shared_queue.submit(abs, future).exception(10), ValueError)

    def test_that_are_cancelled(self, make_queue):
        queue = make_queue("-cancelled", workers=0)
        needed = queue.submit(int)
        future = queue.submit(str, needed)
        needed.cancel()
        with pytest.raises(BaseException, match="") as caught:
            future.result(10)
        assert type(caught.value).__name__ == "CancelledError"

    def test_can_be_cancelled_while_they_wait(self, make_queue, gate):
        queue = make_queue("-waiting", workers=1)
        needed = queue.submit(gate.hold, 1)
        future = queue.submit(str, needed)
        assert future.cancel()
        gate.open()
        assert needed.result(10) == 1
        assert future.cancelled()

    def test_replay(self, shared_queue):
        future = shared_queue.submit(pow, shared_queue.submit(abs, -3), 2)
        assert future.result(10) == 9

    def test_cannot_be_captured(self, shared_queue):
        future = shared_queue.submit(int)
        with pytest.raises(TypeError, match="TaskFuture can't be pickled"):
            shared_queue.submit(lambda: future.result())


class TestRefs:
    def test_stand_for_their_value(self, shared_queue):
        ref = shared_queue.put(list(range(1000)))
        assert shared_queue.submit(len, ref).result(10) == 1000
        assert shared_queue.submit(lambda d: d["rows"][-1], {"rows": ref}).result(10) == 999
        assert list(shared_queue.map(lambda r, i: r[i], [ref] * 5, range(5))) == list(range(5))

    def test_tell_what_they_are(self, shared_queue):
        ref = shared_queue.put(b"x" * 10_000)
        assert "bytes, 10,0" in repr(ref)

    def test_outside_a_task(self, shared_queue):
        import pickle

        data = pickle.dumps(shared_queue.put(1))
        with pytest.raises(NbstreamqError, match="outside a task"):
            pickle.loads(data)

    def test_of_one_call_do_not_leak_changes_into_the_next(self, make_queue):
        queue = make_queue("-ref", workers=1)
        ref = queue.put([1])

        def append(values):
            values.append(2)
            return values

        assert queue.submit(append, ref).result(10) == [1, 2]
        assert queue.submit(append, ref).result(10) == [1, 2]


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
        from concurrent.futures import as_completed, wait

        queue = one_worker

        def ask():
            called = queue.submit(abs, -1)()
            job = queue.map(abs, [-2, -3])
            listed = job.result()
            completed = sorted(f.result() for f in queue.map(abs, [-4, -5]).as_completed())
            return called, listed, completed

        assert queue.submit(ask).result(20) == (1, [2, 3], [4, 5])

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


class TestClient:
    def test_ready_client(self, client, queue_name):
        with TaskQueue(queue_name, client=client, workers=1) as queue:
            assert queue.submit(os.getpid).result(10) == queue.workers()[0].pid
        assert client.ping()

    def test_not_with_a_url(self, client, queue_name, server_url):
        with pytest.raises(ValueError, match="not both"):
            TaskQueue(queue_name, server_url, client=client)
