"""Many single calls in a row: they share messages, and nobody can tell."""

from __future__ import annotations

import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbstreamq import WorkerLost

N = 2000


class Bomb:
    """Can't be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def invert(x):
    return 1 / x


@pytest.fixture
def quick(queue):
    """The queue, when it knows that `invert` is quick."""
    assert queue.submit(invert, 1).result(10) == 1
    return queue


def test_they_share_messages(quick):
    futures = [quick.submit(invert, x) for x in range(1, N)]
    assert [future.result(20) for future in futures] == [1 / x for x in range(1, N)]
    lanes = {lane.lane: lane for lane in quick.status().lanes}
    assert lanes["default"].over < N / 2
    assert len({future.id for future in futures}) == len(futures)


def test_an_error_is_that_of_its_own_call(quick):
    futures = [quick.submit(invert, x) for x in range(-N // 2, N // 2)]
    with pytest.raises(ZeroDivisionError) as caught:
        futures[N // 2].result(20)
    assert any("invert(0)" in note for note in caught.value.__notes__)
    others = [future for future in futures if future is not futures[N // 2]]
    assert all(future.exception(20) is None for future in others)


def test_arguments_that_can_not_be_unpickled_fail_their_own_call(quick):
    futures = [quick.submit(invert, Bomb() if x == N // 2 else x) for x in range(1, N)]
    failed = [x for x, future in enumerate(futures, start=1) if future.exception(20)]
    assert failed == [N // 2]


def test_what_kills_its_worker_fails_alone(quick):
    def end_at(x):
        return os._exit(3) if x == N // 2 else x

    quick.submit(end_at, 0).result(10)
    futures = [quick.submit(end_at, x) for x in range(N)]
    failed = [x for x, future in enumerate(futures) if future.exception(60)]
    assert failed == [N // 2]
    assert isinstance(futures[N // 2].exception(), WorkerLost)


def test_one_is_cancelled_alone(make_queue):
    queue = make_queue(workers=0)
    futures = [queue.submit(invert, x) for x in range(1, 100)]
    assert futures[50].cancel()
    queue.run(1)
    others = [future for future in futures if future is not futures[50]]
    assert [future.result(20) for future in others] == [1 / x for x in range(1, 100) if x != 51]
    assert futures[50].cancelled()


def test_what_they_capture_is_as_it_was_for_each(quick):
    box = []

    def add(x):
        box.append(x)
        return len(box)

    assert {quick.submit(add, x).result(20) for x in range(5)} == {1}
    futures = [quick.submit(add, x) for x in range(100)]
    assert {future.result(20) for future in futures} == {1}


def test_a_result_is_kept_no_longer_than_its_future(quick):
    def wrap(x):
        return frozenset([x])

    futures = [quick.submit(wrap, x) for x in range(20)]
    results = [weakref.ref(future.result(20)) for future in futures]
    del futures[:10]
    gc.collect()
    assert [ref() is None for ref in results] == [True] * 10 + [False] * 10


def test_one_that_is_done_can_be_replayed(quick):
    futures = [quick.submit(invert, x) for x in range(1, 100)]
    assert [future.result(20) for future in futures][49] == 1 / 50
    assert futures[49].replay() == 1 / 50


def test_one_that_needs_the_result_of_another_can_be_replayed(quick):
    future = quick.submit(invert, quick.submit(abs, -4))
    assert future.result(20) == 0.25
    assert future.replay() == 0.25


def test_options_and_functions_are_not_mixed(quick):
    calls = [
        (quick, invert, 4, 0.25),
        (quick.options(retries=1), invert, 5, 0.2),
        (quick, abs, -3, 3),
        (quick.options(lane="low"), invert, 8, 0.125),
    ]
    futures = [(queue.submit(fn, x), result) for _ in range(50) for queue, fn, x, result in calls]
    assert all(future.result(20) == result for future, result in futures)


def test_calls_of_several_threads(quick):
    def submit_some(first):
        return [quick.submit(invert, x) for x in range(first, first + 500)]

    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(submit_some, range(1, 4001, 500)))
    results = [future.result(30) for part in parts for future in part]
    assert results == [1 / x for x in range(1, 4001)]


def test_what_a_function_captures_is_let_go_when_its_calls_are_over(quick):
    def capture():
        captured = frozenset([1])
        return (lambda: len(captured)), weakref.ref(captured)

    fn, captured = capture()
    assert quick.submit(fn).result(20) == 1
    del fn
    gc.collect()
    assert captured() is None
