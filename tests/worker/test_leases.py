"""`q.limit`: calls wait for sections that only some of them may be in."""

import asyncio
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import nbstreamq
from nbstreamq import NbstreamqError, TimeLimitExceeded
from nbstreamq.wire.keys import Keys


def most_at_a_time(spans):
    changes = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def numbers(queue, name):
    (about,) = (one for one in queue.status().limits if one.limit == name)
    return about.running, about.waiting


@pytest.fixture
def holder(shared_queue, gate, wait_until):
    """``holder(limit)``: a call that is in a section; and a gate that ends it."""
    gates = []

    def hold(limit):
        begun, go = gate(f"begun-{limit.name}"), gate(f"go-{limit.name}")
        gates.append(go)

        def work():
            with limit:
                begun.open()
                go.wait()

        future = shared_queue.submit(work)
        begun.wait()
        return future, go

    yield hold
    for go in gates:
        go.open()


def test_so_many_calls_are_in_a_section_at_the_same_time(shared_queue, wait_until):
    limit = shared_queue.limit("sync", concurrent=1)

    def work(_):
        time.sleep(0.002)
        with limit:
            began = time.time()
            time.sleep(0.01)
            return began, time.time()

    assert most_at_a_time(shared_queue.map(work, range(20), chunksize=2).result(30)) == 1
    wait_until(lambda: numbers(shared_queue, "sync") == (0, 0))  # given back behind the result


def test_coroutines_and_plain_functions_share_a_limit(shared_queue):
    limit = shared_queue.limit("mixed", concurrent=3)

    async def fetch(_):
        async with limit:
            began = time.time()
            await asyncio.sleep(0.02)
            return began, time.time()

    def work(_):
        with limit:
            began = time.time()
            time.sleep(0.01)
            return began, time.time()

    jobs = [shared_queue.map(fetch, range(20)), shared_queue.map(work, range(10))]
    spans = [span for job in jobs for span in job.result(30)]
    assert most_at_a_time(spans) == 3


def test_a_rate_holds_over_all_workers(shared_queue):
    limit = shared_queue.limit("rate", rate=20)

    async def begin(_):
        async with limit:
            return time.time()

    starts = sorted(shared_queue.map(begin, range(20)).result(30))
    assert starts[-1] - starts[0] > 18 / 20


def test_threads_of_a_call_get_leases_of_their_own(shared_queue):
    limit = shared_queue.limit("threads", concurrent=2)

    def work():
        def part(_):
            with limit:
                began = time.time()
                time.sleep(0.01)
                return began, time.time()

        with ThreadPoolExecutor(5) as pool:
            return list(pool.map(part, range(10)))

    assert most_at_a_time(shared_queue.submit(work).result(30)) == 2


@pytest.mark.parametrize("how", ["cancel", "time_limit"])
def test_a_wait_can_be_stopped(shared_queue, holder, wait_until, how):
    limit = shared_queue.limit(how, concurrent=1)
    first, go = holder(limit)

    def work():
        with limit:
            return os.getpid()

    pid = shared_queue.submit(os.getpid).result(10)  # of the worker that is free
    queue = shared_queue.options(time_limit=0.3) if how == "time_limit" else shared_queue
    future = queue.submit(work)
    if how == "cancel":
        wait_until(lambda: numbers(shared_queue, how) == (1, 1), describe="a call that waits")
        future.cancel()
        wait_until(future.done, describe="its end")
        assert future.cancelled()
    else:
        assert isinstance(future.exception(10), TimeLimitExceeded)
    wait_until(lambda: numbers(shared_queue, how) == (1, 0), describe="a wait that is over")
    go.open()
    first.result(10)
    assert shared_queue.submit(work).result(10)
    assert pid in [worker.pid for worker in shared_queue.workers()]  # it goes on


