"""Futures and jobs in an event loop."""

from __future__ import annotations

import asyncio
import itertools

import pytest


def test_await_a_future(shared_queue):
    async def main():
        return await shared_queue.submit(abs, -1)

    assert asyncio.run(main()) == 1


def test_await_a_failure(shared_queue):
    async def main():
        await shared_queue.submit(int, "x")

    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(main())


def test_await_a_job(shared_queue):
    async def main():
        return await shared_queue.map(abs, range(-3, 0))

    assert asyncio.run(main()) == [3, 2, 1]


def test_await_a_job_that_fails(shared_queue):
    async def main():
        await shared_queue.map(int, ["1", "x"])

    with pytest.raises(ValueError, match="'x'"):
        asyncio.run(main())


def test_async_for(shared_queue):
    async def main():
        return [result async for result in shared_queue.map(abs, range(-50, 0))]

    assert asyncio.run(main()) == [*range(50, 0, -1)]


def test_async_for_raises_at_the_item(shared_queue):
    found = []

    async def main():
        async for result in shared_queue.map(int, ["1", "x", "3"]):
            found.append(result)

    with pytest.raises(ValueError, match="'x'"):
        asyncio.run(main())
    assert found == [1]


@pytest.mark.parametrize("options", [{}, {"buffersize": 3}], ids=str)
def test_async_for_goes_on_where_another_loop_stopped(shared_queue, options):
    async def main():
        job = shared_queue.map(abs, range(20), **options)
        first, second = next(job), await anext(job)
        return first, second, [result async for result in job], list(job)

    assert asyncio.run(main()) == (0, 1, list(range(2, 20)), [])


def test_async_for_over_endless_inputs(shared_queue):
    async def main():
        job = shared_queue.map(abs, itertools.count(), buffersize=3)
        async for result in job:
            if result == 20:
                job.close()
        return result

    assert asyncio.run(main()) == 20


def test_async_for_goes_on_where_it_timed_out(shared_queue, gate):
    async def main():
        job = shared_queue.map(gate.hold, [1, 2], timeout=0.05)
        with pytest.raises(TimeoutError, match=job.id):
            await anext(job)
        gate.open()
        job.wait(10)
        return [result async for result in job]

    assert asyncio.run(main()) == [1, 2]


def test_gather(shared_queue):
    async def main():
        return await asyncio.gather(*(shared_queue.submit(abs, -i) for i in range(20)))

    assert asyncio.run(main()) == list(range(20))


def test_wrap_future(shared_queue):
    async def main():
        return await asyncio.wait_for(asyncio.wrap_future(shared_queue.submit(abs, -1)), 10)

    assert asyncio.run(main()) == 1


def test_run_in_executor(shared_queue):
    async def main():
        return await asyncio.get_running_loop().run_in_executor(shared_queue, pow, 2, 5)

    assert asyncio.run(main()) == 32


def test_the_loop_runs_meanwhile(shared_queue, gate):
    async def main():
        task = asyncio.ensure_future(asyncio.wrap_future(shared_queue.submit(gate.hold, 7)))
        await asyncio.sleep(0)
        assert not task.done()
        gate.open()
        return await task

    assert asyncio.run(main()) == 7


@pytest.mark.parametrize("what", ["future", "async for"])
def test_time_out_cancels_the_call(queue, gate, what):
    async def wait_for_future(future):
        await future

    async def wait_for_items(job):
        async for _ in job:
            pass

    async def main():
        if what == "future":
            future = queue.submit(gate.hold)
            waiting = wait_for_future(future)
        else:
            job = queue.map(gate.hold, [1])
            future = job[0]
            waiting = wait_for_items(job)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.05)
        return future

    assert asyncio.run(main()).cancelled()
    assert queue.submit(abs, -1).result(10) == 1


def test_a_loop_ends_while_an_awaited_job_goes_on(queue):
    async def main(job):
        async with asyncio.timeout(0.05):
            await job

    job = queue.options(delay=600).map(abs, [1])
    with pytest.raises(TimeoutError):
        asyncio.run(main(job))
    assert not job.done()


def test_asyncio_in_a_task(shared_queue):
    def task():
        import asyncio

        async def main():
            await asyncio.sleep(0)
            return 5

        return asyncio.run(main())

    assert shared_queue.submit(task).result(10) == 5
