"""Retries, delays, lanes; what stands for other values in arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import CancelledError

import pytest

from nbstreamq import NbstreamqError, NotPicklable, TimeLimitExceeded
from nbstreamq.wire.keys import Keys
from nbstreamq.wire.messages import State


@pytest.fixture
def flaky(tmp_path):
    """``flaky(n)`` makes a task that fails its first n calls, and then returns their times."""

    def make(n_failures):
        folder = str(tmp_path)

        def task(key=0):
            import time
            from pathlib import Path

            log = Path(folder) / f"calls-{key}"
            with log.open("a") as file:
                print(time.time(), file=file)
            times = [float(line) for line in log.read_text().split()]
            if len(times) <= n_failures:
                raise ConnectionError(f"call {len(times)}")
            return times

        return task

    return make


class TestRetries:
    def test_until_it_works(self, shared_queue, flaky):
        future = shared_queue.options(retries=3).submit(flaky(2))
        assert len(future.result(10)) == 3
        assert future.attempts == 3

    def test_none_by_default(self, shared_queue, flaky):
        future = shared_queue.submit(flaky(1))
        with pytest.raises(ConnectionError, match="call 1"):
            future.result(10)
        assert future.attempts == 1

    def test_the_last_error_is_raised(self, shared_queue, flaky):
        future = shared_queue.options(retries=2).submit(flaky(9))
        with pytest.raises(ConnectionError, match="call 3"):
            future.result(10)
        assert future.attempts == 3

    def test_of_the_failed_items_only(self, shared_queue, flaky):
        fail_once = flaky(1)
        job = shared_queue.options(retries=1).map(
            lambda x: len(fail_once(x)) if x % 3 == 0 else -x, range(9), chunksize=9
        )
        assert job.result(10) == [2, -1, -2, 2, -4, -5, 2, -7, -8]

    def test_backoff_doubles(self, shared_queue, flaky):
        times = shared_queue.options(retries=2, backoff=0.1).submit(flaky(2)).result(10)
        first, second = times[1] - times[0], times[2] - times[1]
        assert first >= 0.09
        assert second >= 0.19

    def test_of_a_decorated_function(self, shared_queue, flaky):
        task = shared_queue.task(retries=1)(flaky(1))
        assert len(task().result(10)) == 2


class TestDelay:
    def test_starts_no_earlier(self, shared_queue):
        before = time.time()
        assert shared_queue.options(delay=0.2).submit(time.time).result(10) >= before + 0.19

    def test_lets_others_pass(self, shared_queue):
        delayed = shared_queue.options(delay=5).submit(time.time)
        assert shared_queue.submit(abs, -1).result(10) == 1
        assert not delayed.done()
        assert delayed.cancel()

    def test_is_shown_in_the_status(self, make_queue, wait_until):
        queue = make_queue(workers=0)
        future = queue.options(delay=60).submit(int)
        wait_until(
            lambda: sum(lane.delayed for lane in queue.status().lanes) == 1, describe="the delay"
        )
        assert future.cancel()


class TestTimeLimit:
    def test_fails_the_call(self, queue, gate):
        future = queue.options(time_limit=0.1).submit(gate.hold)
        with pytest.raises(TimeLimitExceeded, match=r"time_limit of 0\.1 s") as caught:
            future.result(10)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.task == future.id
        assert queue.submit(abs, -1).result(10) == 1

    def test_counts_for_each_item(self, queue, gate):
        hold = gate.hold
        job = queue.options(time_limit=0.2).map(lambda x: hold() if x == 1 else x, range(3))
        job.wait(10)
        assert [type(e) for e in job.errors.values()] == [TimeLimitExceeded]
        assert (job[0].result(), job[2].result()) == (0, 2)


class TestLanes:
    def test_high_goes_before_default_before_low(self, make_queue, gate, tmp_path, wait_until):
        queue = make_queue(workers=1)
        log = tmp_path / "order"

        def note(what):
            with log.open("a") as file:
                print(what, file=file)

        blocker = queue.submit(gate.hold)
        wait_until(lambda: gate.n_reached == 1, describe="the worker is held up")
        futures = [
            queue.options(lane=lane).submit(note, lane) for lane in ("low", "default", "high")
        ]
        # What is sent later has arrived later: when this is in the lane, so are the others.
        wait_until(
            lambda: sum(lane.waiting for lane in queue.status().lanes) == 3,
            describe="three tasks wait",
        )
        gate.open()
        for future in [blocker, *futures]:
            future.result(10)
        assert log.read_text().split() == ["high", "default", "low"]

    def test_tag_runs_where_it_is_served(self, make_queue, server_url, wait_until):
        queue = make_queue("-tag", workers=1)
        future = queue.options(lane="gpu").submit(os.getpid)
        other = queue.submit(os.getpid).result(10)
        command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "--queue", queue.name]
        worker = subprocess.Popen([*command, "-n", "1", "--lane", "gpu"])
        try:
            assert future.result(20) != other
            tagged = [w for w in queue.workers() if "gpu" in w.lanes]
            assert [w.pid for w in tagged] == [future.result()]
        finally:
            worker.terminate()
            worker.wait(10)

    def test_a_tag_without_a_worker_is_warned_of(self, queue):
        future = queue.options(lane="gpu").submit(int)
        warned = pytest.warns(RuntimeWarning, match="no worker serves its lane 'gpu'.*--lane gpu")
        with warned, pytest.raises(TimeoutError):
            future.result(3.1)
        future.cancel()

    def test_no_workers_are_warned_of_once(self, make_queue):
        queue = make_queue(workers=0)
        future = queue.submit(int)
        warned = pytest.warns(RuntimeWarning, match=r"has no workers\..*q\.run\(4\)")
        with warned, pytest.raises(TimeoutError):
            future.result(3.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(TimeoutError):
                future.result(3.1)
        queue.run(1)
        assert future.result(10) == 0


class TestViews:
    def test_share_everything_but_the_defaults(self, make_queue, flaky):
        queue = make_queue(workers=1)
        view = queue.options(retries=1)
        assert len(view.submit(flaky(1)).result(10)) == 2
        with pytest.raises(ConnectionError):
            queue.submit(flaky(9), "x").result(10)
        view.shutdown()
        with pytest.raises(RuntimeError):
            queue.submit(int)

    def test_add_up(self, shared_queue, flaky):
        view = shared_queue.options(retries=2).options(lane="high")
        assert len(view.submit(flaky(2)).result(10)) == 3

    @pytest.mark.parametrize(
        "options",
        [
            {"retries": -1},
            {"backoff": -0.1},
            {"time_limit": "1"},
            {"time_limit": True},
            {"cache": 1},
            {"memory_limit": 1000},
            {"memory_limit": [2**30, 1000]},
            {"memory_limit": [2**31, 2**30]},
            {"memory_limit": [2**30, 2**30]},
            {"memory_limit": [2**30, "2G"]},
            {"memory_limit": []},
            {"lane": ""},
            {"lane": "@w"},
            {"lane": 3},
            {"delay": -1},
        ],
        ids=str,
    )
    def test_impossible_values(self, shared_queue, options):
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            shared_queue.options(**options)

    def test_unknown_names(self, shared_queue):
        with pytest.raises(TypeError, match="retry"):
            shared_queue.options(retry=1)
        with pytest.raises(TypeError, match="retry"):
            shared_queue.task(retry=1)(int)


class TestFuturesAsArguments:
    def test_stand_for_their_results(self, shared_queue):
        two = shared_queue.submit(abs, -2)
        three = shared_queue.submit(abs, -3)
        assert shared_queue.submit(pow, two, three).result(10) == 8
        assert shared_queue.submit(dict, a=two).result(10) == {"a": 2}

    def test_in_containers(self, shared_queue):
        def show(*args, **kwargs):
            return args, kwargs

        one = shared_queue.submit(abs, -1)
        found = shared_queue.submit(show, [one, (one,)], key={"a": {"b": one}}).result(10)
        assert found == (([1, (1,)],), {"key": {"a": {"b": 1}}})

    def test_in_a_chain(self, shared_queue):
        future = shared_queue.submit(abs, 0)
        for _ in range(20):
            future = shared_queue.submit(lambda x: x + 1, future)
        assert future.result(20) == 20

    def test_waits_for_one_that_runs(self, shared_queue, gate):
        held = shared_queue.submit(gate.hold, 5)
        dependent = shared_queue.submit(abs, held)
        assert dependent.status is State.WAITING
        gate.open()
        assert dependent.result(10) == 5

    def test_items_of_a_map(self, shared_queue):
        job = shared_queue.map(abs, range(-4, 0))
        assert shared_queue.submit(sum, list(job[:])).result(10) == 10

    def test_a_failing_one_fails_the_call(self, shared_queue):
        failing = shared_queue.submit(int, "x")
        dependent = shared_queue.submit(abs, failing)
        with pytest.raises(ValueError, match="'x'"):
            dependent.result(10)
        assert dependent.status is State.FAILED

    def test_a_cancelled_one_fails_the_call(self, make_queue):
        queue = make_queue(workers=0)
        first = queue.submit(int)
        dependent = queue.submit(abs, first)
        first.cancel()
        assert isinstance(dependent.exception(10), CancelledError)

    def test_a_dependent_call_can_be_cancelled(self, shared_queue, gate):
        held = shared_queue.submit(gate.hold, 5)
        dependent = shared_queue.submit(abs, held)
        assert dependent.cancel()
        gate.open()
        assert held.result(10) == 5
        assert dependent.cancelled()

    def test_shutdown_waits_for_the_dependent_call(self, make_queue, gate):
        queue = make_queue()
        held = queue.submit(gate.hold, 5)
        dependent = queue.submit(abs, held)
        gate.open()
        queue.shutdown()
        assert dependent.result(0) == 5

    def test_with_a_ref(self, shared_queue):
        two, ref = shared_queue.submit(abs, -2), shared_queue.put([3])
        assert shared_queue.submit(lambda a, b: (a, b), two, [ref]).result(10) == (2, [[3]])

    @pytest.mark.parametrize("how", ["captured", "an item of a map", "everywhere"])
    def test_elsewhere_they_are_refused(self, shared_queue, how):
        future = shared_queue.submit(int)
        calls = {
            "captured": lambda: shared_queue.submit(lambda: future),
            "an item of a map": lambda: shared_queue.map(str, [future]),
            "everywhere": lambda: shared_queue.everywhere(str, future),
        }
        with pytest.raises(NotPicklable, match="TaskFuture"):
            calls[how]()


class TestRefs:
    def test_stand_for_the_value(self, shared_queue):
        ref = shared_queue.put({"a": [1, 2]})
        assert shared_queue.submit(lambda d: d["a"], ref).result(10) == [1, 2]
        assert list(shared_queue.map(lambda x, d: d["a"][x], range(2), [ref, ref])) == [1, 2]

    def test_captured(self, shared_queue):
        ref = shared_queue.put([1, 2])
        assert shared_queue.submit(lambda: sum(ref)).result(10) == 3

    def test_none_and_other_false_values(self, shared_queue):
        for value in (None, 0, []):
            assert shared_queue.submit(lambda x: [x], shared_queue.put(value)).result(10) == [value]

    def test_functions_and_classes(self, shared_queue):
        class Point:
            x = 3

        assert (
            shared_queue.submit(lambda f: f(2), shared_queue.put(lambda x: x + 1)).result(10) == 3
        )
        assert shared_queue.submit(lambda p: p.x, shared_queue.put(Point())).result(10) == 3

    def test_is_readable(self, shared_queue):
        ref = shared_queue.put([0] * 1000)
        assert repr(ref).startswith("<Ref to list, ")
        assert ref.size_bytes > 1000

    def test_unpicklable(self, shared_queue, tmp_path):
        with (tmp_path / "x").open("w") as file, pytest.raises(NotPicklable, match="TextIOWrapper"):
            shared_queue.put([file])

    def test_of_another_queue(self, shared_queue, make_queue):
        ref = make_queue("-other", workers=0).put(1)
        with pytest.raises(NbstreamqError, match="the value of a Ref is no longer available"):
            shared_queue.submit(abs, ref).result(10)


class TestEverywhere:
    def test_runs_once_on_each_worker(self, queue, wait_until):
        queue.run(2)
        wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
        found = queue.everywhere(os.getpid).result(10)
        assert sorted(found) == sorted(w.pid for w in queue.workers())

    def test_before_what_is_submitted_later(self, queue):
        def set_up(value):
            import builtins

            builtins.nbstreamq_test_value = value

        def value_there():
            import builtins

            return builtins.nbstreamq_test_value

        queue.everywhere(set_up, 5)
        assert list(queue.map(lambda _: value_there(), range(50))) == [5] * 50

    def test_late_joiners(self, make_queue, wait_until):
        queue = make_queue(workers=1)
        queue.submit(int).result(10)

        def set_up():
            os.environ["NBSTREAMQ_TEST_SET_UP"] = "yes"

        queue.everywhere(set_up).result(10)
        (first,) = queue.workers()
        queue.run(3)
        wait_until(lambda: len(queue.workers()) == 3, describe="three workers")
        late = {w.pid for w in queue.workers()} - {first.pid}

        def look(_):
            import time

            time.sleep(0.005)
            return os.getpid(), os.environ.get("NBSTREAMQ_TEST_SET_UP")

        def found():
            return dict(queue.map(look, range(12), chunksize=1).result(10))

        seen: dict = {}
        wait_until(lambda: seen.update(found()) or late <= seen.keys(), describe="all have worked")
        assert set(seen.values()) == {"yes"}

    def test_with_no_workers_yet(self, make_queue):
        queue = make_queue(workers=0)

        def set_up():
            import builtins

            builtins.nbstreamq_test_early = True

        assert queue.everywhere(set_up).result(10) == []
        queue.run(1)

        def is_set_up():
            import builtins

            return builtins.nbstreamq_test_early

        assert queue.submit(is_set_up).result(10)

    def test_errors(self, queue, wait_until):
        queue.run(2)
        wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
        job = queue.everywhere(int, "x")
        assert len(job) == 2
        with pytest.raises(ValueError, match="'x'"):
            job.result(10)


class TestCache:
    def test_the_same_call_is_not_run_again(self, make_queue, tmp_path, client, wait_until):
        runs = str(tmp_path)

        def count(x, y=0):
            import tempfile

            tempfile.mkstemp(dir=runs)
            return {"sum": x + y}

        queue = make_queue().options(cache=True)
        assert queue.submit(count, 1, y=2).result(10) == {"sum": 3}
        kept_result = Keys(queue.name).value("*")
        wait_until(lambda: client.keys(kept_result), describe="a kept result")
        kept = queue.submit(count, 1, y=2)
        assert kept.done()
        assert kept.result(0) == {"sum": 3}
        assert len(list(tmp_path.iterdir())) == 1
        assert make_queue().options(cache=True).submit(count, 1, y=2).result(10) == {"sum": 3}
        assert len(list(tmp_path.iterdir())) == 1
        assert queue.submit(count, 2, y=2).result(10) == {"sum": 4}
        assert make_queue().submit(count, 1, y=2).result(10) == {"sum": 3}
        assert len(list(tmp_path.iterdir())) == 3

    def test_what_fails_is_not_kept(self, queue, tmp_path):
        mended = str(tmp_path / "mended")

        def fail():
            import os

            if not os.path.exists(mended):  # noqa: PTH110
                raise ValueError
            return "well"

        caching = queue.options(cache=True)
        with pytest.raises(ValueError):
            caching.submit(fail).result(10)
        (tmp_path / "mended").touch()
        assert caching.submit(fail).result(10) == "well"

    def test_another_function_is_another_call(self, queue):
        caching = queue.options(cache=True)
        results = [caching.submit(lambda x, k=k: x + k, 1).result(10) for k in (1, 2, 1)]
        assert results == [2, 3, 2]
