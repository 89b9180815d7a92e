"""`async def` functions: a worker runs several of their calls at the same time."""

import asyncio
import concurrent.futures
import contextlib
import decimal
import os
import signal
import threading
import time

import pytest

import nbstreamq
from nbstreamq import TimeLimitExceeded, WorkerLost, track

#: Seconds that the local HTTP server takes for each answer.
LATENCY = 0.2


class Website:
    """An HTTP server in a thread of its own, which counts the requests that it works on."""

    def __init__(self):
        self.n_now = self.n_most = 0
        started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(started),))
        self._thread.start()
        started.wait(10)

    async def _serve(self, started):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=500) as server:
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._end.wait()

    async def _answer(self, reader, writer):
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        self.n_now += 1
        self.n_most = max(self.n_most, self.n_now)
        await asyncio.sleep(LATENCY)
        self.n_now -= 1
        body = path[1:]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    def close(self):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@pytest.fixture
def website():
    site = Website()
    yield site
    site.close()


async def reached(gate):
    """Wait until a gate is open, without keeping the event loop busy."""
    while not gate.is_open():
        await asyncio.sleep(0.005)


def test_many_http_calls_wait_at_the_same_time(shared_queue, website):
    port = website.port

    async def fetch(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return int(answer.rpartition(b"\n")[2])

    job = shared_queue.options(concurrency=50).map(fetch, range(1000))
    assert next(job) == 0  # before the others are there
    assert not job.done()
    assert job.result(60) == [*range(1000)]
    assert 50 < website.n_most <= 100


def test_each_item_has_its_own_end_output_and_progress(shared_worker):
    async def work(x):
        for _ in track(range(x)):
            print("work", x)
            await asyncio.sleep(0.01)
        return 60 // x

    job = shared_worker.map(work, [3, 0, 2])
    job.wait(20)
    assert [job[0].result(), job[2].result()] == [20, 30]
    assert isinstance(job.errors[1], ZeroDivisionError)
    assert [future.logs for future in job[:]] == ["work 3\n" * 3, "", "work 2\n" * 2]
    assert [job[0].progress, job[2].progress] == [(3, 3), (2, 2)]


def test_context_variables_and_tasks_in_a_group(shared_worker):
    def precision():  # It is in a context variable.
        return decimal.getcontext().prec

    async def show(x):
        await asyncio.sleep(0.01)
        print("child of", x)
        return precision()

    async def work(x):
        before = precision()
        decimal.setcontext(decimal.Context(prec=x))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(show(x)) for _ in range(2)]
        in_thread = await asyncio.to_thread(lambda: print("thread of", x) or precision())
        return before, [task.result() for task in tasks], in_thread

    job = shared_worker.map(work, [1, 2, 3])
    assert job.result(20) == [(28, [x, x], x) for x in (1, 2, 3)]
    assert [f.logs for f in job[:]] == [
        f"child of {x}\n" * 2 + f"thread of {x}\n" for x in (1, 2, 3)
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_never_more_than_concurrency_at_a_time(shared_worker, concurrency):
    async def work(x):
        running.append(x)
        n = len(running)
        await asyncio.sleep(0.005)
        running.remove(x)
        return n

    def begin():
        global running  # noqa: PLW0603 - of the worker
        running = []

    shared_worker.everywhere(begin).wait(20)
    queue = shared_worker.options(concurrency=concurrency)
    assert max(queue.map(work, range(20))) == concurrency
    assert max(queue.map(work, range(20), chunksize=10)) == concurrency
    assert max(f.result(20) for f in [queue.submit(work, x) for x in range(20)]) == concurrency


def test_a_failed_one_is_tried_again(shared_worker, gate):
    first = gate("first")

    async def fail_once(x):
        state = nbstreamq.resume()
        nbstreamq.checkpoint(x)
        await asyncio.sleep(0.01)
        if x == 1 and first.first():
            raise ConnectionError("lost")
        return state

    job = shared_worker.options(retries=2).map(fail_once, range(3))
    assert job.result(20) == [None, 1, None]
    assert [future.attempts for future in job[:]] == [1, 2, 1]


def test_time_limits_stop_those_that_wait_and_those_that_block(shared_worker, gate):
    ended = gate("ended")

    async def wait(x):
        try:
            await asyncio.sleep(60)
        finally:
            ended.open()

    async def block(x):
        time.sleep(60)

    queue = shared_worker.options(time_limit=0.4)
    waits, blocks = queue.submit(wait, 0), queue.submit(block, 0)
    for future in (waits, blocks):
        with pytest.raises(TimeLimitExceeded, match=r"longer than its time_limit of 0\.4 s"):
            future.result(20)
    assert ended.is_open()
    assert "ran for" in blocks.logs
    assert "without an await" in blocks.logs


def test_one_that_goes_on_after_its_limit_ends_with_its_worker(queue, gate):
    async def go_on(x):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def other(x):
        await reached(gate("go"))

    limited = queue.options(time_limit=0.2, lane="high").submit(go_on, 0)
    futures = [queue.submit(other, x) for x in range(4)]
    with pytest.raises(TimeLimitExceeded):
        limited.result(20)
    gate("go").open()
    concurrent.futures.wait(futures, 20)
    # None had to begin again.
    assert [future.attempts for future in futures] == [1] * 4


def test_cancel_stops_what_it_is_for(shared_worker, gate, wait_until):
    async def work(x):
        gate(f"in {x}").open()
        try:
            await reached(gate("go"))
        except asyncio.CancelledError:
            gate(f"stopped {x}").open()
            raise
        return x

    job = shared_worker.map(work, range(3))
    for x in range(3):
        wait_until(gate(f"in {x}").is_open, describe=f"item {x} to begin")
    assert job[1].cancel()
    wait_until(gate("stopped 1").is_open, describe="item 1 to be stopped")
    gate("go").open()
    job.wait(20)
    assert [str(future.status) for future in job[:]] == ["done", "cancelled", "done"]
    assert not gate("stopped 0").is_open()


def test_cancelling_a_coroutine_cancels_what_it_waits_for(shared_worker, gate, wait_until):
    queue = shared_worker

    async def inner(x):
        gate(f"in {x}").open()
        try:
            await asyncio.sleep(60)
        finally:
            gate(f"out {x}").open()

    async def outer(x):
        await queue.map(inner, [0, 1])

    future = queue.submit(outer, 0)
    for x in range(2):
        wait_until(gate(f"in {x}").is_open, describe="the inner calls")
    future.cancel()
    for x in range(2):
        wait_until(gate(f"out {x}").is_open, describe="the end of the inner calls")


def test_a_killed_worker_is_charged_to_the_one_whose_code_ran(new_queue, gate):
    queue = new_queue(workers=1)

    async def work(x):
        gate(f"in {x}").open()
        for y in range(5):
            await reached(gate(f"in {y}"))
        if x == 2:
            any(gate(f"death {n}").first() for n in range(3))
            os._exit(1)
        await reached(gate("death 1"))
        return x

    job = queue.map(work, range(5))
    with pytest.raises(WorkerLost, match="lost its worker 3 times"):
        job[2].result(30)
    assert [job[x].result(20) for x in (0, 1, 3, 4)] == [0, 1, 3, 4]


def test_a_thread_that_kills_workers_is_found(new_queue):
    async def work(x):
        if x == 2:
            await asyncio.to_thread(os._exit, 1)
        await asyncio.sleep(0.01 * x)
        return x

    job = new_queue(workers=1).map(work, range(4))
    with pytest.raises(WorkerLost):
        job[2].result(60)
    assert [job[x].result(20) for x in (0, 1, 3)] == [0, 1, 3]


def test_a_worker_that_leaves_ends_its_coroutines(new_queue, gate, wait_until):
    queue = new_queue(workers=1)

    async def work(x):
        gate(f"in {x}").open()
        await reached(gate("go"))
        return os.getpid()

    job = queue.map(work, range(3))
    for x in range(3):
        wait_until(gate(f"in {x}").is_open, describe=f"item {x} to begin")
    os.kill(queue.workers()[0].pid, signal.SIGTERM)
    wait_until(lambda: len({w.pid for w in queue.workers()}) == 2, 20, "the next worker")
    gate("go").open()
    assert len({*job.result(20)}) == 1
    assert [future.attempts for future in job[:]] == [1] * 3


class TestNested:
    """A coroutine that waits for other calls lets its worker run them."""

    def test_await_deeper_than_there_are_lanes(self, shared_worker):
        queue = shared_worker

        async def count(n):
            return 1 + await queue.submit(count, n - 1) if n else 0

        assert queue.submit(count, 12).result(30) == 12
        assert queue.options(concurrency=1).submit(count, 12).result(30) == 12

    def test_of_all_kinds(self, shared_worker):
        queue = shared_worker

        async def double(x):
            return 2 * x

        def wait(x):
            return queue.submit(double, x).result()

        async def ask(x):
            called = await queue.submit(double, x)
            plain = await queue.submit(abs, -x)
            listed = await queue.map(double, range(x))
            each = [one async for one in queue.map(double, range(x))]
            waited = await queue.submit(wait, x)
            gathered = await asyncio.gather(*(queue.submit(double, y) for y in range(x)))
            blocked = queue.submit(double, x).result()  # Another worker stands in.
            return called, plain, listed, each, waited, gathered, blocked

        assert queue.submit(ask, 3).result(60) == (6, 3, [0, 2, 4], [0, 2, 4], 6, [0, 2, 4], 6)

    def test_many_that_wait_for_many(self, shared_worker):
        queue = shared_worker

        async def leaf(x):
            await asyncio.sleep(0.001)
            return x

        async def branch(x):
            return sum(await queue.map(leaf, range(5)))

        async def tree(x):
            return sum(await queue.map(branch, range(5)))

        assert queue.map(tree, range(15)).result(60) == [50] * 15

    def test_in_another_lane(self, shared_worker):
        queue = shared_worker.options(lane="high", concurrency=1)

        async def double(x):
            return 2 * x

        async def ask(x):
            return await queue.submit(double, x) + await queue.submit(abs, x)

        assert queue.submit(ask, 2).result(20) == 6


def test_a_plain_call_waits_until_the_coroutines_are_over(shared_worker, gate, wait_until):
    queue = shared_worker

    async def work(x):
        gate(f"in {x}").open()
        await reached(gate("go"))
        return x

    first = queue.submit(work, 0)
    wait_until(gate("in 0").is_open, describe="the coroutine")
    plain = queue.submit(gate("plain").open)
    later = queue.submit(work, 1)
    gate("go").open()
    assert [first.result(20), plain.result(20), later.result(20)] == [0, None, 1]


def test_beside_endless_coroutines_another_worker_stands_in(shared_worker, gate, wait_until):
    queue = shared_worker

    async def work():
        gate("in").open()
        await reached(gate("go"))

    endless = queue.submit(work)
    wait_until(gate("in").is_open, describe="the coroutine")
    plain = queue.submit(abs, -1)
    concurrent.futures.wait([plain], 20)
    was_over = endless.done()
    gate("go").open()
    assert (plain.result(0), was_over) == (1, False)
    wait_until(lambda: len(queue.workers()) == 1, 20, "the worker that stood in to leave")


def test_an_outside_kill_of_a_worker_with_many_coroutines(new_queue, gate, wait_until):
    queue = new_queue(workers=1)

    async def work(x):
        gate(f"{os.getpid()} {x}").open()
        await reached(gate("go"))
        return x

    job = queue.options(concurrency=20).map(work, range(40), chunksize=5)
    (worker,) = wait_until(queue.workers, 20, "the worker")
    wait_until(
        lambda: all(gate(f"{worker.pid} {x}").is_open() for x in range(20)), 20, "20 coroutines"
    )
    os.kill(worker.pid, signal.SIGKILL)
    gate("go").open()
    assert job.result(30) == [*range(40)]
    assert [future.attempts for future in job[:]] == [1] * 40
    assert queue.dead() == []


def test_a_named_job_goes_on(shared_worker, gate, wait_until):
    async def work(x):
        if x == 1 and not gate("go").is_open():
            raise ValueError("not yet")
        return x

    job = shared_worker.map(work, range(3), name="asynchronous")
    job.wait(20)
    assert [*job.errors] == [1]
    gate("go").open()
    again = shared_worker.map(work, range(3), name="asynchronous")
    assert again.result(20) == [0, 1, 2]
    again.delete()


def test_everywhere_leaves_something_for_later_calls(new_queue):
    queue = new_queue(workers=1)

    async def connect():
        global connection  # noqa: PLW0603 - of the worker
        await asyncio.sleep(0)
        connection = asyncio.get_running_loop()

    async def use(x):
        await asyncio.sleep(0)
        return connection is asyncio.get_running_loop()

    queue.everywhere(connect).result(20)
    assert queue.map(use, range(2)).result(20) == [True, True]
    queue.run(2)
    assert all(queue.map(use, range(20)).result(20))


def test_random_numbers_follow_from_the_seed(shared_queue):
    async def draw(x):
        first = int(nbstreamq.rng().integers(1000))
        await asyncio.sleep(0.001 * (x % 3))
        return first, int(nbstreamq.rng().integers(1000))

    def draw_plainly(x):
        return int(nbstreamq.rng().integers(1000)), int(nbstreamq.rng().integers(1000))

    found = shared_queue.map(draw, range(20), seed=4).result(20)
    assert found == shared_queue.map(draw_plainly, range(20), seed=4).result(20)


def test_what_coroutines_can_not_have(shared_queue):
    async def nothing():
        pass

    with pytest.raises(ValueError, match=r"memory_limit: .*coroutine function"):
        shared_queue.options(memory_limit=2**30).submit(nothing)
    with pytest.raises(ValueError, match="concurrency"):
        shared_queue.options(concurrency=0)
    assert shared_queue.options(concurrency=2).submit(abs, -1).result(10) == 1


def test_a_worker_is_replaced_after_some_calls_though_others_follow(new_queue):
    queue = new_queue(workers=1)
    queue.run(1, max_tasks_per_worker=10)

    async def work(x):
        await asyncio.sleep(0.002 * (x % 5))
        return os.getpid()

    assert len({*queue.options(concurrency=5).map(work, range(100)).result(30)}) > 3
