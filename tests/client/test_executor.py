"""A queue is an Executor, and a future a Future, as `concurrent.futures` documents them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import logging
import os
import signal
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait

import pytest

from nbstreamq import NbstreamqError, QueueClosed, TaskQueue
from tests.interrupts import Armed


class TestSubmit:
    def test_is_an_executor(self, shared_queue):
        assert isinstance(shared_queue, concurrent.futures.Executor)
        assert isinstance(shared_queue.submit(int), concurrent.futures.Future)

    def test_passes_arguments(self, shared_queue):
        def show(*args, **kwargs):
            return args, kwargs

        expected = ((1, "a"), {"self": 2, "fn": 3, "timeout": 4})
        assert shared_queue.submit(show, 1, "a", self=2, fn=3, timeout=4).result() == expected

    def test_result_and_exception_of_a_success(self, shared_queue):
        future = shared_queue.submit(pow, 2, 10)
        assert future.result() == 1024
        assert future.exception() is None
        assert future.done()
        assert not future.running()
        assert not future.cancelled()

    def test_result_and_exception_of_a_failure(self, shared_queue):
        future = shared_queue.submit(int, "seven")
        error = future.exception(10)
        assert type(error) is ValueError
        with pytest.raises(ValueError, match="seven") as caught:
            future.result()
        assert caught.value is error

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_what_is_no_exception_fails_the_call_and_not_the_worker(self, shared_queue, error):
        def fail():
            raise error("on purpose")

        def pid():
            return os.getpid()

        workers = {w.pid for w in shared_queue.workers()}
        assert type(shared_queue.submit(fail).exception(10)) is error
        assert shared_queue.submit(pid).result(10) in workers

    def test_stop_iteration_arrives(self, shared_queue):
        assert isinstance(shared_queue.submit(next, iter(())).exception(10), StopIteration)

    def test_timeout_leaves_the_call_running(self, shared_queue, gate):
        future = shared_queue.submit(gate.hold, 7)
        for ask in (future.result, future.exception, lambda t: future(timeout=t)):
            with pytest.raises(TimeoutError, match=future.id):
                ask(0.01)
        with pytest.raises(TimeoutError):
            future(block=False)
        gate.open()
        assert future(timeout=10) == 7
        assert future(block=False) == 7

    def test_from_several_threads_at_once(self, shared_queue):
        def submit_many(first):
            futures = [shared_queue.submit(pow, first + i, 2) for i in range(50)]
            return [f.result(20) for f in futures]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            found = list(threads.map(submit_many, range(0, 400, 50)))
        assert list(itertools.chain(*found)) == [i * i for i in range(400)]

    def test_maps_from_several_threads_at_once(self, shared_queue):
        def map_many(k):
            return list(shared_queue.map(lambda x: x + k, range(200), timeout=20))

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            found = list(threads.map(map_many, range(8)))
        assert found == [list(range(k, k + 200)) for k in range(8)]


class TestMap:
    def test_results_come_in_input_order(self, shared_queue):
        def slow_at_first(i):
            import time

            time.sleep(0.02 * (i == 0))
            return i

        assert list(shared_queue.map(slow_at_first, range(100))) == list(range(100))

    def test_the_shortest_iterable_ends_it(self, shared_queue):
        assert list(shared_queue.map(pow, [2, 3, 4], (5, 6))) == [2**5, 3**6]
        assert list(shared_queue.map(pow, itertools.count(2), iter([2, 2]))) == [4, 9]

    @pytest.mark.parametrize("inputs", [[()], [[1], []], [iter(())], [range(0), [1]]])
    def test_no_items(self, shared_queue, inputs):
        job = shared_queue.map(pow, *inputs)
        assert job.done()
        assert list(job) == job.result(0) == []

    def test_takes_all_inputs_at_once(self, shared_queue):
        taken = []
        job = shared_queue.map(str, (taken.append(i) or i for i in range(100)))
        assert len(taken) == len(job) == 100
        assert list(job) == [str(i) for i in range(100)]

    def test_tuples_are_items(self, shared_queue):
        assert list(shared_queue.map(len, [(1, 2), (), ("a",)])) == [2, 0, 1]

    def test_next(self, shared_queue):
        job = shared_queue.map(abs, [-1, -2])
        assert (next(job), next(job)) == (1, 2)
        with pytest.raises(StopIteration):
            next(job)

    def test_exception_comes_at_its_item(self, shared_queue):
        results = shared_queue.map(lambda x: 1 / x, [1, 2, 0, 4])
        assert next(results) == 1
        assert next(results) == 0.5
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_items_after_an_exception_are_there(self, shared_queue):
        job = shared_queue.map(lambda x: 1 / x, [1, 0, 4])
        with pytest.raises(ZeroDivisionError):
            job.result(10)
        assert job[2].result() == 0.25
        assert list(job.errors) == [1]
        assert isinstance(job.errors[1], ZeroDivisionError)

    def test_exception_of_the_inputs_is_raised_and_cancels_the_rest(self, queue, gate):
        def inputs():
            yield 1
            raise LookupError("no more")

        with pytest.raises(LookupError, match="no more"):
            queue.map(gate.hold, inputs())
        assert queue.status().open_jobs == 0
        assert queue.submit(int).result(10) == 0

    def test_timeout_counts_from_the_call(self, shared_queue, gate):
        job = shared_queue.map(gate.hold, [1, 2], timeout=0.05)
        with pytest.raises(TimeoutError, match=job.id):
            next(iter(job))
        gate.open()
        assert job.result(10) == [1, 2]

    @pytest.mark.parametrize("chunksize", [1, 3, 10, 1000])
    def test_chunksize(self, shared_queue, chunksize):
        job = shared_queue.map(pow, range(10), itertools.repeat(2), chunksize=chunksize)
        assert list(job) == [i * i for i in range(10)]

    @pytest.mark.parametrize("chunksize", [0, -1, 1.5, "many"])
    def test_impossible_chunksize(self, shared_queue, chunksize):
        error = TypeError if chunksize == 1.5 else ValueError
        with pytest.raises(error, match=r"chunksize is .*'auto' or an integer from 1"):
            shared_queue.map(abs, [1], chunksize=chunksize)

    @pytest.mark.parametrize("buffersize", [1, 2, 7, 64])
    def test_buffersize_takes_inputs_as_results_are_taken(self, shared_queue, buffersize):
        taken = itertools.count()
        n_taken = 0

        def endless():
            nonlocal n_taken
            while True:
                n_taken = next(taken)
                yield n_taken

        job = shared_queue.map(lambda x: 2 * x, endless(), buffersize=buffersize)
        for i in range(100):
            assert next(job) == 2 * i
            assert n_taken < i + 2 * buffersize
        job.cancel()

    def test_buffersize_of_a_finite_input(self, shared_queue):
        assert list(shared_queue.map(abs, iter(range(-20, 0)), buffersize=3)) == [*range(20, 0, -1)]

    def test_endless_inputs_are_no_reason_to_wait_at_shutdown(self, make_queue):
        queue = make_queue("-endless")
        job = queue.map(abs, itertools.count(), buffersize=4)
        assert [next(job) for _ in range(10)] == list(range(10))
        queue.shutdown()

    @pytest.mark.parametrize("n_yielded", [0, 1, 5])
    def test_buffersize_counts_as_in_the_standard_library(self, shared_queue, n_yielded):
        inputs = itertools.count()
        job = shared_queue.map(abs, inputs, buffersize=4)
        for _ in range(n_yielded):
            next(job)
        assert next(inputs) == 4 + n_yielded
        job.cancel()

    def test_a_chunk_is_not_larger_than_the_buffer(self, shared_queue):
        inputs = itertools.count()
        job = shared_queue.map(abs, inputs, buffersize=4, chunksize=100)
        assert next(inputs) == 4
        job.cancel()

    def test_cancelled_with_a_buffersize_it_takes_no_more_inputs(self, shared_queue):
        inputs = itertools.count()
        job = shared_queue.map(abs, inputs, buffersize=4)
        next(job)
        n_taken = len(job)
        job.cancel()
        job.wait(10)
        for _ in range(n_taken):
            with contextlib.suppress(CancelledError, StopIteration):
                next(job)
        assert next(inputs) == n_taken

    def test_results_that_a_buffersize_does_not_keep_are_refused(self, shared_queue):
        job = shared_queue.map(abs, range(10), buffersize=2)
        for ask in (job.result, job.wait, lambda: next(job.as_completed())):
            with pytest.raises(NbstreamqError, match="buffersize"):
                ask()
        assert job[0].result(10) == next(job) == 0
        with pytest.raises(NbstreamqError, match="buffersize"):
            job[0]
        assert list(job) == list(range(1, 10))
        with pytest.raises(NbstreamqError, match="buffersize"):
            job.result()

    @pytest.mark.parametrize("options", [{}, {"buffersize": 2}, {"chunksize": 2}], ids=str)
    def test_without_iterables_it_is_empty(self, shared_queue, options):
        job = shared_queue.map(abs, **options)
        assert job.done()
        assert list(job) == []


class TestIteration:
    """A job is the iterator that `Executor.map` returns."""

    def test_each_result_is_yielded_once(self, shared_queue):
        job = shared_queue.map(abs, range(4))
        assert iter(job) is job
        assert (next(job), list(job), list(job)) == (0, [1, 2, 3], [])

    def test_two_loops_share_it(self, shared_queue):
        job = shared_queue.map(abs, range(6))
        assert list(zip(job, job, strict=True)) == [(0, 1), (2, 3), (4, 5)]

    def test_in_batches(self, shared_queue):
        job, batches = shared_queue.map(abs, range(5)), []
        while batch := list(itertools.islice(job, 2)):
            batches.append(batch)
        assert batches == [[0, 1], [2, 3], [4]]

    def test_results_can_be_read_again_elsewhere(self, shared_queue):
        job = shared_queue.map(abs, range(4))
        assert list(job) == [0, 1, 2, 3]
        assert job.result(10) == job.result(0) == [0, 1, 2, 3]
        assert [f.result(0) for f in job[:]] == [0, 1, 2, 3]

    def test_goes_on_behind_a_failure(self, shared_queue):
        job = shared_queue.map(lambda x: 1 / x, [1, 2, 0, 4])
        assert next(job) == 1
        with pytest.raises(ZeroDivisionError):
            list(job)
        assert list(job) == [0.25]

    def test_goes_on_where_it_timed_out(self, shared_queue, gate):
        job = shared_queue.map(gate.hold, [1, 2], timeout=0.05)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                next(job)
        gate.open()
        job.wait(10)
        assert list(job) == [1, 2]

    @pytest.mark.parametrize("options", [{}, {"buffersize": 3}], ids=str)
    def test_by_several_threads(self, shared_queue, options):
        job = shared_queue.map(abs, range(500), chunksize=3, **options)
        with ThreadPoolExecutor(4) as pool:
            parts = [f.result(20) for f in [pool.submit(list, job) for _ in range(4)]]
        assert sorted(x for part in parts for x in part) == list(range(500))
        assert all(part == sorted(part) for part in parts)

    @pytest.mark.parametrize("options", [{}, {"buffersize": 4}], ids=str)
    def test_closing_cancels_the_rest(self, queue, gate, options):
        hold = gate.hold
        with contextlib.closing(
            queue.map(lambda x: hold(x) if x else x, range(10), chunksize=1, **options)
        ) as job:
            assert next(job) == 0
        assert list(job) == []
        assert job.done()
        assert queue.submit(abs, -1).result(10) == 1

    def test_no_job_is_kept_by_a_cycle(self, shared_queue):
        job = shared_queue.map(abs, range(3))
        list(job)
        gone = weakref.ref(job)
        gc.disable()
        try:
            del job
            assert gone() is None
        finally:
            gc.enable()


class TestJob:
    def test_is_a_sequence_of_futures(self, shared_queue):
        job = shared_queue.map(str, range(5))
        assert len(job) == 5
        assert [f.result() for f in job[1:4:2]] == ["1", "3"]
        assert job[-1].result() == "4"
        assert job[4] is job[-1]
        with pytest.raises(IndexError):
            job[5]

    def test_as_completed(self, queue, gate):
        hold = gate.hold
        job = queue.map(lambda x: hold(x) if x == 0 else x, range(4), chunksize=1)
        ended = job.as_completed(20)
        early = {next(ended).result() for _ in range(3)}
        assert early == {1, 2, 3}
        gate.open()
        assert [f.result() for f in ended] == [0]

    def test_as_completed_in_time(self, queue, gate):
        job = queue.map(gate.hold, range(2))
        with pytest.raises(TimeoutError, match=job.id):
            next(job.as_completed(0.02))

    def test_cancel(self, queue, gate, wait_until):
        job = queue.map(gate.hold, range(100), chunksize=1)
        wait_until(lambda: gate.n_reached == 2, describe="both workers are held up")
        assert job.cancel()
        assert job.done()
        assert not job.cancel()
        with pytest.raises(CancelledError):
            job.result(0)
        # The running ones are interrupted, and the workers free.
        assert queue.submit(abs, -1).result(10) == 1
        assert gate.n_reached == 2

    def test_callback(self, shared_queue, gate):
        called = threading.Event()
        found = []
        job = shared_queue.map(gate.hold, range(3))
        job.add_done_callback(lambda j: (found.append(j), called.set()))
        assert not found
        gate.open()
        assert called.wait(10)
        job.add_done_callback(found.append)
        assert found == [job, job]

    def test_counts_and_repr(self, shared_queue):
        job = shared_queue.map(lambda x: 1 // x, [0, 1, 2])
        job.wait(10)
        assert {s.value: n for s, n in job.counts().items() if n} == {"done": 2, "failed": 1}
        assert "2 done, 1 failed" in repr(job)
        assert "<lambda>" in repr(job)


class TestShutdown:
    def test_waits_for_what_was_submitted(self, make_queue):
        queue = make_queue()
        futures = [queue.submit(pow, i, 2) for i in range(20)]
        queue.shutdown()
        assert [f.result(0) for f in futures] == [i * i for i in range(20)]

    def test_without_waiting(self, make_queue, gate):
        queue = make_queue()
        future = queue.submit(gate.hold, 1)
        queue.shutdown(wait=False)
        assert not future.done()
        with pytest.raises(RuntimeError):
            queue.submit(int)
        gate.open()
        assert future.result(10) == 1

    def test_cancel_futures(self, make_queue, gate, wait_until):
        queue = make_queue(workers=1)
        running = queue.submit(gate.hold, "ran")
        waiting = [queue.submit(gate.hold) for _ in range(5)]
        job = queue.map(gate.hold, range(5))
        wait_until(running.running, describe="the first task runs")
        queue.shutdown(wait=False, cancel_futures=True)
        assert all(f.cancelled() for f in [*waiting, *job[:]])
        gate.open()
        assert running.result(10) == "ran"
        assert gate.n_reached == 1

    @pytest.mark.parametrize("wait", [True, False])
    def test_then_nothing_can_be_submitted(self, make_queue, wait):
        queue = make_queue()
        queue.shutdown(wait=wait)
        for call in (
            lambda: queue.submit(int),
            lambda: queue.map(int, [1]),
            lambda: queue.everywhere(int),
            lambda: queue.put(1),
            lambda: queue.run(1),
            lambda: queue.options(retries=1).submit(int),
        ):
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                call()
        with pytest.raises(QueueClosed):
            queue.submit(int)

    def test_twice(self, make_queue):
        queue = make_queue()
        queue.submit(int).result(10)
        queue.shutdown()
        queue.shutdown(wait=False, cancel_futures=True)

    def test_context_manager(self, server_url, queue_name):
        with TaskQueue(queue_name, server_url, workers=1) as queue:
            future = queue.submit(abs, -3)
        assert future.result(0) == 3
        with pytest.raises(RuntimeError):
            queue.submit(int)

    def test_results_stay(self, make_queue):
        queue = make_queue()
        job, failed = queue.map(abs, [-1, -2]), queue.submit(int, "x")
        queue.shutdown()
        assert list(job) == [1, 2]
        assert isinstance(failed.exception(), ValueError)

    def test_of_one_queue_leaves_another_of_the_same_name(self, make_queue):
        first, second = make_queue(), make_queue()
        assert first.submit(abs, -1).result(10) == 1
        assert second.submit(abs, -2).result(10) == 2
        first.shutdown()
        assert second.submit(abs, -3).result(10) == 3


class TestWaiting:
    def test_as_completed(self, shared_queue):
        futures = {shared_queue.submit(abs, -i): i for i in range(20)}
        assert {futures[f] for f in as_completed(futures, 20)} == set(range(20))
        assert all(f.result() == i for f, i in futures.items())

    def test_wait_for_all(self, shared_queue):
        futures = [shared_queue.submit(abs, -i) for i in range(5)]
        done, not_done = wait(futures, 20)
        assert done == set(futures)
        assert not not_done

    def test_wait_for_the_first(self, queue, gate):
        held, quick = queue.submit(gate.hold), queue.submit(abs, 1)
        done, not_done = wait([held, quick], 20, concurrent.futures.FIRST_COMPLETED)
        assert (done, not_done) == ({quick}, {held})

    def test_wait_for_the_first_exception(self, queue, gate):
        held, failing = queue.submit(gate.hold), queue.submit(int, "x")
        done, not_done = wait([held, failing], 20, concurrent.futures.FIRST_EXCEPTION)
        assert (done, not_done) == ({failing}, {held})

    def test_wait_for_a_cancelled_one(self, make_queue):
        queue = make_queue(workers=0)
        future = queue.submit(int)
        assert future.cancel()
        done, _ = wait([future], 5)
        assert done == {future}
        assert list(as_completed([future], 5)) == [future]

    def test_cancelled_while_others_wait_for_it(self, make_queue):
        queue = make_queue(workers=0)
        future = queue.submit(int)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            begun = threading.Event()
            waiting = threads.submit(lambda: (begun.set(), future.result(20)))
            assert begun.wait(5)
            future.cancel()
            assert isinstance(waiting.exception(5), CancelledError)

    def test_callbacks(self, shared_queue, gate, caplog):
        called = []
        last = threading.Event()

        def fail(future):
            called.append(future)
            raise ValueError("the callback's own fault")

        future = shared_queue.submit(gate.hold, 1)
        future.add_done_callback(called.append)
        future.add_done_callback(fail)
        future.add_done_callback(lambda f: last.set())
        with caplog.at_level(logging.ERROR):
            gate.open()
            assert last.wait(10)
        future.add_done_callback(called.append)
        assert called == [future] * 3
        assert "the callback's own fault" in caplog.text

    def test_callbacks_are_kept_in_one_list(self, shared_queue):
        future = shared_queue.submit(abs, -1)
        # As if several threads asked for it before there is one.
        found = {id(future._make_list("_done_callbacks")) for _ in range(3)}
        assert found == {id(future._done_callbacks)}

    def test_callback_may_submit(self, shared_queue):
        found = []
        both = threading.Event()

        def go_on(future):
            found.append(future.result())
            if len(found) == 2:
                both.set()
            else:
                shared_queue.submit(abs, -2).add_done_callback(go_on)

        shared_queue.submit(abs, -1).add_done_callback(go_on)
        assert both.wait(10)
        assert found == [1, 2]


class TestCancel:
    def test_waiting(self, make_queue):
        queue = make_queue(workers=0)
        future = queue.submit(int)
        assert not future.running()
        assert future.cancel()
        assert future.cancelled()
        assert future.done()
        assert future.cancel()
        for ask in (future.result, future.exception):
            with pytest.raises(CancelledError):
                ask(1)

    def test_running(self, queue, gate, wait_until):
        future = queue.submit(gate.hold)
        wait_until(future.running, describe="the task runs")
        assert future.cancel()
        assert future.cancelled()
        assert queue.submit(abs, -1).result(10) == 1

    def test_done(self, shared_queue):
        future = shared_queue.submit(int)
        assert future.result(10) == 0
        assert not future.cancel()
        assert not future.cancelled()

    def test_one_of_a_map(self, make_queue, gate, wait_until):
        queue = make_queue(workers=1)
        job = queue.map(gate.hold, range(4))
        wait_until(lambda: gate.n_reached == 1, describe="the first item runs")
        assert job[2].cancel()
        # Cancels arrive in order: when the running item has made room, the other is known, too.
        assert job[0].cancel()
        wait_until(lambda: gate.n_reached == 2, describe="the next item runs")
        gate.open()
        job.wait(10)
        assert [f.cancelled() for f in job[:]] == [True, False, True, False]
        assert gate.n_reached == 3

    def test_callback_of_a_cancelled_one(self, make_queue):
        called = []
        queue = make_queue(workers=0)
        future = queue.submit(int)
        future.add_done_callback(called.append)
        future.cancel()
        assert called == [future]


class TestInterrupt:
    @pytest.mark.parametrize("wait_for", ["future", "job", "iteration", "as_completed"])
    def test_leaves_the_job_intact(self, queue, gate, wait_until, wait_for):
        job = queue.map(gate.hold, range(4), chunksize=1)
        waits = {
            "future": job[0].result,
            "job": job.result,
            "iteration": lambda: list(job),
            "as_completed": lambda: list(job.as_completed()),
        }
        wait_until(lambda: gate.n_reached == 2, describe="the tasks run")
        interrupt = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            waits[wait_for]()
        interrupt.join()
        gate.open()
        assert job.result(10) == [0, 1, 2, 3]
        assert queue.submit(abs, -1).result(10) == 1


def test_a_callback_comes_after_somebody_has_waited_for_another_call(queue):
    """Who waits reads the events; when he is done, somebody else must."""
    for _ in range(20):
        queue.submit(abs, -1).result(30)
        called = threading.Event()
        queue.submit(abs, -2).add_done_callback(lambda _, called=called: called.set())
        assert called.wait(30)


def test_threads_that_wait_in_turns_all_get_their_results(queue):
    def ask(n):
        return [queue.submit(abs, -i).result(60) for i in range(n)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, [40] * 6)) == [list(range(40))] * 6


def slow_identity(x):
    time.sleep(0.002)
    return x


def test_an_interrupt_during_a_wait_leaves_everything_in_order(queue, monkeypatch):
    """Ctrl-C may fall into the midst of an event: none may be lost, or taken by halves."""
    monkeypatch.setattr("nbstreamq.client.waiting.SPAN", 0)  # else the second one cancels
    job = queue.map(slow_identity, range(600), chunksize=1)
    n_interrupts = 0
    with Armed() as armed:
        while not job.done() and n_interrupts < 30:
            n_interrupts += armed.once(lambda: job.wait(60))
    assert job.result(60) == list(range(600))
    assert n_interrupts
