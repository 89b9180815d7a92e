"""A queue with its own embedded server, and what that server has used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from nbstreamq import TaskQueue

from .calls import sleep
from .processes import MARK, end

__all__ = ["ServerUse", "own_server", "workers_ready"]


@contextmanager
def own_server() -> Iterator[None]:
    """Keep away from other queues and servers on this machine."""
    with tempfile.TemporaryDirectory(prefix="nbq-", ignore_cleanup_errors=True) as folder:
        os.environ["NBSTREAMQ_RUNTIME_DIR"] = os.environ["NBSTREAMQ_DATA_DIR"] = folder
        os.environ["NBSTREAMQ_SERVER_IDLE"] = "1"
        os.environ[MARK] = folder
        os.environ.pop("NBSTREAMQ_URL", None)
        try:
            yield
        finally:
            end(folder)


class ServerUse:
    """Looks at a queue's server, and at the processor time it has used."""

    def __init__(self, queue: TaskQueue) -> None:
        self.path = queue.status().server.partition("unix://")[2].partition("?")[0]
        self.client: Any = redis.Redis(unix_socket_path=self.path)
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.client.config_resetstat()
        self._before = self._seconds()

    def n_settled(self) -> int:
        """Return how many messages were acknowledged since `start`."""
        return int(self.client.info("commandstats")["cmdstat_xack"]["calls"])

    def seconds(self) -> float:
        """Return the processor seconds since `start`."""
        return self._seconds() - self._before

    def bytes(self) -> int:
        """Return how much memory it uses."""
        return int(self.client.info("memory")["used_memory"])

    def version(self) -> str:
        """Return which server it is."""
        found = self.client.info("server")
        name = found.get("server_name", "redis")
        return f"{name} {found.get(f'{name}_version', found['redis_version'])}"

    def _seconds(self) -> float:
        found = self.client.info("cpu")
        return float(found["used_cpu_user"] + found["used_cpu_sys"])


def workers_ready(queue: TaskQueue, n: int) -> None:
    """Have `n` workers, each of which has run something."""
    queue.run(n)
    seen: set[str] = set()
    while len(seen) < n:
        futures = [queue.submit(sleep, 0.02) for _ in range(2 * n)]
        seen |= {str(future.worker) for future in futures if future.result()}