def test_a_coroutine_that_waits_can_be_stopped(shared_queue, holder, wait_until):
    limit = shared_queue.limit("stopped", concurrent=1)
    first, go = holder(limit)

    async def work():
        async with limit:
            return 1

    cancelled = shared_queue.submit(work)
    wait_until(lambda: numbers(shared_queue, "stopped") == (1, 1), describe="a call that waits")
    cancelled.cancel()
    late = shared_queue.options(time_limit=0.2).submit(work)
    assert isinstance(late.exception(10), TimeLimitExceeded)
    wait_until(lambda: numbers(shared_queue, "stopped") == (1, 0), describe="their end")
    go.open()
    first.result(10)


def test_a_waiting_call_says_what_it_waits_for(shared_queue, holder, wait_until):
    limit = shared_queue.limit("shown", concurrent=1)
    _, go = holder(limit)

    def work():
        with limit:
            return 1

    future = shared_queue.submit(work)
    wait_until(
        lambda: "waits for limit shown" in repr(shared_queue.workers()), describe="why it waits"
    )
    assert "limit shown: 1 running, 1 waiting" in repr(shared_queue.status())
    go.open()
    assert future.result(10) == 1


def test_new_numbers_hold_for_calls_that_wait(shared_queue, holder):
    limit = shared_queue.limit("wider", concurrent=1)
    first, _ = holder(limit)

    def work():
        with limit:
            return 1

    future = shared_queue.submit(work)
    shared_queue.limit("wider", concurrent=2)
    assert future.result(10) == 1
    assert not first.done()


def test_what_a_call_has_not_given_back_is_free_at_its_end(shared_worker, wait_until):
    limit = shared_worker.limit("left", concurrent=1)

    def careless():
        limit.__enter__()

    async def careless_too():
        await limit.__aenter__()

    for work in (careless, careless_too, careless):
        shared_worker.submit(work).result(10)
    wait_until(lambda: numbers(shared_worker, "left") == (0, 0))  # given back behind the result


def test_a_thread_that_waits_at_the_end_of_its_call_gets_an_error(
    shared_worker, gate, tmp_path, wait_until
):
    limit, go, note = shared_worker.limit("threads", concurrent=1), gate("go"), tmp_path / "note"

    def work():
        def wait():
            try:
                limit.__enter__()
            except NbstreamqError as error:
                note.write_text(str(error))

        limit.__enter__()
        threading.Thread(target=wait, daemon=True).start()
        go.wait()

    future = shared_worker.submit(work)
    wait_until(lambda: numbers(shared_worker, "threads") == (1, 1))
    go.open()
    future.result(30)
    wait_until(lambda: note.exists() and "thread waits for limit 'threads'" in note.read_text())
    wait_until(lambda: numbers(shared_worker, "threads") == (0, 0))


def test_a_plain_call_waits_while_coroutines_have_the_leases(shared_worker, gate):
    """Both run in the main thread of one worker: the loop runs while the plain call waits."""
    limit, begun = shared_worker.limit("nested", concurrent=1), gate("begun")
    queue = shared_worker

    def plain():
        with limit:
            return 1

    async def outer():
        inner = queue.submit(plain)  # it waits for the section below
        async with limit:
            begun.open()
            await asyncio.sleep(0.3)
        return await inner

    assert shared_worker.submit(outer).result(20) == 1


def test_no_call_runs_on_top_of_one_that_is_in_a_section(shared_worker):
    """It might want the same lease, and the call below could not go on to give it back."""
    limit, queue = shared_worker.limit("stack", concurrent=1), shared_worker

    def other():
        with limit:
            return 1

    def outer():
        others = queue.submit(other)
        with limit:
            found = queue.submit(abs, -1).result()
        return found + others.result()

    assert shared_worker.submit(outer).result(30) == 2


def test_plain_code_in_a_coroutine_may_not_block_the_loop(shared_queue):
    limit = shared_queue.limit("blocks", concurrent=1)

    async def work():
        with limit:
            pass

    error = shared_queue.submit(work).exception(10)
    assert isinstance(error, RuntimeError)
    assert "write `async with`" in str(error)


