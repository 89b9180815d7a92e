"""What nbstreamq promises, one idea a test, from the first call to the finer points."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import traceback

import pytest

from nbstreamq import NbstreamqError, NotPicklable, TaskQueue, track


def test_map_runs_a_function_on_many_inputs(q):
    assert list(q.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]


def test_submit_runs_it_once_and_gives_a_future(q):
    future = q.submit(pow, 2, 10)
    assert future.result() == 1024


def test_calls_run_in_other_processes(q):
    assert q.submit(os.getpid).result() != os.getpid()


def test_a_future_can_be_called(q):
    future = q.submit(pow, 2, 10)
    assert future() == 1024
    assert future(block=False) == 1024
    assert future(timeout=3) == 1024


def test_a_decorated_function_submits_when_it_is_called(q):
    @q.task
    def double(x):
        return 2 * x

    assert double(21)() == 42


def test_functions_take_along_what_they_use(q):
    factor = 10

    def scale(x):
        return factor * x

    def scale_and_add(x):
        return scale(x) + 1

    assert list(q.map(scale_and_add, [1, 2])) == [11, 21]


def test_what_they_use_is_as_it_is_at_the_call(q):
    numbers = [1, 2]
    first = q.submit(lambda: sum(numbers))
    numbers.append(3)
    second = q.submit(lambda: sum(numbers))
    assert (first(), second()) == (3, 6)


def test_results_come_in_the_order_of_the_inputs(q):
    def slow_at_first(x):
        import time

        time.sleep(0.05 if x == 0 else 0)
        return x

    assert list(q.map(slow_at_first, range(4))) == [0, 1, 2, 3]


def test_or_as_they_are_done(q):
    job = q.map(abs, [-1, -2, -3])
    assert {future.result() for future in job.as_completed()} == {1, 2, 3}


def test_a_job_is_a_sequence_of_futures(q):
    job = q.map(abs, [-1, -2, -3])
    assert len(job) == 3
    assert job[1].result() == 2
    assert [future.result() for future in job[1:]] == [2, 3]


def test_map_takes_several_inputs(q):
    assert list(q.map(pow, [2, 3], [4, 5])) == [16, 243]


def test_inputs_may_be_endless(q):
    import itertools

    job = q.map(lambda x: x * x, itertools.count(), buffersize=8)
    assert [next(job) for _ in range(4)] == [0, 1, 4, 9]
    job.cancel()


def test_an_error_is_the_error_of_the_call(q):
    future = q.submit(lambda: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        future.result()


def test_its_traceback_shows_the_line_that_failed(q):
    def inverse(x):
        return 1 / x

    error = q.submit(inverse, 0).exception()
    assert "return 1 / x" in "".join(traceback.format_exception(error))


def test_one_error_does_not_spoil_a_map(q):
    job = q.map(lambda x: 1 // x, [1, 0, 2])
    job.wait()
    assert list(job.errors) == [1]
    assert (job[0](), job[2]()) == (1, 0)


def test_what_cannot_travel_is_said_at_the_call(q, tmp_path):
    with (tmp_path / "log").open("w") as log:

        def write(x):
            log.write(x)

        with pytest.raises(NotPicklable, match="log"):
            q.submit(write, "x")


def test_a_failed_call_can_be_run_here(q):
    future = q.submit(int, "seven")
    assert isinstance(future.exception(), ValueError)
    with pytest.raises(ValueError, match="seven"):
        future.replay()


def test_options_make_a_view_of_the_queue(q):
    patient = q.options(retries=3, backoff=0.1, time_limit=60)
    urgent = q.options(lane="high")
    assert patient.submit(abs, -1)() == urgent.submit(abs, -1)() == 1


def test_retries_run_a_failed_call_again(q, tmp_path):
    marker = tmp_path / "was here"

    @q.task(retries=1)
    def unreliable():
        if not marker.exists():
            marker.touch()
            raise ConnectionError
        return "worked"

    future = unreliable()
    assert future() == "worked"
    assert future.attempts == 2


def test_time_limit_ends_a_call_that_takes_too_long(q):
    def endless():
        while True:
            pass

    with pytest.raises(TimeoutError, match="time_limit"):
        q.options(time_limit=0.1).submit(endless).result()


def test_cancel_ends_a_call_too(q):
    def endless():
        while True:
            pass

    future = q.submit(endless)
    assert future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_results_can_be_arguments_before_they_are_there(q):
    two = q.submit(abs, -2)
    eight = q.submit(pow, two, 3)
    assert q.submit(max, [two, eight])() == 8


def test_large_values_are_stored_once(q):
    table = q.put(list(range(1000)))
    assert list(q.map(lambda i, table: table[i], [1, 2], [table, table])) == [1, 2]


def test_calls_can_make_calls(q):
    def sum_of_squares(n):
        return sum(q.map(lambda x: x * x, range(n)))

    assert q.submit(sum_of_squares, 4)() == 14


def test_everywhere_sets_up_each_worker(q, wait_until):
    def set_up():
        import os

        return os.getpid()

    # One that stood in for a task that waited may still be leaving.
    wait_until(
        lambda: len(set(q.everywhere(set_up))) == len(q.workers()) == 2, describe="two workers"
    )


def test_what_a_call_prints_comes_back(q, capsys):
    def greet(name):
        print(f"Hello {name}!")

    future = q.submit(greet, "world")
    future.result()
    assert future.logs == "Hello world!\n"
    assert "Hello world!" in capsys.readouterr().out


def test_track_shows_how_far_a_call_is(q):
    def work():
        return sum(track(range(10)))

    future = q.submit(work)
    assert future() == 45
    assert future.progress == (10, 10)


def test_status_tells_what_is_going_on(q):
    status = q.status()
    assert status.queue == q.name
    assert len(status.workers) == 2
    assert "2 workers" in repr(status)


def test_asyncio_can_wait_for_futures_and_jobs(q):
    async def main():
        one = await q.submit(abs, -1)
        two = await q.map(abs, [-2, -3])
        three = [result async for result in q.map(abs, [-4])]
        return [one, *two, *three]

    assert asyncio.run(main()) == [1, 2, 3, 4]


def test_whatever_takes_an_executor_takes_a_queue(q):
    futures = [q.submit(abs, -i) for i in range(3)]
    done, not_done = concurrent.futures.wait(futures)
    assert isinstance(q, concurrent.futures.Executor)
    assert {f.result() for f in done} == {0, 1, 2}
    assert not not_done


def test_with_closes_the_queue(server_url, queue_name):
    with TaskQueue(queue_name, server_url, workers=1) as q:
        future = q.submit(abs, -1)
    assert future() == 1
    with pytest.raises(NbstreamqError, match="after shutdown"):
        q.submit(abs, -1)
