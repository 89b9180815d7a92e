"""What a task raises arrives as itself, with the worker's frames; nothing secret is shown."""

from __future__ import annotations

import dataclasses
import linecache
import socket
import sys
import threading
import traceback
import types
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest

from nbstreamq import (
    NbstreamqError,
    RemoteError,
    ResultNotPicklable,
    TaskQueue,
    TimeLimitExceeded,
    WorkerLost,
)
from nbstreamq.client.error_notes import MOST_NOTES, RunInfo, annotate
from nbstreamq.wire.item_ranges import ranges_of


def raise_missing(*args):
    """Raise an error of a module that there is only where this runs."""
    module = sys.modules["only_there"] = types.ModuleType("only_there")
    exec("class MyError(Exception): pass", vars(module))
    raise module.MyError(*args)


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
        assert type(error) is Frozen or "a note" in error.__notes__

    def test_group(self, shared_queue):
        def fail():
            raise ExceptionGroup("many", [ValueError(1), KeyError(2)])

        error = shared_queue.submit(fail).exception(10)
        assert [type(e) for e in error.exceptions] == [ValueError, KeyError]

    def test_one_of_a_module_that_is_missing_here_comes_as_text(self, shared_queue):
        def fail():
            raise_missing("the words")

        error = shared_queue.submit(fail).exception(10)
        assert isinstance(error, RemoteError)
        assert "the words" in str(error)
        assert error.type_name == "only_there.MyError"
        assert "in fail" in error.traceback_text

    def test_of_a_map_one_for_each_item(self, shared_queue):
        job = shared_queue.map(lambda x: [][x], range(3))
        job.wait(10)
        assert [type(e) for e in job.errors.values()] == [IndexError] * 3


class Status(Exception):
    """As those of HTTP clients: it wants arguments by keyword, and holds a connection."""

    def __init__(self, request, history, *, status, headers=None):
        super().__init__(request, history)
        self.status = status
        self.request = request
        self.headers = headers

    def __str__(self):
        return f"{self.status}, url={self.request['url']}"


class Finalised:
    def __init__(self):
        self.n = 1

    def __del__(self):
        raise AssertionError("a copy cleans up")


class Slotted(Exception):
    __slots__ = ("code", "lock")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Reduced(Exception):
    def __init__(self, code, lock):
        super().__init__(f"code {code}")
        self.code, self.lock = code, lock

    def __reduce__(self):
        return type(self), (self.code, self.lock)


class Unreducible(Exception):
    def __reduce__(self):
        raise TypeError("never")


class Signature(Exception):
    def __init__(self, a, b, c):
        super().__init__(f"{a}{b}{c}")
        self.a = a

    def __reduce__(self):
        return type(self), self.args  # too few


class Setter(Exception):
    code = property(lambda self: self.__dict__["code"])

    def __init__(self, code):
        self.__dict__["code"] = code


def status_of_a_request():
    request = {"url": "/x", "socket": socket.socket()}
    return Status(request, ((x for x in []), threading.Lock()), status=429, headers={"a": "b"})


def with_attributes(error, **attributes):
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def a_circle():
    error = Unreducible("u")
    return with_attributes(error, me=[error], lock=threading.Lock())


