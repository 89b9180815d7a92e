"""An error at any moment of a call's way ends that call at most: the k-th Python call raises.

The tests know nothing of what they hit. With NBSTREAMQ_FAULTS=all they try each k, else some.

Nothing is promised for what the standard library does between a future's having its result and the
call of those who wait by `concurrent.futures.wait`, or by a callback.
"""

import gc
import os
import sys
import threading

import pytest

from nbstreamq import RemoteError, TaskQueue
from nbstreamq.locks import Event
from tests.faults import Fault, Injected, strike

#: How many of the calls are tried in each test.
N_TRIED = 12
#: Seconds in which a call must have ended.
SOON = 5.0
#: More calls than there are on any way.
ALL = 3000


def some(n_calls):
    """Return which of so many calls are to fail."""
    if os.environ.get("NBSTREAMQ_FAULTS") == "all":
        return range(1, n_calls + 1)
    if n_calls == ALL:  # as many as there are
        return [int(1.6**i) + i for i in range(14)]
    return range(1, n_calls + 1, n_calls // N_TRIED)


def outcome(future):
    try:
        return future.result(SOON)
    except Injected as error:
        return error


def check(values, expected):
    """Return whether all are as expected but for one, which may be the error."""
    wrong = [v for v, e in zip(values, expected, strict=True) if v != e]
    assert len(wrong) <= 1, wrong
    assert all(isinstance(v, Injected) for v in wrong), wrong


# -- the worker ---------------------------------------------------------------------------------


def lone(queue):
    return [outcome(queue.submit(abs, -3))], [3]


def chunk(queue):
    job = queue.map(abs, range(-5, 0), chunksize=5)
    values = [outcome(job[i]) for i in range(5)]
    if len({str(value) for value in values}) == 1:  # they share what failed: loading their inputs
        return values[:1], [5]
    return values, [5, 4, 3, 2, 1]


def again(queue):
    def fails():
        raise KeyError("each time")

    future = queue.options(retries=1).submit(fails)
    error = future.exception(SOON)
    if isinstance(error, RemoteError) and str(error).startswith("KeyError"):
        return [KeyError], [KeyError]  # it could not be pickled or described, so its name came
    return [error if isinstance(error, Injected) else type(error)], [KeyError]


def nested(queue):
    return [outcome(queue.submit(lambda: queue.submit(abs, -4).result()))], [4]


def printing(queue):
    def speak():
        print("word")
        return 6

    return [outcome(queue.submit(speak))], [6]


@pytest.mark.parametrize("call", [lone, chunk, again, nested, printing])
@pytest.mark.timeout(600)
def test_a_worker_survives_an_error_in_any_call(one_worker, call):
    queue = one_worker
    pid = queue.submit(os.getpid).result(20)
    for k in some(400):
        hit = [outcome(queue.submit(strike, k))]
        values, expected = call(queue)
        hit.append(outcome(queue.submit(sys.setprofile, None)))
        try:
            check([*hit, *values], [k, None, *expected])
            assert queue.submit(os.getpid).result(SOON) == pid
            assert queue.map(abs, range(-3, 0)).result(SOON) == [3, 2, 1]
        except BaseException as error:
            error.add_note(f"k = {k}")
            raise


# -- the client ---------------------------------------------------------------------------------


class Client:
    """A queue of which a thread fails at its k-th call, once `strike` was called."""

    def __init__(self, name, url, k, thread):
        self.fault = Fault(k, thread)
        before, others = threading.getprofile(), set(threading.enumerate())
        threading.setprofile(self.fault)  # for the threads that start now
        try:
            self.queue = TaskQueue(name, url, workers=0)
        finally:
            threading.setprofile(before)
        self.threads = set(threading.enumerate()) - others

    def strike(self):
        self.fault.is_armed = True


def by_callback(futures):
    """Wait as callbacks do: then no thread of ours but the listener reads."""
    left, over = set(range(len(futures))), Event()  # that no error leaves locked

    def one_is_done(i):
        left.discard(i)
        if not left:
            over.set()

    for i, future in enumerate(futures):
        future.add_done_callback(lambda _, i=i: one_is_done(i))
    over.wait(SOON)


def burst(client):
    futures = [client.queue.submit(abs, -i) for i in range(6)]
    by_callback(futures)
    return [outcome(f) for f in futures], list(range(6))


def mapped(client):
    job = client.queue.map(abs, range(-6, 0), chunksize=2)
    futures = [job[i] for i in range(6)]
    by_callback(futures)
    return [outcome(f) for f in futures], [6, 5, 4, 3, 2, 1]


def large(client):
    future = client.queue.submit(bytes, 2**20)
    by_callback([future])
    value = outcome(future)
    return [value if isinstance(value, Injected) else len(value)], [2**20]


def named(client):
    job = client.queue.map(abs, range(-6, 0), chunksize=2, name="n", replace=True)
    return [outcome(job[i]) for i in range(6)], [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("thread", ["nbstreamq-sender", "nbstreamq-listener"])
@pytest.mark.parametrize("call", [burst, mapped, large, named])
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.timeout(900)
def test_a_thread_of_the_client_survives_an_error_in_any_call(
    queue, server_url, queue_name, thread, call
):
    assert queue.submit(abs, -1).result(20) == 1
    for k in some(ALL):
        client = Client(queue_name, server_url, k, thread)
        try:
            client.strike()
            values, expected = call(client)
            is_over = not client.fault.place
            client.fault.is_armed = False
            check(values, expected)
            assert client.queue.map(abs, range(-3, 0)).result(SOON) == [3, 2, 1]
            assert all(t.is_alive() for t in client.threads)
        except BaseException as error:
            error.add_note(f"k = {k}, {client.fault.place}")
            raise
        finally:
            client.queue.shutdown(cancel_futures=True)
        if is_over:
            break


def lone_here(queue):
    return [outcome(queue.submit(abs, -3))], [3]


def some_here(queue):
    futures = [queue.submit(abs, -i) for i in range(4)]
    return [outcome(f) for f in futures], [0, 1, 2, 3]


@pytest.mark.parametrize("call", [lone_here, some_here])
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.timeout(900)
def test_an_error_in_the_thread_that_calls_harms_no_other_call(queue, new_queue, call):
    assert queue.submit(abs, -1).result(20) == 1
    for k in some(ALL):
        client = new_queue(workers=0)
        other = client.submit(abs, -8)
        fault = Fault(k)
        fault.is_armed = True
        sys.setprofile(fault)
        try:
            values, expected = call(client)
        except Injected:
            values = expected = []
        finally:
            sys.setprofile(None)
        try:
            check(values, expected)
            assert other.result(SOON) == 8
            assert client.map(abs, range(-3, 0)).result(SOON) == [3, 2, 1]
            client.shutdown()  # waits for all that is open
        except BaseException as error:
            error.add_note(f"k = {k}, {fault.place}")
            raise
        if not fault.place:
            break


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_session_ends_whatever_fails_as_it_is_closed(
    queue, server_url, queue_name, gate, wait_until
):
    assert queue.submit(abs, -1).result(20) == 1
    for k in some(ALL):
        go = gate(f"go{k}")
        client = Client(queue_name, server_url, k, "nbstreamq-closing")
        future = client.queue.submit(go.wait)
        threading.setprofile(client.fault)  # for the thread that is started to close it
        try:
            client.queue.shutdown(wait=False)
            client.strike()
            go.open()
            future.result(SOON)
            wait_until(
                lambda: not any(t.is_alive() for t in client.threads),
                SOON,
                f"the end of the threads, k = {k}, {client.fault.place}",
            )
        finally:
            threading.setprofile(None)
        if not client.fault.place:
            break
    gc.collect()  # here, where it is expected that a socket was left open
