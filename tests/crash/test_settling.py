"""What fails between the take and the settlement of a task is that task's error alone."""

import threading

import pytest

from nbstreamq import WorkerLost

HALF = "bad \udcff.txt"


class _Hidden(type):
    @property
    def __module__(cls):
        raise ValueError("hidden")


class BadRepr(Exception):
    def __repr__(self):
        raise ZeroDivisionError

    __str__ = __repr__


class BadReduce(Exception):
    def __reduce__(self):
        raise SystemExit("no")


class BadClass(Exception, metaclass=_Hidden):
    pass


class Base(BaseException):
    pass


def deep():
    return deep()


def no_memory():
    raise MemoryError("x" * 10_000)


def surrogates():
    raise ValueError(HALF)


def group():
    raise ExceptionGroup(HALF, [ValueError(HALF), OSError(2, HALF)])


def notes():
    error = KeyError(HALF)
    error.add_note(HALF)
    raise error


def bad_repr():
    raise BadRepr


def bad_reduce():
    raise BadReduce


def bad_class():
    raise BadClass


def base():
    raise Base(HALF)


def leaves():
    raise SystemExit(HALF)


@pytest.mark.parametrize(
    "fn",
    [surrogates, group, notes, deep, no_memory, bad_repr, bad_reduce, bad_class, base, leaves],
)
@pytest.mark.parametrize("options", [{}, {"retries": 1}])
def test_whatever_is_raised_comes_back_and_the_worker_lives(shared_queue, fn, options):
    pids = {w.pid for w in shared_queue.workers()}
    queue = shared_queue.options(**options)
    alone = queue.submit(fn)
    among = queue.map(lambda i: fn() if i == 5 else i, range(20), chunksize=20)

    error = alone.exception(10)
    assert error is not None
    assert not isinstance(error, WorkerLost)
    assert [i for i in range(20) if i in among.errors or among[i].exception(10) is not None] == [5]
    assert {w.pid for w in shared_queue.workers()} == pids


def test_names_and_words_that_no_encoding_holds(shared_queue):
    def speak():
        print(HALF)
        return 1

    speak.__qualname__ = speak.__name__ = HALF
    future = shared_queue.submit(speak)

    assert future.result(10) == 1
    assert "bad \\udcff.txt" in future.logs


def test_a_dead_letter_holds_any_reason(new_queue):
    queue = new_queue(workers=1)
    assert queue.submit(surrogates).exception(10).args == (HALF,)
    letters = queue.dead()
    assert "\\udcff" in repr(letters)


@pytest.mark.parametrize("raised", [SystemExit, ValueError])
def test_a_callback_that_raises_takes_no_later_call_with_it(shared_queue, gate, raised, wait_until):
    def fails(_):
        called.append(1)
        raise raised("callback")

    called, over, go = [], threading.Event(), gate(f"go{raised.__name__}")
    shared_queue.submit(go.wait).add_done_callback(fails)
    shared_queue.submit(go.wait).add_done_callback(lambda _: over.set())
    go.open()  # and nobody else reads: the callbacks run in the listener's thread

    assert over.wait(10)
    wait_until(lambda: called, describe="the other callback")
    assert shared_queue.submit(abs, -3).result(10) == 3
    assert called == [1]
