"""Named jobs: they outlive whoever made them, and nothing of them is computed twice."""

from __future__ import annotations

import contextlib
import os
import queue as queues
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import redis

import nbstreamq
from nbstreamq import JobChanged, JobNotFound, NbstreamqError, ServerRefused, TaskQueue
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.keys import WEEK, Keys
from nbstreamq.wire.messages import ControlMessage, State
from tests.client.conftest import Gate
from tests.counting import Runs
from tests.proxy import proxy

__all__ = ["proxy"]

REPOSITORY = Path(nbstreamq.__file__).parent.parent


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs")


@pytest.fixture
def square(runs):
    def square(x):
        runs.note(x)
        return x * x

    return square


@pytest.fixture
def picky(runs, tmp_path):
    """A function that fails for multiples of 5, until a file is there."""
    mended = str(tmp_path / "mended")

    def picky(x):
        runs.note(x)
        if x % 5 == 0 and not os.path.exists(mended):  # noqa: PTH110
            raise ValueError(f"no {x}")
        return x

    return picky


class TestTheSameCallAgain:
    def test_finds_the_results(self, make_queue, square, runs):
        first = make_queue().map(square, range(50), name="squares")
        assert first.result(20) == [x * x for x in range(50)]
        again = make_queue(workers=0).map(square, range(50), name="squares")
        assert again.done()
        assert again.result(0) == [x * x for x in range(50)]
        assert again.id == first.id
        assert set(runs.counts.values()) == {1}

    def test_runs_only_what_failed(self, make_queue, picky, runs, tmp_path):
        make_queue().map(picky, range(20), name="j").wait(20)
        (tmp_path / "mended").touch()
        assert make_queue().map(picky, range(20), name="j").result(20) == list(range(20))
        assert {x for x, n in runs.counts.items() if n > 1} == {0, 5, 10, 15}

    def test_runs_what_was_cancelled(self, make_queue, gate):
        hold, queue = gate.hold, make_queue()
        job = queue.map(hold, range(10), name="j", chunksize=1)
        job.cancel()
        gate.open()
        again = queue.map(hold, range(10), name="j", chunksize=1)
        assert again.result(20) == list(range(10))

    def test_is_not_stopped_by_a_cancellation_that_another_client_asked_for_before(
        self, make_queue, proxy, gate, tmp_path, wait_until
    ):
        folder, fixed, wait_first = tmp_path / "second", tmp_path / "fixed", gate.hold
        folder.mkdir()
        second = Gate(folder)
        wait_again = second.hold

        def fails_at_first(x):
            if fixed.exists():
                return wait_again(x)
            wait_first()
            raise ValueError(x)

        queue, far = make_queue(), make_queue(url=proxy.url, workers=0)
        job = queue.map(fails_at_first, [7], name="j")
        seen_far_away = far.attach("j")
        proxy.is_open = False
        proxy.cut()
        seen_far_away.cancel()
        gate.open()
        job.wait(20)
        fixed.touch()
        again = queue.map(fails_at_first, [7], name="j")
        proxy.is_open = True
        with pytest.warns(RuntimeWarning, match="'j' was not cancelled: another client") as told:
            wait_until(lambda: len(told), describe="the answer to the late cancellation")
        second.open()
        assert again.result(20) == [7]
        assert far.attach("j").result(20) == [7]
        assert again.counts()[State.CANCELLED] == 0

    def test_is_not_stopped_by_a_supervisor_that_hears_late_of_a_cancellation(
        self, queue, gate, tmp_path, wait_until
    ):
        fixed, stopped, hold = tmp_path / "fixed", tmp_path / "stopped", gate.hold

        def fails_at_first(x):
            if fixed.exists():
                return hold(x)
            raise ValueError(x)

        def held():
            try:
                hold()
            finally:
                stopped.touch()

        queue.map(fails_at_first, [7], name="j").wait(20)
        fixed.touch()
        job, other = queue.map(fails_at_first, [7], name="j"), queue.submit(held)
        wait_until(lambda: gate.n_reached == 2, describe="both to run")
        store = queue._session._store
        late = ControlMessage(kind="cancel", job=job.id, span=ONE, run=0).encode(store._signer)
        queue._session.ask(lambda store: store.wire.call(("XADD", store.keys.control, "*", *late)))
        other.cancel()
        wait_until(stopped.exists, describe="the supervisor to have read both")
        gate.open()
        assert job.result(20) == [7]

    def test_is_not_dropped_by_a_cancellation_that_came_after_the_end(self, queue, tmp_path):
        fixed = tmp_path / "fixed"

        def fails_at_first(x):
            if not fixed.exists():
                raise ValueError(x)
            return x

        job = queue.map(fails_at_first, [7], name="j")
        job.wait(20)
        # Another client had not heard of that yet.
        assert queue._session.ask(lambda store: store.cancel(job.id, ONE, ONE, run=0))
        fixed.touch()
        assert queue.map(fails_at_first, [7], name="j").result(20) == [7]

    def test_a_large_array_that_a_function_captures_is_sent_and_kept_once(self, make_queue, client):
        array = numpy.random.default_rng(1).random(500_000)

        def pick(k):
            return float(array[k])

        def received():
            return client.info("stats")["total_net_input_bytes"]

        queue = make_queue()
        assert queue.map(pick, range(4), name="j").result(20) == list(array[:4])
        (value,) = client.keys(f"*{{{queue.name}}}:value:*")
        client.expire(value, 1000)
        before = received()
        job = make_queue().map(pick, range(4), name="j", replace=True)
        assert job.result(20) == list(array[:4])
        assert received() - before < array.nbytes / 10
        assert client.ttl(value) > WEEK - 100, "it lives as long as the function"

    def test_arrays_are_inputs_like_others(self, queue):
        arrays = [numpy.arange(50_000), numpy.ones((300, 300))]
        for _ in range(2):
            assert queue.map(lambda a: a.sum(), arrays, name="j").result(20) == [1249975000, 90000]

    def test_while_it_runs_is_the_same_job(self, queue, gate):
        hold = gate.hold
        job = queue.map(hold, range(4), name="j")
        again, attached = queue.map(hold, range(4), name="j"), queue.attach("j")
        assert job.id == again.id == attached.id
        assert job[2] is again[2] is attached[2]
        gate.open()
        # Each has an iteration of its own.
        assert next(job) == 0
        assert list(again) == list(attached) == list(range(4))
        assert list(job) == [1, 2, 3]
        assert job[2].result(0) == 2

    def test_closing_one_iterator_leaves_the_job_to_the_others(self, queue, gate):
        hold = gate.hold
        other = queue.map(hold, range(4), name="j")
        with contextlib.closing(queue.map(hold, range(4), name="j")) as job:
            pass
        assert list(job) == []
        gate.open()
        assert other.result(20) == list(range(4))

    def test_iteration_waits_for_the_client_that_submits(self, make_queue, wait_until):
        inputs, q, found = queues.Queue(), make_queue(), []

        def submit():
            q.map(abs, iter(inputs.get, None), name="j", chunksize=1)

        inputs.put(-1)
        threads = [threading.Thread(target=submit)]
        threads[0].start()
        reader = make_queue(workers=0)
        wait_until(lambda: len(reader.jobs()) and len(reader.attach("j")), describe="an item")
        job = reader.attach("j")
        assert next(job) == 1
        threads.append(threading.Thread(target=lambda: found.extend(job)))
        threads[1].start()
        for item in (-2, -3, None):
            inputs.put(item)
        for thread in threads:
            thread.join(20)
        assert found == [2, 3]

    def test_by_two_clients_at_once(self, make_queue, square, runs):
        queues = [make_queue(), make_queue()]
        found: list[Any] = []
        ready = threading.Barrier(2)

        def call(queue):
            ready.wait()
            found.append(queue.map(square, range(300), name="j", chunksize=3).result(30))

        threads = [threading.Thread(target=call, args=(q,)) for q in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[x * x for x in range(300)]] * 2
        assert set(runs.counts.values()) == {1}
        assert len(runs.counts) == 300

    def test_that_another_client_submits_meanwhile(self, make_queue, wait_until):
        first, second = make_queue(), make_queue()

        def inputs():
            yield 1
            (table,) = first._session.outstanding.values()
            second.map(abs, [1, 2, 3], name="j").wait(20)
            wait_until(lambda: len(table) == 3, describe="news of the other client's items")
            yield from (2, 3)

        assert first.map(abs, inputs(), name="j", chunksize=1).result(20) == [1, 2, 3]
        assert second.attach("j").result(20) == [1, 2, 3]

    def test_that_another_client_cuts_in_another_way(self, make_queue, wait_until):
        first, second = make_queue(), make_queue()

        def fails():
            yield 0
            raise RuntimeError

        def inputs():
            yield 0
            with pytest.raises(RuntimeError):
                second.map(abs, fails(), name="j", chunksize=1)
            wait_until(lambda: len(second.attach("j")) == 1, describe="the other client's item")
            yield from (1, 2, 3)

        assert first.map(abs, inputs(), name="j", chunksize=2).result(20) == [0, 1, 2, 3]
        assert second.attach("j").result(20) == [0, 1, 2, 3]

    def test_with_several_iterables(self, queue):
        calls = (pow, [1, 2, 3], [2, 2, 2])
        assert queue.map(*calls, name="j").result(20) == [1, 4, 9]
        assert queue.map(*calls, name="j").result(0) == [1, 4, 9]

    def test_without_inputs(self, queue):
        assert queue.map(abs, [], name="j").result(10) == []
        assert queue.map(abs, [], name="j").result(10) == []

    def test_what_fails_while_it_is_submitted_is_not_run_again(self, queue, runs):
        def fail(x):
            runs.note(x)
            raise ValueError(x)

        def inputs():
            yield 0
            while not runs.counts:
                time.sleep(0.005)
            yield from range(1, 4)

        job = queue.map(fail, inputs(), name="j", chunksize=1)
        job.wait(20)
        assert len(job.errors) == 4
        assert runs.counts == {0: 1, 1: 1, 2: 1, 3: 1}

    def test_after_the_server_was_full(self, start_server, make_queue, square, runs):
        server = start_server()
        queue = make_queue(url=server.url)
        with redis.Redis(unix_socket_path=str(server.socket)) as admin:

            def inputs():
                yield from range(20)
                admin.config_set("maxmemory", 1)
                yield from range(20, 40)

            job = queue.map(square, inputs(), name="j", chunksize=5)
            with pytest.raises(ServerRefused, match="maxmemory"):
                job.result(20)
            admin.config_set("maxmemory", 0)
        again = queue.map(square, range(40), name="j", chunksize=5)
        assert again.result(20) == [x * x for x in range(40)]
        (status,) = queue.jobs()
        assert (status.done, status.failed, status.submitted) == (40, 0, 40)
        assert set(runs.counts.values()) == {1}