#: What makes an error in the task, and what is true of the one that arrives, `e`.
PARTS = {
    "required arguments, a generator, a lock, a socket": (
        status_of_a_request,
        lambda e: (
            (type(e), e.status, e.headers, str(e)) == (Status, 429, {"a": "b"}, "429, url=/x")
            and "which could not be sent from the worker" in repr(e.args[1])
            and "socket.socket" in repr(e.request["socket"])
        ),
    ),
    "something that cleans up": (
        lambda: with_attributes(ValueError("why"), lock=threading.Lock(), part=[Finalised(), 2]),
        lambda e: str(e) == "why" and e.part[1] == 2 and type(e.part[0]) is not Finalised,
    ),
    "slots": (
        lambda: with_attributes(Slotted(1), code=5, lock=threading.Lock()),
        lambda e: (type(e), e.code) == (Slotted, 5) and "_thread.lock" in repr(e.lock),
    ),
    "frozen": (lambda: Frozen(7), lambda e: (type(e), e.code) == (Frozen, 7)),
    "its own way to be pickled": (
        lambda: Reduced(6, threading.Lock()),
        lambda e: (type(e), e.code, str(e)) == (Reduced, 6, "code 6"),
    ),
    "no way to be pickled": (
        lambda: with_attributes(Unreducible("why"), code=3),
        lambda e: (type(e), e.code, str(e)) == (Unreducible, 3, "why"),
    ),
    "another signature than its arguments": (
        lambda: Signature(1, 2, 3),
        lambda e: (type(e), e.a, str(e)) == (Signature, 1, "123"),
    ),
    "a property": (lambda: Setter(4), lambda e: (type(e), e.code) == (Setter, 4)),
    "a group": (
        lambda: ExceptionGroup("all", [KeyError("k"), Unreducible("u"), OSError(2, "no", "f")]),
        lambda e: (
            [type(x) for x in e.exceptions] == [KeyError, Unreducible, FileNotFoundError]
            and e.exceptions[2].filename == "f"
        ),
    ),
    "a circle": (
        a_circle,
        lambda e: type(e) is Unreducible and e.me[0] is e,
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_an_error_arrives_with_what_can_be_pickled_of_it(case, shared_queue):
    make, expected = PARTS[case]

    def fail():
        try:
            raise with_attributes(LookupError("before"), lock=threading.Lock())
        except LookupError as cause:
            error = make()
            if type(error) is not Frozen:
                error.add_note("a note")
            raise error from cause

    error = shared_queue.submit(fail).exception(20)
    assert expected(error), repr(error)
    assert type(error.__cause__) is LookupError
    assert type(error) is Frozen or "a note" in error.__notes__


class Hostile(Exception):
    """Refuses all that is asked of it."""

    def __getattribute__(self, name):
        raise ValueError(name)


class HostileArgument:
    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        raise Hostile


def raise_hostile(i):
    if i == 3:
        raise Hostile
    return i


def be_hostile():
    raise Hostile


class HostileResult:
    def __init__(self, i):
        self.i = i

    def __eq__(self, other):
        return self.i == other

    __hash__ = None

    def __reduce__(self):
        return (be_hostile, ()) if self.i == 3 else (int, (self.i,))


class TestAnErrorThatCanNotBeLookedAt:
    """It ends its own call: who logs it, or looks for its class, survives."""

    @pytest.mark.parametrize("fn", [raise_hostile, HostileResult])
    def test_of_an_item_fails_that_item(self, fn, shared_queue):
        job = shared_queue.map(fn, range(6), chunksize=6)
        assert type(job[3].exception(20)) in {RemoteError, Hostile}
        assert [job[i].result(20) for i in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]

    def test_of_an_argument_fails_its_call(self, shared_queue):
        assert type(shared_queue.submit(id, HostileArgument()).exception(20)) is RemoteError

    @pytest.mark.parametrize("end", [be_hostile, sys.exit])
    def test_of_a_callback_keeps_no_other_from_being_called(
        self, end, shared_queue, gate, wait_until
    ):
        called, job = [], shared_queue.map(gate.hold, range(3), chunksize=3)
        for k in range(3):
            job[k].add_done_callback(called.append)
            job[k].add_done_callback(lambda _: end())
        gate.open()
        with suppress(SystemExit):
            job.result(20)
        wait_until(lambda: len(called) == 3, describe="three callbacks")
        assert shared_queue.submit(abs, -1).result(20) == 1


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

    def test_code_keeps_its_file_lines_and_columns(self, shared_queue):
        def outer(x):
            return [inner(y) for y in (x,)]

        def inner(x):
            class Deep:
                value = 1 / x

            return Deep

        def places_of(code):
            nested = [places_of(c) for c in code.co_consts if isinstance(c, types.CodeType)]
            return code.co_filename, code.co_qualname, [*code.co_positions()], nested

        for function in (outer, inner, places_of, lambda x: x):
            sent = shared_queue.submit(lambda f: places_of(f.__code__), function)
            assert sent.result(10) == places_of(function.__code__)

    def test_the_same_file_name_with_other_lines(self, shared_queue):
        def source_lines(text):
            """What two kernels do whose prompts count alike."""
            linecache.cache["<prompt-1>"] = (len(text), None, [text], "<prompt-1>")
            namespace = {}
            exec(compile(text, "<prompt-1>", "exec"), namespace)
            return namespace["f"]

        def fail():
            try:
                f()
            except ZeroDivisionError:
                return traceback.format_exc()

        for text in ("f = lambda: 1 / 0", "f = lambda: 2 / 0"):
            f = source_lines(text)
            assert all(text in shared_queue.submit(fail).result(10) for _ in range(9))
        del linecache.cache["<prompt-1>"]


def notes_of(error):
    """Return the notes that say which call it was."""
    return [n for n in getattr(error, "__notes__", ()) if "on worker" in n]


def test_a_missing_module_says_where_it_is_missing(shared_queue):
    def load():
        import no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError) as caught:
        shared_queue.submit(load).result(10)
    (note,) = [n for n in caught.value.__notes__ if "is missing" in n]
    assert sys.executable in note
    assert socket.gethostname() in note
    assert note in "".join(traceback.format_exception(caught.value))


class TestNote:
    def test_names_the_call_and_the_worker(self, shared_queue):
        def divide(a, *, by):
            return a / by

        future = shared_queue.submit(divide, 7, by=0)
        error = future.exception(10)
        assert notes_of(error) == [
            f"Raised in task {future.id} (divide(7, by=0)) on worker {future.worker}, attempt 1."
        ]

    def test_names_the_item_of_a_map(self, shared_queue):
        def invert(x):
            return 1 / x

        job = shared_queue.map(invert, [1, 2, 0, 4])
        with pytest.raises(ZeroDivisionError) as caught:
            list(job)
        assert notes_of(caught.value) == [
            f"Raised in task {job.id}-2 (invert(0)) on worker {job[2].worker}, attempt 1."
        ]
        assert notes_of(caught.value)[0] in "".join(traceback.format_exception(caught.value))
        assert job.errors[2] is job[2].exception() is caught.value
        assert len(notes_of(caught.value)) == 1

    def test_names_the_arguments_of_a_starmap(self, shared_queue):
        job = shared_queue.map(lambda x, y: x / y, [1, 2], [1, 0])
        job.wait(10)
        assert "(<lambda>(2, 0))" in notes_of(job.errors[1])[0]

    def test_counts_the_attempts(self, shared_queue):
        error = shared_queue.options(retries=2).submit(divmod, 1, 0).exception(10)
        assert notes_of(error)[0].endswith("attempt 3.")

    def test_is_short_and_one_line(self, shared_queue):
        class Poem:
            def __repr__(self):
                return "a\nb\n" * 1000

        error = shared_queue.submit(lambda *poems: 1 / 0, *[Poem()] * 50).exception(10)
        (note,) = notes_of(error)
        assert "\n" not in note
        assert len(note) < 250

    def test_fills_in_what_is_not_here(self, shared_queue):
        ref = shared_queue.put([1])
        other = shared_queue.submit(abs, -1)

        def fail(*args, **kwargs):
            raise ValueError

        error = shared_queue.submit(fail, ref, other).exception(10)
        assert "(fail(<value of a Ref>, <result of another task>))" in notes_of(error)[0]

    def test_goes_without_arguments_that_cannot_be_shown(self, shared_queue):
        class Worse(BaseException):
            def __repr__(self):
                raise SystemExit

        class Awful:
            def __repr__(self):
                raise Worse

        def fail(*args, **kwargs):
            raise ValueError("x")

        future = shared_queue.submit(fail, Awful(), x=Awful())
        assert isinstance(future.exception(10), ValueError)
        error = shared_queue.submit(fail, "x" * (11 * 2**20)).exception(10)
        assert "(fail(…))" in notes_of(error)[0]

    def test_of_a_call_inside_a_call(self, shared_queue):
        def outer(x):
            return shared_queue.submit(divmod, x, 0).result()

        future = shared_queue.submit(outer, 3)
        inner, own = notes_of(future.exception(10))
        assert "divmod(3, 0)" in inner
        assert f"{future.id} (outer(3))" in own

    def test_of_many_calls_inside_calls(self, shared_queue):
        def down(n):
            return shared_queue.submit(down, n - 1).result() if n else 1 / 0

        notes = notes_of(shared_queue.submit(down, MOST_NOTES + 5).exception(20))
        assert len(notes) == MOST_NOTES
        assert "(down(0))" in notes[0]
        assert "(down(1))" in notes[1]
        assert f"(down({MOST_NOTES + 5}))" in notes[-1]

    def test_of_an_error_as_text(self, shared_queue):
        def fail(x):
            raise_missing()

        error = shared_queue.submit(fail, 5).exception(10)
        assert isinstance(error, RemoteError)
        assert "(fail(5))" in notes_of(error)[0]

    def test_not_where_the_text_says_it(self, shared_queue):
        error = shared_queue.submit(threading.Lock).exception(10)
        assert isinstance(error, ResultNotPicklable)
        assert notes_of(error) == []

    def test_not_again_where_another_call_fails_of_it(self, shared_queue):
        first = shared_queue.submit(divmod, 1, 0)
        second = shared_queue.submit(abs, first)
        assert second.exception(10) is first.exception(10)
        assert len(notes_of(second.exception())) == 1

    def test_once_where_items_share_an_error(self):
        error = ValueError("shared")
        report = RunInfo("finished", 0, ranges_of(range(2)), "w1", 1, 0.0, 0.0)
        for item in range(2):
            annotate(error, item, None, report, job="job.1", name="f")
        assert notes_of(error) == ["Raised in task job.1-0 (f(…)) on worker w1, attempt 1."]

    def test_is_left_out_where_the_error_takes_none(self):
        class Frozen(Exception):
            def __setattr__(self, name, value):
                raise SystemExit

        report = RunInfo("finished", 0, ranges_of([0]), "w1", 1, 0.0, 0.0)
        annotate(Frozen(), 0, None, report, job="job.1", name="f")

    def test_an_error_that_is_false_is_an_error(self, shared_queue):
        class Empty(Exception):
            def __len__(self):
                return 0

        def fail():
            raise Empty

        assert type(shared_queue.submit(fail).exception(10)) is Empty


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
        with pytest.raises(Exception, match="no number") as caught:
            future.result(10)
        assert notes_of(caught.value)[0].startswith(f"Came out of task {future.id} (Bomb())")
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
        assert notes_of(error) == []
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


def test_a_password_is_in_no_traceback(start_server, queue_name):
    password = "pass-4711"
    server = start_server("--requirepass", password)
    url = f"unix://:{password}@{server.socket}"
    with TaskQueue(queue_name, url, workers=1, secret="secret-0815") as queue:
        failed = queue.submit(lambda: 1 / 0)
        lost = queue.submit(lambda: __import__("os")._exit(3))
        for error in (failed.exception(10), lost.exception(20)):
            text = "".join(traceback.format_exception(error))
            assert password not in text
            assert "secret-0815" not in text


def test_errors_can_be_returned_in_place_of_results(queue, gate):
    def work(x):
        return gate.hold(x) if x == 2 else 60 // x

    job = queue.map(work, range(3), chunksize=1)
    with pytest.raises(TimeoutError):
        job.result(0.01, errors="return")
    job[0].exception(20), job[1].result(20)
    job.cancel()
    failed, done, cancelled = job.result(errors="return")
    assert isinstance(failed, ZeroDivisionError)
    assert done == 60
    assert isinstance(cancelled, CancelledError)
    with pytest.raises(ValueError, match="errors is 'ignore': it must be 'raise' or 'return'"):
        job.result(errors="ignore")
