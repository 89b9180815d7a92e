"""What a task raises arrives as itself, with the worker's frames; nothing secret is shown."""

from __future__ import annotations

import pickle
import threading
import traceback
import warnings

import pytest

from nbstreamq import (
    NbstreamqError,
    RemoteError,
    ResultNotPicklable,
    SecretMismatch,
    TaskQueue,
    TimeLimitExceeded,
    WorkerLost,
)


class TestType:
    def test_standard_one_with_its_attributes(self, shared_queue):
        error = shared_queue.submit(open, "/no/such/file").exception(10)
        assert type(error) is FileNotFoundError
        assert error.filename == "/no/such/file"

    def test_own_class_with_attributes(self, shared_queue):
        class OwnError(ValueError):
            def __init__(self, code, *, detail):
                super().__init__(f"code {code}")
                self.code, self.detail = code, detail

        def fail():
            raise OwnError(7, detail="x")

        with pytest.raises(OwnError, match="code 7") as caught:
            shared_queue.submit(fail).result(10)
        assert (caught.value.code, caught.value.detail) == (7, "x")

    def test_cause_and_notes(self, shared_queue):
        def fail():
            try:
                {}["missing"]
            except KeyError as cause:
                error = RuntimeError("outer")
                error.add_note("a note")
                raise error from cause

        error = shared_queue.submit(fail).exception(10)
        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, KeyError)
        assert "a note" in error.__notes__

    def test_group(self, shared_queue):
        def fail():
            raise ExceptionGroup("many", [ValueError(1), KeyError(2)])

        error = shared_queue.submit(fail).exception(10)
        assert [type(e) for e in error.exceptions] == [ValueError, KeyError]

    def test_unpicklable_comes_as_text(self, shared_queue):
        class Unpicklable(Exception):
            def __reduce__(self):
                raise TypeError("never")

        def fail():
            raise Unpicklable("the words")

        error = shared_queue.submit(fail).exception(10)
        assert isinstance(error, RemoteError)
        assert "the words" in str(error)
        assert "Unpicklable" in error.type_name
        assert "in fail" in error.traceback_text

    def test_of_a_map_one_for_each_item(self, shared_queue):
        job = shared_queue.map(lambda x: [][x], range(3))
        job.wait(10)
        assert [type(e) for e in job.errors.values()] == [IndexError] * 3


class TestTraceback:
    def test_has_the_frames_of_the_worker(self, shared_queue):
        def inner(x):
            return 1 / x  # the guilty line

        def outer(x):
            return inner(x)

        error = shared_queue.submit(outer, 0).exception(10)
        text = "".join(traceback.format_exception(error))
        assert "in outer" in text
        assert "in inner" in text
        assert "# the guilty line" in text


class TestResult:
    def test_that_cannot_travel(self, make_queue):
        queue = make_queue("-result", workers=1)
        error = queue.submit(threading.Lock).exception(10)
        assert isinstance(error, ResultNotPicklable)
        assert isinstance(error, TypeError)
        assert "lock" in str(error)
        before = queue.workers()
        assert queue.submit(abs, -1).result(10) == 1
        assert [w.id for w in queue.workers()] == [w.id for w in before]

    def test_one_of_a_map_leaves_the_others(self, shared_queue):
        job = shared_queue.map(lambda x: threading.Lock() if x == 2 else x, range(4))
        job.wait(10)
        assert list(job.errors) == [2]
        assert isinstance(job.errors[2], ResultNotPicklable)
        assert [job[i].result() for i in (0, 1, 3)] == [0, 1, 3]

    def test_that_fails_when_it_is_unpickled_here(self, shared_queue):
        class Bomb:
            def __reduce__(self):
                return int, ("no number",)

        future = shared_queue.submit(Bomb)
        with pytest.raises(Exception, match="no number"):
            future.result(10)
        assert shared_queue.submit(abs, -1).result(10) == 1


class TestArgument:
    def test_that_fails_when_it_is_unpickled_there(self, shared_queue):
        class Bomb:
            def __reduce__(self):
                return int, ("no number",)

        with pytest.raises(Exception, match="no number"):
            shared_queue.submit(str, Bomb()).result(10)
        assert shared_queue.submit(abs, -1).result(10) == 1