class TestAnotherCall:
    @pytest.fixture
    def job(self, queue):
        job = queue.map(abs, range(8), name="j")
        job.wait(20)
        return job

    @pytest.mark.parametrize(
        ("fn", "inputs", "text"),
        [
            (lambda x: -x, range(8), "function"),
            (abs, range(7), "it has at least 8 inputs, but 7 are given"),
            (abs, range(9), "it has 8 inputs, but more are given"),
            (abs, [0, 1, 2, 3, 4, 5, 6, 8], "its input 7 was another one"),
        ],
        ids=["function", "fewer", "more", "others"],
    )
    def test_is_refused(self, queue, job, fn, inputs, text):
        with pytest.raises(JobChanged, match=text) as caught:
            queue.map(fn, inputs, name="j")
        assert "replace=True" in str(caught.value)
        assert "q.attach('j')" in str(caught.value)
        assert queue.attach("j").result(0) == list(range(8))

    def test_is_told_what_of_the_function_has_changed(self, queue):
        def make(scale, offset):
            return lambda x, sign=1: sign * scale * x + offset

        queue.map(make(2, 0), range(3), name="f").wait(20)
        assert queue.map(make(2, 0), range(3), name="f").result(0) == [0, 2, 4]
        with pytest.raises(JobChanged, match=r"\(\): `offset`, `scale`\. "):
            queue.map(make(3, 1), range(3), name="f")
        scale, offset = 2, 0
        with pytest.raises(JobChanged, match=r"\(\): its code\. "):
            queue.map(lambda x, sign=1: sign * scale * x - offset, range(3), name="f")
        with pytest.raises(JobChanged, match=r"\(\): the default of `sign`\. "):
            queue.map(lambda x, sign=2: sign * scale * x + offset, range(3), name="f")

    def test_may_have_other_options_which_hold_from_now_on(self, queue):
        def slow(x):
            if x == 1:
                time.sleep(0.5)
            return x

        job = queue.options(time_limit=0.1).map(slow, range(3), name="slow", chunksize=1)
        job.wait(20)
        assert list(job.errors) == [1]
        again = queue.options(time_limit=20.0, lane="high")
        assert again.map(slow, range(3), name="slow", chunksize=1).result(20) == [0, 1, 2]

    def test_may_replace_it(self, queue, job):
        new = queue.map(lambda x: -x, range(3), name="j", replace=True)
        assert new.result(20) == [0, -1, -2]
        assert new.id != job.id
        assert queue.attach("j").result(0) == [0, -1, -2]

    def test_may_replace_only_what_has_changed(self, queue, job):
        assert queue.map(abs, iter(range(8)), name="j", replace="auto").id == job.id
        fewer = queue.map(abs, iter(range(4)), name="j", replace="auto")
        assert (fewer.id != job.id, fewer.result(20)) == (True, [0, 1, 2, 3])
        texts = queue.map(str, iter(range(4)), name="j", replace="auto")
        assert (texts.id != fewer.id, texts.result(20)) == (True, ["0", "1", "2", "3"])

    def test_replaces_one_that_runs(self, make_queue, gate):
        queue = make_queue()
        old = queue.map(gate.hold, range(6), name="j", chunksize=1)
        new = queue.map(abs, range(6), name="j", replace=True)
        gate.open()
        assert new.result(20) == list(range(6))
        assert queue.jobs()[0].done == 6
        with pytest.raises(Exception):  # noqa: B017 - cancelled, whichever way
            old.result(20)

    def test_replaces_it_by_two_clients_at_once(self, make_queue, square):
        queues = [make_queue(), make_queue()]
        queues[0].map(abs, range(3), name="j").wait(20)
        for _ in range(10):
            ready, found = threading.Barrier(2), []

            def call(queue, ready=ready, found=found):
                ready.wait()
                try:
                    job = queue.map(square, range(40), name="j", chunksize=3, replace=True)
                    found.append((job.id, job.result(30)))
                except JobNotFound:  # the other one came a moment later, and replaced it again
                    found.append(None)

            threads = [threading.Thread(target=call, args=(q,)) for q in queues]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            job = make_queue(workers=0).attach("j")
            assert job.result(30) == [x * x for x in range(40)]
            assert (job.id, job.result(0)) in found
            assert [(status.done, status.complete) for status in queues[0].jobs()] == [(40, True)]

    def test_of_two_that_replace_the_same_job_one_does(self, queue, store):
        old = queue.map(abs, range(3), name="j")
        old.wait(20)
        first, second = ({"function": name} for name in ("first", "second"))
        assert store.open_job("j", "j:1", first, instead_of=old.id)
        assert not store.open_job("j", "j:2", second, instead_of=old.id)
        assert store.find_job("j").id == "j:1"
        assert store.job_record(old.id) is None
        store.delete_job("j", old.id)  # another client, which knows only the old one
        assert store.find_job("j").about == first
        store.delete_job("j", "j:1")
        assert store.find_job("j") is None

    @pytest.mark.parametrize("name", ["", "a b", "a.b", "a:b", "x" * 81, "a{b"])
    def test_a_name_that_can_not_be(self, queue, name):
        with pytest.raises(ValueError, match="name is"):
            queue.map(abs, [1], name=name)

    def test_endless_inputs_can_not_be_kept(self, queue):
        with pytest.raises(ValueError, match="buffersize"):
            queue.map(abs, [1], name="j", buffersize=3)


