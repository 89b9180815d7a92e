"""A delivery in, a settlement out; the functions come from a real server."""

import json
import os
import tempfile
import threading
import time

import pytest

from nbstreamq.errors import FunctionMissing, VersionMismatch
from nbstreamq.objects.functions import FunctionPickler
from nbstreamq.objects.pickling import dump
from nbstreamq.objects.results import load_outcomes
from nbstreamq.wire.item_ranges import format_ranges
from nbstreamq.wire.messages import VERSION, Options, Task
from nbstreamq.wire.settlement import Delivery
from nbstreamq.wire.signing import Signer
from nbstreamq.worker.cache import Values
from nbstreamq.worker.execution import Execution
from nbstreamq.worker.output import Output
from nbstreamq.worker.run import Runner
from nbstreamq.worker.slot import SLOT_BYTES, Slot


@pytest.fixture
def execution(store):
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SLOT_BYTES)
        output = Output()
        values = Values(store, Signer("secret", store.keys.queue), "w1")
        yield Execution("w1", Runner(Slot(file.fileno()), output), output, values)


@pytest.fixture
def execute(execution, store):
    """``execute(fn, args, cancelled=, **changes to the task)``: the settlement."""

    def execute(fn, args, /, *, cancelled=(), lane="default", **changes):
        pickled = FunctionPickler().dump(fn)
        store.put_function(pickled.digest, pickled.data)
        fields = {"fn": pickled.digest, "name": "f", "call": "map", "args": dump(args, "args")}
        task = Task(job="s.1", n=10, span=(range(len(args)),), **fields | changes)
        delivery = Delivery(lane=lane, entry_id=b"1-1", task=task, cancelled=cancelled)
        settlement, stopped = execution.execute(delivery)
        assert stopped is None
        return settlement

    return execute


def events(settlement):
    return [(event.kind, format_ranges(event.span)) for event in settlement.events]


def test_results_come_in_one_event(execute):
    settled = execute(lambda x: x + 1, [1, 2, 3])

    assert events(settled) == [("finished", "0:3")]
    event = settled.events[0]
    assert (event.job, event.n, event.worker, event.attempt) == ("s.1", 10, "w1", 1)
    assert load_outcomes(event.body) == ([2, 3, 4], {})
    assert settled.successors == []


def test_what_was_cancelled_is_not_run(execute):
    settled = execute(lambda x: x, [0, 1, 2], cancelled=(range(11, 12),))

    assert events(settled) == [("cancelled", "1:2"), ("finished", "0:1,2:3")]
    assert load_outcomes(settled.events[1].body)[0] == [0, 2]


def test_nothing_is_run_where_all_is_cancelled(execute):
    settled = execute(lambda x: x, [0, 1, 2], cancelled=(range(1000),))

    assert events(settled) == [("cancelled", "0:3")]


def test_one_that_failed_is_retried_alone(execute):
    opts = Options(retries=2, backoff=0.5).encode()

    settled = execute(lambda x: 1 // x, [1, 0, 2], opts=opts, attempt=2)

    assert events(settled) == [("retried", "1:2"), ("finished", "0:1,2:3")]
    assert "ZeroDivisionError" in json.loads(settled.events[0].body)["error"]
    (successor,) = settled.successors
    assert (format_ranges(successor.task.span), successor.task.attempt) == ("1:2", 3)
    assert successor.delay == 1.0  # doubled, as it is the second retry


def test_the_last_attempt_is_not_retried(execute):
    settled = execute(lambda x: 1 // x, [0], opts=Options(retries=2).encode(), attempt=3)

    assert events(settled) == [("finished", "0:1")]
    assert isinstance(load_outcomes(settled.events[0].body)[1][0], ZeroDivisionError)


def test_a_function_that_has_gone_fails_all_items(execute):
    settled = execute(lambda x: x, [0, 1], fn="0" * 32)

    values, errors = load_outcomes(settled.events[0].body)
    assert values == [None, None]
    assert all(isinstance(errors[k], FunctionMissing) for k in (0, 1))


@pytest.mark.parametrize("call", ["map", "apply"])
def test_a_task_of_another_version_fails_and_says_what_to_do(execute, call):
    settled = execute(abs, [-1], call=call, version="0.9.9")

    error = load_outcomes(settled.events[0].body)[1][0]
    assert isinstance(error, VersionMismatch)
    assert "nbstreamq 0.9.9" in str(error)
    assert f"this worker has {VERSION}: install the same version" in str(error)


def test_arguments_that_can_not_be_unpickled_fail_all_items(execute):
    settled = execute(lambda x: x, [0, 1], args=b"garbage")

    assert len(load_outcomes(settled.events[0].body)[1]) == 2


def count_up():
    yield from range(3)


def fail():
    raise KeyError("no")


def leave():
    raise SystemExit(3)


@pytest.mark.parametrize(
    "fn",
    [
        lambda: 6,
        lambda: {"a": [1]},
        lambda: "x" * 2**16,
        threading.Lock,
        count_up,
        fail,
        leave,
    ],
    ids=["value", "nested", "large", "unpicklable", "generator", "error", "exit"],
)
def test_the_short_way_of_a_lone_call_ends_as_the_long_one_does(execute, fn):
    call = {"call": "apply", "args": dump(((), {}), "args")}
    short = execute(fn, [0], **call)
    long = execute(fn, [0], **call, opts=Options(retries=1).encode(), attempt=2)

    assert [(e.kind, e.job, e.n, e.span, e.worker) for e in short.events] == [
        (e.kind, e.job, e.n, e.span, e.worker) for e in long.events
    ]
    outcomes = [load_outcomes(s.events[-1].body) for s in (short, long)]
    assert outcomes[0][0] == outcomes[1][0]
    assert repr(outcomes[0][1]) == repr(outcomes[1][1])
    assert (short.ended, short.successors) == (long.ended, [])
    assert [g.reason for g in short.given_up] == [g.reason for g in long.given_up]
    assert 0 < short.events[-1].started <= time.time()
