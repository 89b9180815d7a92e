"""One call after another, without Redis or supervisor: tests ask for the stop themselves."""

import os
import tempfile
import time

import pytest

from nbstreamq.errors import TimeLimitExceeded
from nbstreamq.objects.remote_errors import load_error
from nbstreamq.wire.item_ranges import items
from nbstreamq.wire.messages import Options, Task
from nbstreamq.wire.settlement import Delivery
from nbstreamq.worker.output import Output
from nbstreamq.worker.run import SLICE, Runner
from nbstreamq.worker.slot import SLOT_BYTES, Slot, Stop


@pytest.fixture
def slot():
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SLOT_BYTES)
        yield Slot(file.fileno())


@pytest.fixture
def runner(slot):
    return Runner(slot, Output())


@pytest.fixture
def run(runner):
    """``run(fn, args, todo=, call=, time_limit=)``: the `Run` of a chunk."""

    def run(fn, args, *, todo=None, call="map", time_limit=None):
        todo = (range(len(args)),) if todo is None else todo
        opts = Options(time_limit=time_limit).encode()
        task = Task(job="s.1", n=0, span=todo, fn="f", name="f", call=call, args=b"", opts=opts)
        runner.hold(Delivery(lane="default", entry_id=b"1-1", task=task))
        try:
            return runner.run(task, fn, args, todo)
        finally:
            runner.release()

    return run


@pytest.fixture
def stop_here(slot, runner):
    """``stop_here(why, level)``: what supervisor and signal do, in the midst of a task."""

    def stop(why=Stop.CANCELLED, level=-1):
        slot.ask_to_stop(slot.running()[level], why)
        runner.on_stop_signal(0, None)

    return stop


def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize(("pause", "n_looks"), [(0.0, 4), (1e6, 1)])
def test_output_is_looked_for_as_long_as_there_is_any(runner, run, pause, n_looks):
    looks, output = [], runner._output

    def look():
        looks.append(output.item)
        output.looked, output.pause = time.monotonic(), pause

    output.look = look
    run(abs, range(5))

    assert looks == list(range(n_looks))  # after the last one it is, too, when the task is left


def test_items_are_run_in_order(run):
    result = run(lambda x: x * x, [1, 2, 3])

    assert ([*items(result.done)], result.values, result.errors) == ([0, 1, 2], [1, 4, 9], {})
    assert (result.rest, result.cancelled, result.stopped) == ((), [], None)


def test_only_what_is_to_be_done_is_run(run):
    result = run(lambda x: x, list("abcde"), todo=(range(1, 2), range(3, 5)))

    assert [*items(result.done)] == [1, 3, 4]
    assert result.values == ["b", "d", "e"]


@pytest.mark.parametrize(
    ("call", "fn", "item", "value"),
    [
        ("map", lambda x: x, (1, 2), (1, 2)),
        ("starmap", lambda x, y: x + y, (1, 2), 3),
        ("apply", lambda x, *, y: x + y, ((1,), {"y": 2}), 3),
    ],
)
def test_how_an_item_is_called(run, call, fn, item, value):
    assert run(fn, [item], call=call).values == [value]


def test_a_generator_is_run_to_its_end(run):
    def count(n):
        yield from range(n)

    assert run(count, [3]).values == [[0, 1, 2]]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_one_that_raises_leaves_the_others_unharmed(run, error):
    def fail_at_1(x):
        if x == 1:
            raise error
        return x

    result = run(fail_at_1, [0, 1, 2])

    assert [*items(result.done)] == [0, 1, 2]
    assert result.values == [0, None, 2]
    assert type(load_error(result.errors[1])) is type(error)


def test_a_slice_ends_in_time_and_returns_the_rest(run):
    result = run(lambda x: burn(SLICE * 0.6), list(range(10)))

    assert 1 <= len(result.values) <= 3
    assert [*items(result.done), *items(result.rest)] == list(range(10))


def test_the_slot_says_what_runs(run, slot):
    seen = []

    run(lambda x: seen.append(slot.running()), [0, 1], time_limit=5)

    assert [[level.item for level in levels] for levels in seen] == [[0], [1]]
    assert all(levels[0].deadline > time.monotonic() + 3 for levels in seen)
    assert slot.running() == []


def test_a_cancelled_item_ends_and_the_others_are_run(run, stop_here):
    def maybe_stop(x):
        if x == 1:
            stop_here()
        return x

    result = run(maybe_stop, [0, 1, 2])

    assert ([*items(result.done)], result.values, result.cancelled) == ([0, 2], [0, 2], [1])