class TestAttach:
    def test_starts_the_workers_that_are_missing(self, make_queue):
        make_queue(workers=0).map(abs, [-1, -2], name="j")
        assert make_queue(workers=1).attach("j").result(20) == [1, 2]

    def test_from_elsewhere_while_it_runs(self, make_queue, gate, wait_until):
        job = make_queue().map(gate.hold, range(6), name="j", chunksize=1)
        other = make_queue(workers=0).attach("j")
        assert len(other) == 6
        assert other.name == job.name == "j"
        wait_until(lambda: other.counts()[State.RUNNING], describe="news of running calls")
        gate.open()
        assert other.result(20) == list(range(6))
        assert job.result(20) == list(range(6))

    def test_sees_what_was_printed_and_raised(self, make_queue):
        def speak(x):
            print("hello", x)
            return 1 / x

        make_queue().map(speak, [0, 1], name="j").wait(20)
        job = make_queue(workers=0).attach("j")
        assert job.logs == {0: "hello 0\n", 1: "hello 1\n"}
        assert isinstance(job.errors[0], ZeroDivisionError)
        assert "speak(0)" in job.errors[0].__notes__[0]

    def test_can_cancel_it(self, make_queue, gate, wait_until):
        job = make_queue().map(gate.hold, range(8), name="j", chunksize=1)
        make_queue(workers=0).attach("j").cancel()
        wait_until(job.done, describe="the first client hears of it")
        assert job.counts()[State.CANCELLED] == 8

    def test_can_run_a_call_here(self, make_queue):
        make_queue().map(lambda x: x + 1, [1, 2], name="j").result(20)
        assert make_queue(workers=0).attach("j")[1].replay() == 3

    def test_to_one_of_another_queue_says_how(self, queue, queue_name, server_url):
        queue.map(abs, [-1], name="j").result(20)
        other = TaskQueue(f"{queue_name}-other", server_url, workers=0)
        with other, pytest.raises(JobNotFound) as caught:
            other.attach("j")
        assert f"TaskQueue({queue.name!r}, url=...).attach('j')" in str(caught.value)

    def test_to_what_is_not_there(self, queue):
        with pytest.raises(JobNotFound, match="There are none"):
            queue.attach("j")
        queue.map(abs, [], name="sweep")
        with pytest.raises(JobNotFound, match="There are: sweep"):
            queue.attach("j")

    def test_says_that_the_rest_was_never_submitted(self, make_queue, runs):
        def inputs():
            yield 1
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError):
            make_queue().map(abs, inputs(), name="j", chunksize=1)
        job = make_queue(workers=1).attach("j")
        with pytest.warns(RuntimeWarning, match="has no end"), pytest.raises(TimeoutError):
            job.result(4)
        assert make_queue().map(abs, [1, 2], name="j").result(20) == [1, 2]


