"""Each stage of a call x each way to fail there: a clear error, and the next task works."""

import os
import signal

import pytest

from nbstreamq import TaskFuture
from nbstreamq.errors import ResultNotPicklable, WorkerLost

pytestmark = pytest.mark.crash


def fail(how):
    import ctypes
    import sys

    if how == "raise":
        raise ZeroDivisionError("on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(7)
    ctypes.string_at(0)


class OnUnpickling:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return fail, (self.how,)


class OnPickling(OnUnpickling):
    def __reduce__(self):
        fail(self.how)


def at_argument(submit, how):
    return submit(lambda _: "never", OnUnpickling(how))


def at_running(submit, how):
    return submit(fail, how)


def at_result(submit, how):
    return submit(OnPickling, how)


STAGES = {"argument": at_argument, "running": at_running, "result": at_result}
LOST = {"os._exit": "exit code 7", "SIGSEGV": "SIGSEGV"}


def by_submit(queue):
    return queue.submit


def by_map(queue):
    return lambda fn, item: queue.map(fn, [item])[0]


@pytest.mark.parametrize("submit", [by_submit, by_map])
@pytest.mark.parametrize("how", ["raise", "sys.exit", "os._exit", "SIGSEGV"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_error_is_clear_and_the_next_task_works(shared_queue, stage, how, submit):
    future: TaskFuture = STAGES[stage](submit(shared_queue), how)

    error = future.exception(20)

    if how in LOST:
        assert isinstance(error, WorkerLost)
        assert error.certificate.cause == LOST[how]
    elif stage == "result":
        assert isinstance(error, ResultNotPicklable)
        assert "on purpose" in str(error) if how == "raise" else "SystemExit" in str(error)
    else:
        assert isinstance(error, ZeroDivisionError if how == "raise" else SystemExit)
    assert shared_queue.map(lambda x: x, range(10)).result(20) == list(range(10))


@pytest.mark.parametrize("how", ["raise", "os._exit", "SIGSEGV"])
@pytest.mark.parametrize("at", [OnPickling, OnUnpickling])
def test_only_the_guilty_result_of_a_chunk_is_lost(shared_queue, at, how):
    """A result that can't be unpickled would harm the client: it is no case for os._exit."""
    if at is OnUnpickling and how != "raise":
        pytest.skip("would kill this very process: results of own workers are trusted")

    job = shared_queue.map(lambda x: at(how) if x == 3 else x, range(8), chunksize=8)
    job.wait(20)

    assert 3 in job.errors
    if at is OnPickling:
        assert list(job.errors) == [3]
        assert [f.result() for i, f in enumerate(job[:]) if i != 3] == [0, 1, 2, 4, 5, 6, 7]


def test_killed_while_unpickling(shared_queue, gate):
    died = gate("died")

    class Slow:
        def __reduce__(self):
            return wake_up, (died,)

    def wake_up(died):
        if died.once():
            os.kill(os.getpid(), signal.SIGKILL)
        return "awake"

    assert shared_queue.submit(lambda x: x, Slow()).result(20) == "awake"