def test_an_item_over_its_time_fails_and_the_others_are_run(run, stop_here):
    def maybe_stop(x):
        if x == 1:
            stop_here(Stop.TIME_LIMIT)
        return x

    result = run(maybe_stop, [0, 1, 2], time_limit=0.5)

    assert [*items(result.done)] == [0, 1, 2]
    error = load_error(result.errors[1])
    assert isinstance(error, TimeLimitExceeded)
    assert error.task == "s.1-1"
    assert "0.5 s" in str(error)


def test_the_stop_of_one_item_is_not_for_the_next(run, slot, runner):
    def too_late(x):
        if x == 0:
            slot.ask_to_stop(slot.running()[0], Stop.CANCELLED)
        else:
            runner.on_stop_signal(0, None)
        return x

    result = run(too_late, [0, 1])

    assert (result.values, result.cancelled) == ([0, 1], [])


def test_a_task_that_swallows_the_stop_keeps_its_result(run, stop_here):
    def stubborn(x):
        try:
            stop_here()
        except BaseException:
            return "mine"

    assert run(stubborn, [0]).values == ["mine"]


def test_the_stop_of_a_waiting_task_passes_through_the_one_that_helps(run, runner, stop_here):
    def outer(x):
        def wait():
            inner = run(lambda y: stop_here(Stop.CANCELLED, level=0) if y else y, [0, 1, 2])
            assert inner.done == [range(1)]
            assert list(items(inner.rest)) == [1, 2]
            raise inner.stopped

        runner.help(wait)

    result = run(outer, [0])

    assert ([*items(result.done)], result.cancelled, result.stopped) == ([], [0], None)


def test_a_stop_in_the_midst_of_short_items_is_for_one_of_them_only(run, stop_here):
    def maybe_stop(x):
        if x in (700, 702, 703, 999):
            stop_here()
        if x == 701:
            raise ValueError(x)
        return x

    results, left = [], (range(1000),)
    while left:  # on a busy machine, a slice of time may end at any item
        results.append(run(maybe_stop, list(range(1000)), todo=left))
        left = results[-1].rest

    assert [x for r in results for x in r.cancelled] == [700, 702, 703, 999]
    assert [x for r in results for x in items(r.done)] == [
        x for x in range(999) if x not in (700, 702, 703)
    ]
    assert [r.item(k) for r in results for k in r.errors] == [701]
    assert [v for r in results for v in r.values if v is not None] == [
        x for x in range(999) if x not in (700, 701, 702, 703)
    ]


def test_a_stop_that_comes_when_the_item_is_over_harms_nobody(run, slot, runner):
    """Between an item's end and the next one's begin, in the midst of a block."""
    levels = []

    class Hook:
        """Called by the loop itself, right behind an item."""

        def __bool__(self):
            if slot.running() and slot.running()[0].item == 500 and not levels:
                levels.extend(slot.running())
                slot.ask_to_stop(levels[0], Stop.CANCELLED)
                runner.on_stop_signal(0, None)
            return False

        def clear(self):
            pass

    runner._long = Hook()
    result = run(lambda x: x, list(range(1000)))

    assert levels
    assert (result.values, result.cancelled, result.rest) == (list(range(1000)), [], ())


def test_short_items_that_become_long_are_given_back_once_the_monitor_sees_it(run, runner):
    def work(x):
        if x == 3000:
            burn(2 * SLICE)
            runner.watch()
        return x

    result = run(work, list(range(10_000)))

    assert result.values == list(range(3001))
    assert result.rest == (range(3001, 10_000),)


def test_a_watched_delivery_goes_on_while_its_slice_is_not_over(run, runner):
    def work(x):
        if x == 3:
            runner.watch()
        return x

    assert run(work, list(range(100))).values == list(range(100))


def test_a_stop_that_is_raised_again_by_a_later_item_is_that_item_s_error(run, stop_here):
    kept = []

    def work(x):
        if x == 1:
            try:
                stop_here()
            except BaseException as stop:
                kept.append(stop)
        if x == 3:
            raise kept[0]
        return x

    result = run(work, list(range(6)))

    assert result.values == [0, 1, 2, None, 4, 5]
    assert (list(result.errors), result.cancelled, result.stopped) == ([3], [], None)


def test_many_ranges_are_run_as_one_is(run):
    ranges = (*(range(k, k + 1) for k in range(0, 400, 2)), range(400, 500))
    result = run(lambda x: x, list(range(500)), todo=ranges)
    assert [*items(result.done)] == result.values == [*range(0, 400, 2), *range(400, 500)]