class TestRetryFailed:
    @pytest.mark.parametrize("name", ["j", None], ids=["named", "unnamed"])
    def test_with_a_mended_function(self, queue, picky, runs, name):
        job = queue.map(picky, range(20), name=name)
        job.wait(20)
        failed, errors = job[5], job.errors
        assert sorted(errors) == [0, 5, 10, 15]

        def mended(x):
            runs.note(x)
            return -x

        assert job.retry_failed(mended) is job
        assert job.result(20) == [-x if x % 5 == 0 else x for x in range(20)]
        assert job.errors == {}
        assert job.counts()[State.DONE] == 20
        assert {x for x, n in runs.counts.items() if n > 1} == {0, 5, 10, 15}
        assert isinstance(failed.exception(), ValueError)
        assert job[5].result() == -5

    @pytest.mark.parametrize("name", ["j", None], ids=["named", "unnamed"])
    def test_that_fail_again(self, queue, picky, name, tmp_path):
        job = queue.map(picky, range(6), name=name)
        job.wait(20)
        job.retry_failed().wait(20)
        assert sorted(job.errors) == [0, 5]
        (tmp_path / "mended").touch()
        assert job.retry_failed().result(20) == list(range(6))

    def test_while_others_still_run(self, queue, gate, wait_until):
        hold = gate.hold

        def work(x):
            if x == 0:
                raise ValueError
            return hold(x)

        job = queue.map(work, range(2), name="j", chunksize=1)
        wait_until(lambda: job.errors, describe="the failure")
        gate.open()
        assert job.retry_failed(hold).result(20) == [0, 1]

    def test_from_elsewhere(self, make_queue, picky):
        make_queue().map(picky, range(10), name="j").wait(20)
        job = make_queue(workers=1).attach("j").retry_failed(lambda x: -x)
        assert job.result(20) == [0, 1, 2, 3, 4, -5, 6, 7, 8, 9]

    def test_from_elsewhere_starts_workers(self, make_queue, picky, tmp_path):
        with make_queue() as queue:
            queue.map(picky, range(6), name="j").wait(20)
        (tmp_path / "mended").touch()
        assert make_queue(workers=1).attach("j").retry_failed().result(20) == list(range(6))

    def test_while_another_client_runs_them_waits_for_those(self, make_queue, picky, gate):
        hold, queue = gate.hold, make_queue()
        queue.map(picky, range(6), name="j").wait(20)
        job = make_queue(workers=0).attach("j")
        queue.attach("j").retry_failed(lambda x: hold(-x))
        job.retry_failed()  # nothing is left for it to run
        gate.open()
        assert job.result(20) == [0, 1, 2, 3, 4, -5]

    def test_of_items_that_another_client_added(self, make_queue, picky, wait_until):
        job = None

        def inputs():
            nonlocal job
            yield 1
            job = make_queue(workers=0).attach("j")
            yield from range(2, 6)

        make_queue().map(picky, inputs(), name="j", chunksize=1).wait(20)
        wait_until(job.done, describe="the end of the job here")
        assert job.retry_failed(lambda x: -x).result(20) == [1, 2, 3, 4, -5]

    def test_then_both_functions_are_the_job_s(self, make_queue, picky):
        def mended(x):
            return -x

        queue = make_queue()
        queue.map(picky, range(6), name="j").wait(20)
        queue.attach("j").retry_failed(mended).wait(20)
        for fn in (picky, mended):
            assert queue.map(fn, range(6), name="j").result(0) == [0, 1, 2, 3, 4, -5]

    def test_only_once_by_two_clients(self, make_queue, picky, runs):
        make_queue().map(picky, range(6), name="j").wait(20)
        first, second = make_queue(workers=1).attach("j"), make_queue(workers=1).attach("j")
        first.retry_failed(lambda x: -x).wait(20)
        second.retry_failed(lambda x: x + 100)
        assert second.result(20) == [0, 1, 2, 3, 4, -5]
        assert make_queue(workers=0).attach("j").result(0) == [0, 1, 2, 3, 4, -5]

    def test_as_completed_yields_each_call_once(self, queue, picky, tmp_path):
        job = queue.map(picky, range(10), name="j")
        assert len(list(job.as_completed())) == 10
        (tmp_path / "mended").touch()
        job.retry_failed()
        found = [future.result() for future in job.as_completed()]
        assert sorted(found) == list(range(10))

    def test_nothing_failed(self, queue):
        job = queue.map(abs, range(3), name="j")
        job.wait(20)
        assert job.retry_failed().result(0) == [0, 1, 2]


