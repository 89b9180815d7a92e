"""Task queues on Redis with asyncio: two processes of workers, all with uvloop.

Calls are coroutines, as their documents recommend. Our calls keep the loop busy, as a calculation
would.
"""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from .calls import CALLS
from .peer import N_WORKERS, Call
from .queues import QueuePeer
from .server import url

#: Maximum number of concurrent submissions, or waits for results, in a client.
#: A larger number is not faster, and each may open a connection.
AT_A_TIME = 50
#: Seconds between two polls, for tools that poll for results or tasks. Their defaults (0.2 to 0.5)
#: spare the server.
LOOK = 0.002

Coroutine = Callable[..., Awaitable[Any]]


def coroutine(fn: Call) -> Coroutine:
    """Return `fn` as a coroutine function of the same name."""

    async def call(x: Any) -> Any:
        return fn(x)

    call.__name__ = call.__qualname__ = fn.__name__
    return call


def with_context(fn: Call) -> Coroutine:
    """The same, for tools that pass a context first."""

    async def call(_: Any, x: Any) -> Any:
        return fn(x)

    call.__name__ = call.__qualname__ = fn.__name__
    return call


class AsyncPeer(QueuePeer):
    """The client's loop runs as long as a measure needs it."""

    has_master = False

    def start(self) -> None:
        import uvloop

        super().start()
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.connect())

    def work(self) -> None:
        import uvloop

        uvloop.run(self.serve())

    async def connect(self) -> None:
        """Open what the client needs."""

    async def keep_open(self, context: Any) -> None:
        """Enter a context in a task that stays: only the task that entered it may leave it."""
        entered = asyncio.Event()

        async def stay() -> None:
            async with context:
                entered.set()
                await asyncio.Event().wait()

        self.kept = asyncio.ensure_future(stay())
        await entered.wait()

    async def serve(self) -> None:
        """Run a worker."""
        raise NotImplementedError

    @abstractmethod
    async def enqueue(self, fn: Call, x: Any) -> Any:
        """Submit one call."""

    @abstractmethod
    async def result(self, handle: Any) -> Any:
        """Wait for one result."""

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return self._all(lambda x: self.enqueue(fn, x), xs)

    def gather(self, handles: list[Any]) -> list[Any]:
        return self._all(self.result, handles)

    def _all(self, act: Callable[[Any], Awaitable[Any]], xs: Sequence[Any]) -> list[Any]:
        async def run() -> list[Any]:
            done: list[Any] = []
            for start in range(0, len(xs), AT_A_TIME):
                done += await asyncio.gather(*map(act, xs[start : start + AT_A_TIME]))
            return done

        return list(self.loop.run_until_complete(run()))


class Arq(AsyncPeer):
    """It polls for jobs and results; the intervals are short here."""

    packages = ("arq", "redis", "uvloop")

    @cached_property
    def settings(self) -> Any:
        from arq.connections import RedisSettings

        return RedisSettings(unix_socket_path=url().removeprefix("unix://"))

    async def connect(self) -> None:
        from arq import create_pool

        self.client = await create_pool(self.settings)

    async def serve(self) -> None:
        from arq.worker import Worker, func

        functions = [func(with_context(fn), name=fn.__name__) for fn in CALLS]
        await Worker(
            functions, redis_settings=self.settings, poll_delay=LOOK, log_results=False
        ).async_run()

    async def enqueue(self, fn: Call, x: Any) -> Any:
        return await self.client.enqueue_job(fn.__name__, x)

    async def result(self, handle: Any) -> Any:
        from arq.jobs import ResultNotFound

        try:
            return await handle.result(poll_delay=LOOK)
        except ResultNotFound:
            # Release 0.25, the last one for redis-py >= 6, checks for the result and then for the
            # job, in two steps. It finds neither if the job ends in between.
            return await handle.result(poll_delay=LOOK)


