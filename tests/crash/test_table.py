"""Wherever foreign code runs in a worker, and whatever it does: a clear error, and on it goes.

After the table in loky's tests.
"""

import ctypes
import os
import signal
import sys

import pytest

from nbstreamq import NotPicklable, ResultNotPicklable, WorkerLost


class Unlucky(Exception):
    """What the tasks here raise."""


def raise_it():
    raise Unlucky("here it is")


def leave():
    sys.exit(3)


def leave_at_once():
    os._exit(3)


def segfault():
    ctypes.string_at(0)


def abort():
    os.abort()


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


FATAL = {
    leave_at_once: "exit code 3",
    segfault: "SIGSEGV",
    abort: "SIGABRT",
    be_killed: "SIGKILL",
}
ALL = [raise_it, leave, *FATAL]


class AtPickling:
    """Does it when it is pickled."""

    def __init__(self, act):
        self.act = act

    def __reduce__(self):
        self.act()
        return AtPickling, (self.act,)


class AtUnpickling:
    """Does it when it is unpickled."""

    def __init__(self, act):
        self.act = act

    def __reduce__(self):
        return call, (self.act,)


def call(act):
    act()


class AtPicklingError(Exception):
    """Does it when it is pickled."""

    def __init__(self, act):
        super().__init__(act)
        self.act = act

    def __reduce__(self):
        self.act()
        return AtPicklingError, (self.act,)


@pytest.fixture
def queue(shared_queue):
    return shared_queue


def expect(error, act, otherwise):
    """Check that `error` is what the client is to see of `act`, which may be survived."""
    if act in FATAL:
        assert isinstance(error, WorkerLost)
        assert error.certificate.cause == FATAL[act]
        assert error.certificate.peak_memory_bytes > 2**20
        assert FATAL[act] in str(error)
    else:
        assert isinstance(error, otherwise), repr(error)


def check_next(queue):
    """Check that nothing is wrong with the queue."""
    assert queue.map(lambda x: x + 1, range(20)).result(20) == list(range(1, 21))


@pytest.mark.parametrize("act", ALL)
def test_when_the_arguments_are_unpickled(queue, act):
    future = queue.submit(lambda _: 0, AtUnpickling(act))

    expect(future.exception(30), act, Unlucky if act is raise_it else SystemExit)
    check_next(queue)


@pytest.mark.parametrize("act", ALL)
def test_when_the_function_is_unpickled(queue, act):
    captured = AtUnpickling(act)

    future = queue.submit(lambda: captured)

    expect(future.exception(30), act, Unlucky if act is raise_it else SystemExit)
    check_next(queue)


@pytest.mark.parametrize("act", ALL)
def test_when_the_task_runs(queue, act):
    future = queue.submit(act)

    expect(future.exception(30), act, Unlucky if act is raise_it else SystemExit)
    check_next(queue)


@pytest.mark.parametrize("act", ALL)
def test_when_the_result_is_pickled(queue, act):
    future = queue.submit(lambda: AtPickling(act))

    expect(future.exception(30), act, ResultNotPicklable)
    check_next(queue)


@pytest.mark.parametrize("act", ALL)
def test_when_the_exception_is_pickled(queue, act):
    def fail():
        raise AtPicklingError(act)

    future = queue.submit(fail)

    expect(future.exception(30), act, Exception)
    check_next(queue)


@pytest.mark.parametrize("act", [raise_it, leave])
def test_when_the_arguments_are_pickled(queue, act):
    with pytest.raises((NotPicklable, SystemExit)):
        queue.submit(lambda _: 0, AtPickling(act))
    check_next(queue)


@pytest.mark.parametrize("act", [raise_it, leave])
def test_when_the_result_is_unpickled(queue, act):
    future = queue.submit(lambda: AtUnpickling(act))

    expect(future.exception(30), act, Unlucky if act is raise_it else SystemExit)
    check_next(queue)


@pytest.mark.parametrize("act", ALL)
def test_in_a_chunk_only_the_guilty_item_fails(queue, act):
    job = queue.map(lambda i: act() if i == 5 else i, range(12), chunksize=12)
    job.wait(40)

    assert list(job.errors) == [5]
    expect(job.errors[5], act, Unlucky if act is raise_it else SystemExit)
    assert [job[i].result(0) for i in range(12) if i != 5] == [i for i in range(12) if i != 5]


@pytest.mark.parametrize("act", [raise_it, leave_at_once, segfault])
def test_in_a_chunk_only_the_guilty_result_fails(queue, act):
    job = queue.map(lambda i: AtPickling(act) if i == 5 else i, range(12), chunksize=12)
    job.wait(40)

    assert list(job.errors) == [5]
    expect(job.errors[5], act, ResultNotPicklable)
    assert [job[i].result(0) for i in range(12) if i != 5] == [i for i in range(12) if i != 5]