class TestKept:
    def test_the_list(self, make_queue, picky):
        queue = make_queue()
        queue.map(picky, range(10), name="first").wait(20)
        queue.map(abs, range(3), name="second").wait(20)
        second, first = make_queue(workers=0).jobs()
        assert (first.name, first.function, first.state) == ("first", "picky", "failed")
        assert (first.done, first.failed, first.submitted) == (8, 2, 10)
        assert (second.name, second.state, second.complete) == ("second", "done", True)
        assert abs(first.made - time.time()) < 60
        assert 0 <= WEEK - first.expires < 60
        assert first.size_bytes > 100

    def test_a_week_of_rest_is_the_end_of_all_its_keys(self, queue, server_url):
        job = queue.map(abs, range(5), name="j")
        job.wait(20)
        with open_client(server_url) as client:
            keys = Keys(queue.name)
            for key in (keys.job(job.id), keys.inputs(job.id), keys.events(job.id)):
                assert 0 <= WEEK - client.ttl(key) < 60
            job.keep()
            assert client.ttl(keys.job(job.id)) == client.ttl(keys.events(job.id)) == -1
        assert queue.jobs()[0].expires is None
        job.delete()

    def test_a_kept_one_stays_so_while_it_runs(self, queue, gate, server_url):
        job = queue.map(gate.hold, range(5), name="j", chunksize=1)
        job.keep()
        gate.open()
        job.wait(20)
        with open_client(server_url) as client:
            keys = Keys(queue.name)
            for key in (keys.job(job.id), keys.inputs(job.id), keys.events(job.id)):
                assert client.ttl(key) == -1
        job.delete()

    def test_a_kept_one_stays_so_while_it_grows(self, queue, server_url):
        def inputs():
            yield 1
            queue.attach("j").keep()
            yield 2

        job = queue.map(abs, inputs(), name="j", chunksize=1)
        assert job.result(20) == [1, 2]
        with open_client(server_url) as client:
            keys = Keys(queue.name)
            for key in (keys.job(job.id), keys.inputs(job.id), keys.events(job.id)):
                assert client.ttl(key) == -1
        job.delete()

    def test_one_that_expired_is_made_anew(self, queue, square, runs, server_url):
        job = queue.map(square, range(3), name="j")
        job.wait(20)
        with open_client(server_url) as client:
            keys = Keys(queue.name)
            client.delete(keys.job(job.id), keys.inputs(job.id), keys.events(job.id))
        assert queue.jobs() == []
        assert queue.map(square, range(3), name="j").result(20) == [0, 1, 4]
        assert runs.counts == {0: 2, 1: 2, 2: 2}

    def test_delete(self, queue, gate, server_url, wait_until):
        job = queue.map(gate.hold, range(6), name="j", chunksize=1)
        job.delete()
        gate.open()
        assert queue.jobs() == []
        assert job.done()
        with pytest.raises(JobNotFound):
            queue.attach("j")
        lane = Keys(queue.name).lane("default")
        with open_client(server_url) as client:
            wait_until(lambda: client.xlen(lane) == 0, describe="an empty lane")
            assert client.keys(f"*{job.id}") == []

    def test_one_that_was_deleted_can_be_neither_kept_nor_deleted(self, make_queue):
        queue = make_queue()
        job = queue.map(abs, range(3), name="j")
        job.wait(20)
        make_queue(workers=0).attach("j").delete()
        for act in (job.keep, job.delete):
            with pytest.raises(JobNotFound, match="'j' is not there any more"):
                act()

    def test_who_waits_for_one_that_is_deleted_elsewhere_is_told(
        self, make_queue, gate, server_url
    ):
        queue = make_queue()
        job = queue.map(gate.hold, range(4), name="j", chunksize=1)
        keys = Keys(queue.name)
        with open_client(server_url) as client:
            # As where the news of its end come while this client is cut off.
            client.delete(keys.job(job.id), keys.inputs(job.id), keys.events(job.id))
        with pytest.raises(JobNotFound, match="was deleted"):
            job.result(20)

    def test_one_without_a_name_is_not(self, queue):
        job = queue.map(abs, [1])
        for act in (job.keep, job.delete):
            with pytest.raises(NbstreamqError, match="no name"):
                act()


