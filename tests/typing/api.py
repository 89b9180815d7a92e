"""The public surface as its users' type checkers see it: checked by mypy --strict, never run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, Future, as_completed
from typing import assert_type

import redis

from nbstreamq import (
    DeathCertificate,
    Job,
    Limit,
    NbstreamqError,
    Ref,
    TaskFuture,
    TaskQueue,
    WorkerLost,
    track,
)


def area(width: float, height: float = 1.0) -> float:
    return width * height


def is_an_executor(q: TaskQueue) -> None:
    executor: Executor = q
    future: Future[float] = executor.submit(area, 2.0)
    assert_type(future.result(), float)
    with q as same:
        same.shutdown(wait=True, cancel_futures=True)


def submit(q: TaskQueue) -> None:
    future = q.submit(area, 2.0, height=3.0)
    assert_type(future, TaskFuture[float])
    assert_type(future(), float)
    assert_type(future(block=False), float)
    assert_type(future.result(timeout=1), float)
    assert_type(future.exception(), BaseException | None)
    assert_type(future.replay(), float)
    assert_type(future.worker, str | None)
    assert_type(future.attempts, int)
    assert_type(future.progress, tuple[int, int | None] | None)
    for done in as_completed([future]):
        assert_type(done.result(), float)
    q.submit(area)  # type: ignore[call-overload]
    q.submit(area, "wide")  # type: ignore[call-overload]
    q.submit(area, 1.0, depth=2.0)  # type: ignore[arg-type, call-arg]


def jobs(q: TaskQueue) -> None:
    job = q.map(area, [1.0, 2.0], iter([3.0]), timeout=5, chunksize=10, buffersize=100)
    assert_type(job, Job[float])
    assert_type(list(job), list[float])
    assert_type(next(job), float)
    assert_type(iter(job), Iterator[float])
    iterator: Iterator[float] = job
    with contextlib.closing(q.map(area)) as closed:
        assert_type(closed, Job[float])
    assert_type(list(iterator), list[float])
    assert_type(job.result(timeout=1), list[float])
    assert_type(job[0], TaskFuture[float])
    assert_type(job[1:], list[TaskFuture[float]])
    assert_type(job.errors, dict[int, BaseException])
    assert_type(len(job), int)
    assert_type(job.cancel(), bool)
    for future in job.as_completed(timeout=1):
        assert_type(future, TaskFuture[float])
    q.map(area, [1.0], chunksize="large")  # type: ignore[call-overload]


def as_a_pool(q: TaskQueue) -> None:
    with q.pool() as pool:
        assert_type(pool.map(area, [1.0]), list[float])
        assert_type(pool.starmap(area, [(1.0, 2.0)]), list[float])
        assert_type(pool.apply_async(area, (1.0,)).get(timeout=1), float)
        assert_type(list(pool.imap_unordered(area, [1.0])), list[float])
        assert_type(pool.size, int)
    assert_type(q.starmap(area, [(1.0, 2.0)], name="areas"), Job[float])


async def in_an_event_loop(q: TaskQueue) -> None:
    assert_type(await q.submit(area, 1.0), float)
    assert_type(await q.map(area, [1.0]), list[float])
    assert_type(await asyncio.wrap_future(q.submit(area, 1.0)), float)
    async for result in q.map(area, [1.0]):
        assert_type(result, float)


async def fetch(number: int) -> str:
    return str(number)


async def coroutine_functions(q: TaskQueue) -> None:
    assert_type(await q.options(concurrency=50).submit(fetch, 1), str)
    assert_type(q.map(fetch, [1], timeout=1), Job[str])
    assert_type(q.starmap(fetch, [(1,)]), Job[str])
    assert_type(q.task(fetch)(1), TaskFuture[str])
    q.submit(fetch, "1")  # type: ignore[call-overload]


def others(q: TaskQueue, lost: WorkerLost) -> None:
    assert_type(q.options(retries=3, time_limit=60, memory_limit=2**30, delay=10), TaskQueue)
    q.options(memory_limit=[2**30, 2**33])
    assert_type(q.limit("api", concurrent=5, rate=100 / 60), Limit)
    q.limit("api", 5)  # type: ignore[call-arg]
    q.options(retry=3)  # type: ignore[call-arg]
    assert_type(q.put([1, 2]), Ref)
    assert_type(q.everywhere(area, 1.0), Job[float])
    assert_type(list(track([1, 2])), list[int])
    assert_type(q.workers()[0].pid, int)
    assert_type(q.status().open_jobs, int)
    assert_type([letter.why for letter in q.dead()], list[str])
    error: NbstreamqError = lost
    assert_type(lost.certificate, DeathCertificate | None)
    assert_type(error.args[0] is None, bool)


def queues() -> None:
    TaskQueue()
    TaskQueue("name", "redis://host:6379/0", workers=4, secret="from somewhere safe")
    TaskQueue("name", workers="auto", insecure=True)
    TaskQueue(initializer=area, initargs=(1.0,))
    TaskQueue("name", workers="all")  # type: ignore[arg-type]
    TaskQueue("name", client=redis.Redis())
    TaskQueue("name", None, 4)  # type: ignore[call-arg, arg-type]


def tasks(q: TaskQueue) -> None:
    @q.task
    def plain(x: int) -> str:
        return str(x)

    @q.task(retries=3, time_limit=60)
    def with_options(x: int, y: float = 0.0) -> float:
        return x + y

    assert_type(plain(1), TaskFuture[str])
    assert_type(with_options(1, y=2.0), TaskFuture[float])
    assert_type(plain.map([1, 2]), Job[str])
    assert_type(plain.options(lane="high")(1), TaskFuture[str])
    assert_type(plain.fn(1), str)
    plain("1")  # type: ignore[arg-type]
    with_options(1, z=2)  # type: ignore[call-arg]
