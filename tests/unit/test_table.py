"""What events write, and futures read, of the tasks of a job."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from concurrent.futures import CancelledError, Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq import WorkerLost
from nbstreamq.client.error_notes import Payload
from nbstreamq.client.table import JobTable
from nbstreamq.errors import DeathCertificate, QueueClosed
from nbstreamq.objects.pickling import dump
from nbstreamq.objects.remote_errors import dump_error
from nbstreamq.objects.results import dump_outcomes
from nbstreamq.wire.item_ranges import ranges_of
from nbstreamq.wire.messages import Event, State


def table_of(n, call="map", items=None):
    table = JobTable("job.1", "task", abs, "default")
    table.add(Payload(0, n, call, dump(items if items is not None else list(range(n)), "items")))
    return table


def event(kind, items, body=b"", *, n=0, **details):
    details = {"worker": "w1", **details}
    return Event(kind=kind, job="job.1", n=n, span=ranges_of(items), body=body, **details)


def finished(values, **options):
    """An event of items that are done: item -> result, or exception."""
    errors = {
        k: dump_error(v, task="t")
        for k, v in enumerate(values.values())
        if isinstance(v, BaseException)
    }
    results = [None if k in errors else v for k, v in enumerate(values.values())]
    return event("finished", values, dump_outcomes(results, errors, str), **options)


def states(table):
    return [table.state(i) for i in range(len(table))]


class TestEvents:
    def test_everything_waits_at_first(self):
        table = table_of(3)
        assert states(table) == [State.WAITING] * 3
        assert not table.is_over

    def test_started_runs(self):
        table = table_of(3)
        table.apply(event("started", [0, 2], worker="w7"))
        assert states(table) == [State.RUNNING, State.WAITING, State.RUNNING]
        assert table.report(2).worker == "w7"
        assert table.report(1) is None

    def test_finished_is_over(self):
        table = table_of(3)
        table.apply(finished({0: "a", 1: "b", 2: "c"}))
        assert table.is_over
        assert [table.value(i) for i in range(3)] == ["a", "b", "c"]
        assert table.counts()[State.DONE] == 3

    def test_a_failure_is_the_item_s_own(self):
        table = table_of(3)
        table.apply(finished({0: 1, 1: ValueError("x"), 2: 3}))
        assert states(table) == [State.DONE, State.FAILED, State.DONE]
        assert isinstance(table.error(1), ValueError)
        assert list(table.errors()) == [1]

    def test_the_first_word_counts(self):
        table = table_of(2)
        table.apply(finished({0: "first", 1: "first"}))
        table.apply(finished({0: "second", 1: "second"}))
        table.apply(event("started", [0]))
        assert [table.value(i) for i in range(2)] == ["first", "first"]
        assert states(table) == [State.DONE] * 2
        assert table.n_over == 2

    def test_a_result_that_comes_after_the_cancel_is_dropped(self):
        table = table_of(3)
        table.mark_cancelled([1])
        table.apply(finished({0: "a", 1: "b", 2: "c"}))
        assert states(table) == [State.DONE, State.CANCELLED, State.DONE]
        assert table.cancelled_items() == ranges_of([1])

    @pytest.mark.parametrize("kind", ["retried", "lost"])
    def test_once_more_waits_again(self, kind):
        table = table_of(1)
        table.apply(event("started", [0]))
        table.apply(event(kind, [0], b"{}", attempt=2))
        assert states(table) == [State.WAITING]
        assert table.report(0).attempt == 2

    def test_later_chunks_count_from_their_own_start(self):
        table = table_of(2)
        table.add(Payload(2, 2, "map", dump([2, 3], "items")))
        table.apply(finished({0: "c", 1: "d"}, n=2))
        assert states(table) == [State.WAITING] * 2 + [State.DONE] * 2
        assert table.value(3) == "d"

    def test_prints_are_kept_in_order(self):
        table = table_of(2)
        for text in ("one\n", "two\n"):
            body = json.dumps([[1, "stdout", text]]).encode()
            table.apply(event("output", [1], body))
        assert table.output.pieces(1) == [("stdout", "one\n"), ("stdout", "two\n")]
        assert table.output.pieces(0) == []

    def test_progress(self):
        table = table_of(2)
        assert table.output.progress(1) is None
        table.apply(event("progress", [1], b"[3, 10]"))
        assert table.output.progress(1) == (3, 10)

    @given(st.permutations(range(12)), st.integers(1, 5))
    def test_in_any_order_and_grouping(self, order, size):
        table, expected = table_of(12), []
        ended = table.ended()
        for start in range(0, 12, size):
            group = sorted(order[start : start + size])
            table.apply(finished({i: i * i for i in group}))
            expected += group
        assert table.is_over
        assert [table.value(i) for i in range(12)] == [i * i for i in range(12)]
        assert [i for r in ended for i in r] == expected

    def test_the_order_before_it_was_asked_for_is_that_of_the_items(self):
        table = table_of(4)
        for i in (3, 1):
            table.apply(finished({i: i}))
        assert table.ended() == [range(1, 2), range(3, 4)]
        assert table.has_more_ended(1)
        assert not table.has_more_ended(2)


def new_future(_item):
    return Future()


class TestFutures:
    def test_are_resolved(self):
        table = table_of(3)
        futures = [table.future(i, new_future) for i in range(3)]
        table.apply(finished({0: 1, 1: KeyError("x")}))
        table.mark_cancelled([2])
        assert futures[0].result(0) == 1
        assert isinstance(futures[1].exception(0), KeyError)
        with pytest.raises(CancelledError):
            futures[2].result(0)

    def test_of_an_item_that_is_over_is_resolved_at_once(self):
        table = table_of(1)
        table.apply(finished({0: 5}))
        assert table.future(0, new_future).result(0) == 5

    def test_are_let_go(self):
        import weakref

        table = table_of(1)
        future = table.future(0, new_future)
        table.apply(finished({0: 5}))
        gone = weakref.ref(future)
        del future
        assert gone() is None


class TestRuns:
    def failed_twice(self):
        """A table whose items 0 and 2 have failed, and run again."""
        table = table_of(3)
        table.apply(finished({0: KeyError("x"), 1: "b", 2: KeyError("x")}))
        table.rerun([0, 1, 2], 1)
        return table

    def test_only_what_failed_waits_again(self):
        table = self.failed_twice()
        assert states(table) == [State.WAITING, State.DONE, State.WAITING]
        assert table.errors() == {}

    def test_the_same_run_twice_is_one(self):
        table = self.failed_twice()
        table.apply(finished({0: KeyError("y")}, run=1))
        table.rerun([0], 1)
        assert states(table)[0] is State.FAILED

    @pytest.mark.parametrize("kind", ["started", "lost", "cancelled"])
    def test_events_of_an_older_run_are_ignored(self, kind):
        table = self.failed_twice()
        table.apply(event(kind, [0]))
        table.apply(finished({0: "old", 2: "old"}))
        assert states(table) == [State.WAITING, State.DONE, State.WAITING]
        table.apply(finished({0: "a", 2: "c"}, run=1))
        assert [table.value(i) for i in range(3)] == ["a", "b", "c"]

    def test_items_that_were_not_run_again_may_end_in_an_older_run(self):
        table = table_of(2)
        table.apply(finished({0: KeyError("x")}))
        table.rerun([0], 1)
        table.apply(finished({1: "b"}))
        assert states(table) == [State.WAITING, State.DONE]

    def test_an_item_that_runs_again_has_another_future(self):
        table = table_of(1)
        first = table.future(0, new_future)
        table.apply(finished({0: KeyError("x")}))
        table.rerun([0], 1)
        second = table.future(0, new_future)
        table.apply(finished({0: "a"}, run=1))
        assert isinstance(first.exception(0), KeyError)
        assert second.result(0) == "a"
        assert table.future(0, new_future) is second


class TestWaiting:
    def test_an_empty_job_is_over(self):
        assert JobTable("job.1", "task", abs, "default").is_over

    def test_a_growing_job_is_not_over(self):
        table = JobTable("job.1", "task", abs, "default")
        table.growing = True
        assert not table.is_over
        table.stop_growing()
        assert table.is_over

    def test_wait_ends_at_the_event(self):
        table = table_of(1)
        thread = threading.Timer(0.02, table.apply, [finished({0: 1})])
        thread.start()
        assert table.wait(table.check_over, 10)
        thread.join()

    def test_wait_ends_in_time(self):
        assert not table_of(1).wait(lambda: False, 0.01)

    def test_callbacks_are_called_once(self):
        table, called = table_of(2), []
        table.when_over(lambda: called.append("early"))
        table.apply(finished({0: 1}))
        assert called == []
        table.apply(finished({1: 1}))
        table.apply(finished({1: 1}))
        table.when_over(lambda: called.append("late"))
        assert called == ["early", "late"]

    def test_a_failing_callback_is_logged(self, caplog):
        table, called = table_of(1), []
        table.when_over(lambda: 1 / 0)
        table.when_over(lambda: called.append(1))
        with caplog.at_level(logging.ERROR):
            table.mark_cancelled([0])
        assert called == [1]
        assert "ZeroDivisionError" in caplog.text


class TestPayloads:
    def test_are_dropped_when_all_of_the_chunk_is_done(self):
        table = table_of(3)
        table.apply(finished({0: 1, 1: 1}))
        assert table.payload(2) is not None
        table.apply(finished({2: 1}))
        assert table.payload(2) is None

    def test_of_failed_items_are_kept(self):
        table = table_of(2)
        table.apply(finished({0: 1, 1: ValueError()}))
        assert table.payload(1) is not None

    def test_of_a_single_call_are_kept(self):
        table = table_of(1, "apply", ((-3,), {}))
        table.apply(finished({0: 3}))
        assert table.payload(0) is not None

    def test_describe_an_item(self):
        assert table_of(3, items=[5, "six", None]).payload(1).describe(1, "task") == "'six'"
        assert (
            table_of(1, "apply", ((-3,), {"x": "y"})).payload(0).describe(0, "task")
            == "task(-3, x='y')"
        )

    def test_the_death_certificate_tells_the_item(self):
        table = table_of(2, items=["good", "bad"])
        certificate = DeathCertificate(worker="w1", cause="SIGSEGV")
        table.apply(finished({1: WorkerLost("lost", task="t", certificate=certificate)}))
        assert table.error(1).certificate.item == "'bad'"

    def test_what_cannot_be_shown(self):
        class Grumpy:
            def __reduce__(self):
                return int, ("no number",)

        data = pickle.dumps([Grumpy()])
        table = JobTable("job.1", "task", abs, "default")
        table.add(Payload(0, 1, "map", data))
        assert "can't be shown" in table.payload(0).describe(0, "task")


class BusyLock:
    """A lock; each time somebody lets go of it, ``meanwhile`` may happen in another thread."""

    def __init__(self):
        self._lock = threading.RLock()
        self.meanwhile = []

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_error):
        self._lock.release()
        if self.meanwhile:
            self.meanwhile.pop()()


def test_a_callback_is_called_at_once_though_another_thread_tells_of_the_end():
    lock, called = BusyLock(), []
    table = JobTable("job.1", "task", abs, "default", lock)
    telling, goes_on = threading.Event(), threading.Event()
    table.wake = lambda: (telling.set(), goes_on.wait(10))
    thread = threading.Thread(target=table.stop_growing)
    lock.meanwhile.append(lambda: (thread.start(), telling.wait(10)))
    table.when_over(lambda: called.append(1))
    assert called == [1]
    goes_on.set()
    thread.join()


def test_release_forgets_the_value():
    table = table_of(2)
    table.apply(finished({0: "a", 1: "b"}))
    assert table.release(1) == "b"
    assert table.value(1) is None


def test_orphan_fails_what_is_open():
    # Given a job of which one item is done and more may come
    table = table_of(2)
    table.growing = True
    future = table.future(1, new_future)
    table.apply(finished({0: "a"}))
    # When it is inherited by a forked process, I expect what was open to have failed
    table.orphan(QueueClosed("forked"), threading.RLock())
    assert table.is_over
    assert table.value(0) == "a"
    assert isinstance(future.exception(0), QueueClosed)