MAKE = """
import sys, time, tempfile
from nbstreamq import TaskQueue

name, url, folder, kind = sys.argv[1:]
queue = TaskQueue(name, url, workers=2)

def work(x):
    tempfile.mkstemp(prefix=f"{x}-", dir=folder)
    time.sleep(0.02)
    return x * x

def inputs():
    for x in range(60):
        if x == 30 and kind == "stops":
            print("half", flush=True)
            time.sleep(60)
        yield x

job = queue.map(work, inputs(), name="sweep", chunksize=5)
print("all", flush=True)
if kind == "dies":
    next(iter(job))
    print("begun", flush=True)
    time.sleep(60)
print(sum(job.result()))
"""


class TestAKernelThatDies:
    @pytest.fixture
    def kernel(self, tmp_path, queue_name, server_url, runs):
        """``kernel(kind)`` starts a process that makes the job ``sweep``."""
        script = tmp_path / "make.py"
        script.write_text(MAKE)
        started: list[subprocess.Popen[str]] = []

        def start(kind):
            process = subprocess.Popen(
                [sys.executable, script, queue_name, server_url, runs.folder, kind],
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            process.kill()
            process.communicate()

    @pytest.mark.crash
    def test_its_workers_finish_the_job_and_then_go(self, kernel, make_queue, runs, wait_until):
        process = kernel("dies")
        while process.stdout.readline() != "begun\n":
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        observer = make_queue(workers=0)
        wait_until(lambda: observer.jobs()[0].state == "done", 20, "the end of the job")
        wait_until(lambda: not observer.workers(), 20, "the end of the workers")
        job = observer.attach("sweep")
        assert job.result(0) == [x * x for x in range(60)]
        assert set(runs.counts.values()) == {1}

    @pytest.mark.crash
    def test_in_the_midst_of_the_inputs(self, kernel, runs):
        process = kernel("stops")
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = kernel("again")
        assert again.communicate(timeout=30)[0] == f"all\n{sum(x * x for x in range(60))}\n"
        assert set(runs.counts.values()) == {1}
        assert len(runs.counts) == 60


@pytest.mark.crash
def test_a_worker_that_dies_loses_nothing_and_counts_add_up(make_queue, tmp_path, wait_until):
    once = str(tmp_path / "once")

    def work(x):
        if x == 7:
            try:
                os.close(os.open(once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return x
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    queue = make_queue()
    assert queue.map(work, range(20), name="j").result(30) == list(range(20))
    status = queue.jobs()[0]
    assert (status.done, status.failed, status.cancelled) == (20, 0, 0)