class Saq(AsyncPeer):
    """Its `map` for many calls. It polls for results, as its `apply` does, at short intervals."""

    packages = ("saq", "redis", "uvloop")

    @cached_property
    def app(self) -> Any:
        import pickle

        from redis.asyncio import Redis
        from saq.queue.redis import RedisQueue

        return RedisQueue(Redis.from_url(url()), dump=pickle.dumps, load=pickle.loads)

    async def connect(self) -> None:
        await self.app.connect()
        # A worker that starts sweeps away stuck jobs, and with them jobs that another worker is
        # taking. It does not sweep while the lock of an earlier sweep holds: 60 s, or this lock.
        await self.app.sweep(lock=3600)

    async def serve(self) -> None:
        from saq import Worker

        await self.app.connect()
        await Worker(self.app, [(fn.__name__, with_context(fn)) for fn in CALLS]).start()

    async def enqueue(self, fn: Call, x: Any) -> Any:
        return await self.app.enqueue(fn.__name__, x=x, timeout=60)

    async def result(self, handle: Any) -> Any:
        while not handle.completed:
            await asyncio.sleep(LOOK)
            await handle.refresh()
        if handle.error:
            raise RuntimeError(handle.error)
        return handle.result

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        calls = [{"x": x} for x in xs]
        work = self.app.map(fn.__name__, calls, poll_interval=LOOK)
        return list(self.loop.run_until_complete(work))


class Taskiq(AsyncPeer):
    """The stream broker, which it recommends. It polls for results; the interval is short here."""

    packages = ("taskiq", "taskiq-redis", "redis", "uvloop")
    has_master = True

    @cached_property
    def app(self) -> Any:
        from taskiq.serializers import PickleSerializer
        from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

        broker = RedisStreamBroker(url=url()).with_result_backend(
            RedisAsyncResultBackend(redis_url=url())
        )
        broker = broker.with_serializer(PickleSerializer())
        self.tasks = {
            fn: broker.register_task(coroutine(fn), task_name=fn.__name__) for fn in CALLS
        }
        return broker

    def command(self) -> list[str]:
        words = f"worker --workers {N_WORKERS} --log-level ERROR {__name__}:taskiq_broker"
        return [sys.executable, "-m", "taskiq", *words.split()]

    async def connect(self) -> None:
        await self.app.startup()

    async def enqueue(self, fn: Call, x: Any) -> Any:
        return await self.tasks[fn].kiq(x)

    async def result(self, handle: Any) -> Any:
        result = await handle.wait_result(check_interval=LOOK)
        return result.return_value


def taskiq_broker() -> Any:
    """Return the broker; the tool's command calls this."""
    return Taskiq().app


class Streaq(AsyncPeer):
    """With its defaults; `enqueue_many` for many calls."""

    packages = ("streaq", "coredis", "uvloop")

    @cached_property
    def app(self) -> Any:
        from streaq import Worker

        worker = Worker(redis_url=url())
        self.tasks = {fn: worker.task(name=fn.__name__)(coroutine(fn)) for fn in CALLS}
        return worker

    async def connect(self) -> None:
        await self.keep_open(self.app)

    async def serve(self) -> None:
        await self.app.run_async()

    async def enqueue(self, fn: Call, x: Any) -> Any:
        return await self.tasks[fn].enqueue(x)

    async def result(self, handle: Any) -> Any:
        return (await handle.result()).result

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        tasks = [self.tasks[fn].enqueue(x) for x in xs]
        self.loop.run_until_complete(self.app.enqueue_many(tasks))
        return self.gather(tasks)


class Docket(AsyncPeer):
    """With its defaults, but shorter polling intervals; `add_many` for many calls."""

    packages = ("pydocket", "redis", "uvloop")

    @cached_property
    def app(self) -> Any:
        from docket import Docket as App

        app = App("benchmark", url=url())
        self.tasks = {fn: coroutine(fn) for fn in CALLS}
        for task in self.tasks.values():
            app.register(task)
        return app

    async def connect(self) -> None:
        await self.keep_open(self.app)

    async def serve(self) -> None:
        from docket import Worker

        look = timedelta(seconds=LOOK)
        async with self.app as app, Worker(app, minimum_check_interval=look) as worker:
            await worker.run_forever()

    async def enqueue(self, fn: Call, x: Any) -> Any:
        return await self.app.add(self.tasks[fn])(x)

    async def result(self, handle: Any) -> Any:
        return await handle.get_result()

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        calls = [self.app.call(self.tasks[fn])(x) for x in xs]
        return self.gather(self.loop.run_until_complete(self.app.add_many(calls)))
