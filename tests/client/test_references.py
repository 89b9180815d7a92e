"""Futures and Refs as arguments: what test_options.py leaves open."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from nbstreamq import NotPicklable


def test_future_in_an_object(shared_queue):
    @dataclass
    class Pair:
        left: object
        right: object

    pair = Pair(shared_queue.submit(abs, -1), 2)
    assert shared_queue.submit(lambda p: p.left + p.right, pair).result(10) == 3


def test_failure_goes_down_a_chain(shared_queue):
    failing = shared_queue.submit(int, "x")
    future = shared_queue.submit(str, [failing])
    error = shared_queue.submit(abs, future).exception(10)
    assert error is failing.exception()


def test_future_of_another_queue(shared_queue, make_queue):
    other = make_queue("-other", workers=1)
    assert shared_queue.submit(abs, other.submit(abs, -3)).result(10) == 3


def test_callbacks_of_a_call_that_waits(shared_queue, gate):
    called = []
    held = shared_queue.submit(gate.hold, 1)
    future = shared_queue.submit(abs, held)
    future.add_done_callback(called.append)
    gate.open()
    assert future.result(10) == 1
    shared_queue.submit(int).result(10)  # callbacks run in the order of the results
    assert called == [future]


def test_retries_of_a_call_with_futures(shared_queue, tmp_path):
    path = tmp_path / "failed"

    def fail_once(x):
        if not path.exists():
            path.touch()
            raise ConnectionError
        return x

    argument = shared_queue.submit(abs, -4)
    assert shared_queue.options(retries=1).submit(fail_once, [argument]).result(10) == [4]


def test_ref_of_a_large_value(shared_queue):
    value = bytes(5_000_000)
    ref = shared_queue.put(value)
    assert list(shared_queue.map(len, [ref] * 4)) == [5_000_000] * 4


def test_ref_outside_a_task(shared_queue):
    with pytest.raises(NotPicklable, match="Pass it to a task as an argument"):
        pickle.dumps(shared_queue.put(1))


def test_what_a_task_does_to_a_value_stays_its_own(make_queue):
    queue = make_queue("-ref", workers=1)
    ref = queue.put([1])

    def append(values):
        values.append(2)
        return values

    assert queue.submit(append, ref).result(10) == [1, 2]
    assert queue.submit(append, ref).result(10) == [1, 2]