class TestLostWorker:
    def test_names_the_death_and_the_arguments(self, make_queue):
        def die(code):
            import os

            os._exit(code)

        queue = make_queue("-lost", workers=1)
        error = queue.submit(die, 77).exception(20)
        assert isinstance(error, WorkerLost)
        assert "77" in error.certificate.cause
        assert "die(77)" in error.certificate.item
        assert queue.submit(abs, -1).result(10) == 1

    def test_time_limit(self, shared_queue):
        def sleep(seconds):
            import time

            time.sleep(seconds)

        error = shared_queue.options(time_limit=0.1).submit(sleep, 30).exception(10)
        assert isinstance(error, TimeLimitExceeded)
        assert isinstance(error, TimeoutError)


class TestReplay:
    def test_runs_the_same_call_here(self, shared_queue):
        import os

        future = shared_queue.submit(lambda a, b: (os.getpid(), a + b), 1, b=2)
        there, total = future.result(10)
        assert future.replay() == (os.getpid(), total)
        assert there != os.getpid()

    def test_of_a_failed_item(self, shared_queue):
        job = shared_queue.map(lambda x, y: x / y, [1, 2, 3], [1, 0, 1])
        job.wait(10)
        with pytest.raises(ZeroDivisionError):
            job[1].replay()

    def test_with_a_ref(self, shared_queue):
        ref = shared_queue.put([1, 2, 3])
        future = shared_queue.submit(sum, ref)
        assert future.result(10) == future.replay() == 6

    def test_of_an_item_that_was_dropped(self, shared_queue):
        job = shared_queue.map(abs, range(10))
        job.wait(10)
        with pytest.raises(NbstreamqError, match="Call the function"):
            job[3].replay()


class TestSecrets:
    PASSWORD = "pass-4711"  # noqa: S105 - a secret of this test

    @pytest.fixture
    def guarded(self, start_server, queue_name):
        server = start_server("--requirepass", self.PASSWORD)
        url = f"unix://:{self.PASSWORD}@{server.socket}"
        with TaskQueue(queue_name, url, workers=1, secret="secret-0815") as queue:
            yield queue

    def test_are_in_nothing_that_is_shown(self, guarded):
        job = guarded.map(lambda x: 1 / x, [0, 1])
        job.wait(10)
        failed = job[0]
        lost = guarded.submit(lambda: __import__("os")._exit(3))
        shown = [
            repr(guarded),
            repr(guarded.options(retries=1)),
            repr(guarded.task(abs)),
            str(guarded.status()),
            repr(guarded.workers()),
            repr(job),
            repr(failed),
            "".join(traceback.format_exception(failed.exception())),
            "".join(traceback.format_exception(lost.exception(20))),
            str(pickle.dumps(guarded)),
        ]
        for secret in (self.PASSWORD, "secret-0815"):
            assert not [text for text in shown if secret in text]

    def test_wrong_secret(self, server_url, queue_name):
        with TaskQueue(queue_name, server_url, secret="one-11", workers=1) as queue:
            queue.submit(int).result(10)
            with pytest.raises(SecretMismatch) as caught:
                TaskQueue(queue_name, server_url, secret="two-22")
        assert not {"one-11", "two-22"} & set(str(caught.value).split())

    def test_wrong_password(self, start_server, queue_name):
        server = start_server("--requirepass", self.PASSWORD)
        url = f"unix://:{self.PASSWORD[::-1]}@{server.socket}"
        with pytest.raises(NbstreamqError) as caught:
            TaskQueue(queue_name, url)
        assert self.PASSWORD[::-1] not in "".join(traceback.format_exception(caught.value))


class TestNobodyThere:
    def test_no_workers_is_said_in_a_warning(self, make_queue):
        queue = make_queue("-none", workers=0)
        future = queue.submit(abs, -1)
        with pytest.warns(RuntimeWarning, match=r"has no workers.*q\.run\(4\)"):
            with pytest.raises(TimeoutError):
                future.result(3.3)
        queue.run(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert future.result(10) == 1

    def test_no_worker_for_the_lane(self, make_queue):
        queue = make_queue("-lane", workers=1)
        future = queue.options(lane="gpu").submit(abs, -1)
        with pytest.warns(RuntimeWarning, match="no worker serves its lane 'gpu'"):
            with pytest.raises(TimeoutError):
                future.result(3.3)
        future.cancel()