def test_a_limit_of_another_queue_is_refused(shared_queue, shared_worker):
    limit = shared_worker.limit("foreign", concurrent=1)

    def work():
        with limit:
            pass

    with pytest.raises(NbstreamqError, match="use a limit of that queue"):
        shared_queue.submit(work).result(10)


def test_a_process_that_a_call_has_forked_is_refused(shared_queue, wait_until):
    limit = shared_queue.limit("forked", concurrent=1)

    def child(connection):
        try:
            with limit:
                connection.send("it got in")
        except NbstreamqError as error:
            connection.send(str(error))

    def work():
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        with limit:
            process = fork.Process(target=child, args=(there,))
            process.start()
            found = here.recv()
            process.join()
        return found

    assert "was forked" in shared_queue.submit(work).result(20)
    wait_until(lambda: numbers(shared_queue, "forked") == (0, 0))  # given back behind the result


def test_outside_of_calls_nothing_is_counted(shared_queue):
    limit = shared_queue.limit("here", concurrent=1)
    with limit, limit:
        assert numbers(shared_queue, "here") == (0, 0)

    async def main():
        async with limit:
            return 1

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize(
    ("name", "numbers", "error", "says"),
    [
        ("api", {}, ValueError, "give concurrent, rate, or both"),
        ("", {"rate": 1}, ValueError, "name is ''"),
        ("my api", {"rate": 1}, ValueError, "name is 'my api'"),
        (7, {"rate": 1}, TypeError, "name is 7"),
        ("api", {"concurrent": 0}, ValueError, "concurrent is 0"),
        ("api", {"concurrent": 1.5}, TypeError, "concurrent is 1.5"),
        ("api", {"rate": 0}, ValueError, "rate is 0"),
        ("api", {"rate": float("inf")}, ValueError, "rate is inf"),
        ("api", {"rate": "5/s"}, TypeError, "rate is '5/s'"),
        ("api", {"rate": 1e-9}, ValueError, "from one in a year"),
    ],
)
def test_what_is_no_limit_is_refused_at_once(shared_queue, name, numbers, error, says):
    with pytest.raises(error, match=says):
        shared_queue.limit(name, **numbers)


def test_a_named_job_stays_the_same_with_other_numbers(shared_queue):
    def make():
        limit = shared_queue.limit("kept", concurrent=len(makes) + 1)

        def work(x):
            with limit:
                return x

        return work

    makes = []
    for _ in range(2):
        job = shared_queue.map(make(), range(3), name="limited")
        assert job.result(10) == [0, 1, 2]
        makes.append(job.id)
    assert makes[0] == makes[1]
    job.delete()


def test_a_worker_without_limits_has_no_thread_for_them(new_queue):
    queue = new_queue(workers=1)

    def names():
        return {thread.name for thread in threading.enumerate()}

    assert "nbstreamq-leases" not in queue.submit(names).result(10)
    assert nbstreamq.Limit is type(queue.limit("none", concurrent=1))


def test_others_go_on_when_the_leases_of_one_can_t_be_given_back(shared_worker, client, gate):
    spoilt, sound = (
        shared_worker.limit("spoilt", concurrent=1),
        shared_worker.limit("sound", concurrent=1),
    )
    begun, go = gate("begun-spoilt"), gate("go-spoilt")

    def work():
        with spoilt:
            begun.open()
            go.wait()

    def use():
        with sound:
            return "in"

    first = shared_worker.submit(work)
    begun.wait()
    keys = Keys(shared_worker.name)
    client.delete(keys.leases("spoilt"))
    client.set(keys.leases("spoilt"), "not a hash", ex=60)
    go.open()
    first.result(20)
    assert shared_worker.submit(use).result(20) == "in"
    client.delete(keys.leases("spoilt"))
