"""Task queues on Redis that are not asyncio. All pickle, since some calls have arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from .calls import CALLS
from .peer import N_WORKERS, Call, Peer
from .pools import CHUNK
from .server import Server, url


class QueuePeer(Peer):
    """Client and workers know the same app: `app` makes it, in each process."""

    has_map = False
    #: Whether one command starts both workers.
    has_master: ClassVar[bool] = True

    def start(self) -> None:
        self.server = Server()
        n = 1 if self.has_master else N_WORKERS
        with Path(tempfile.gettempdir(), "workers.log").open("ab") as log:
            self.workers = [
                subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                for _ in range(n)
            ]

    def command(self) -> list[str]:
        """Return what starts a worker; `work` runs in it unless the tool has a command."""
        code = f"from benchmarks.{type(self).__module__.rpartition('.')[2]} import *"
        return [sys.executable, "-c", f"{code}; {type(self).__name__}().work()"]

    def work(self) -> None:
        """Run a worker."""
        raise NotImplementedError

    def hold(self) -> None:
        import psutil

        for worker in self.workers:
            master = psutil.Process(worker.pid)
            for process in (*master.children(recursive=True), master):
                process.kill()


class Rq(QueuePeer):
    """`SimpleWorker`: its notes on performance recommend it for jobs of a few milliseconds."""

    packages = ("rq", "redis")
    has_master = False

    @cached_property
    def app(self) -> Any:
        from redis import Redis
        from rq import Queue

        return Queue(connection=Redis.from_url(url()))

    def work(self) -> None:
        from rq import SimpleWorker

        SimpleWorker([self.app]).work(logging_level="ERROR")

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.app.enqueue(fn, x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.latest_result(timeout=60).return_value for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return self.gather(self.app.enqueue_many([self.app.prepare_data(fn, (x,)) for x in xs]))


class Huey(QueuePeer):
    """`notify_result`, its option for results at once; worker processes, no periodic tasks."""

    packages = ("huey", "redis")

    @cached_property
    def app(self) -> Any:
        from huey import RedisHuey

        huey = RedisHuey("benchmark", url=url(), notify_result=True)
        self.tasks = {fn: huey.task()(fn) for fn in CALLS}
        return huey

    def work(self) -> None:
        import logging

        logging.getLogger("huey").setLevel(logging.ERROR)
        self.app.create_consumer(workers=N_WORKERS, worker_type="process", periodic=False).run()

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        return [self.tasks[fn](x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.get(blocking=True) for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        return list(self.tasks[fn].map(xs).get(blocking=True))


class Dramatiq(QueuePeer):
    """Two processes of one thread; results in its Redis backend, where waiting blocks."""

    packages = ("dramatiq", "redis")

    @cached_property
    def app(self) -> Any:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results import Results
        from dramatiq.results.backends import RedisBackend

        encoder = dramatiq.PickleEncoder()
        broker = RedisBroker(url=url())
        broker.add_middleware(Results(backend=RedisBackend(url=url(), encoder=encoder)))
        dramatiq.set_broker(broker)
        dramatiq.set_encoder(encoder)
        self.tool = dramatiq
        self.actors = {fn: dramatiq.actor(fn, store_results=True) for fn in CALLS}
        return broker

    def command(self) -> list[str]:
        n = str(N_WORKERS)
        place = f"{__name__}:dramatiq_broker"
        return [sys.executable, "-m", "dramatiq", "--processes", n, "--threads", "1", place]

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        return [self.actors[fn].send(x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.get_result(block=True, timeout=60_000) for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        group = self.tool.group([self.actors[fn].message(x) for x in xs]).run()
        return list(group.get_results(block=True, timeout=60_000))


def dramatiq_broker() -> None:
    """Return the broker; the tool's command calls this."""
    assert Dramatiq().app


class Celery(QueuePeer):
    """Its guide recommends a large prefetch for short tasks; gossip and heartbeats are off."""

    packages = ("celery", "kombu", "redis")
    has_map = True

    @cached_property
    def app(self) -> Any:
        from celery import Celery as App

        app = App("benchmark", broker=url("redis+socket"), backend=url("redis+socket"))
        app.conf.update(
            task_serializer="pickle",
            result_serializer="pickle",
            accept_content=["pickle"],
            worker_prefetch_multiplier=64,
        )
        self.tasks = {fn: app.task(fn, name=fn.__name__) for fn in CALLS}
        return app

    def work(self) -> None:
        os.environ["C_FORCE_ROOT"] = "1"
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
        self.app.worker_main(["worker", "-c", str(N_WORKERS), *quiet])

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        return [self.tasks[fn].delay(x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        from celery import group

        assert self.app
        return list(group(self.tasks[fn].s(x) for x in xs).apply_async().get())

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        assert self.app
        chunks = self.tasks[fn].chunks(((x,) for x in xs), CHUNK).apply_async().get()
        return [result for chunk in chunks for result in chunk]
