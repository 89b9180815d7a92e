"""Tools for clusters. Each runs here with two workers of one thread."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from typing import Any

from .peer import N_WORKERS, Call, Peer
from .pools import CHUNK


class Ipyparallel(Peer):
    """The load-balanced view; a chunk size where one helps, and a push for what all calls use."""

    packages = ("ipyparallel",)
    sends_each = False

    def start(self) -> None:
        import ipyparallel

        self.tool = ipyparallel
        cluster = ipyparallel.Cluster(n=N_WORKERS, log_level=40)
        self.client = cluster.start_and_connect_sync(activate=False)
        self.view = self.client.load_balanced_view()

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.view.apply_async(fn, x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.view.map_sync(fn, xs))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.view.map_async(fn, xs, chunksize=CHUNK))

    def share(self, array: Any, n: int) -> list[Any]:
        self.client[:].push({"array": array}, block=True)
        pick = _pick_pushed
        return list(self.view.map_sync(pick, [self.tool.Reference("array")] * n, range(n)))


class Dask(Peer):
    """`Client.map` for calls, a bag for many short ones, and a scatter for what all calls use."""

    packages = ("distributed", "dask")
    sends_each = False

    def start(self) -> None:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=N_WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=50
        )
        self.client = Client(cluster)

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.client.submit(fn, x, pure=False) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return list(self.client.gather(handles))

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return self.gather(self.client.map(fn, xs, pure=False))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        from dask import bag

        return list(bag.from_sequence(xs, partition_size=CHUNK).map(fn).compute())

    def share(self, array: Any, n: int) -> list[Any]:
        shared = self.client.scatter(array, broadcast=True)
        return self.gather(self.client.map(_pick_pushed, [shared] * n, range(n), pure=False))


class Ray(Peer):
    """Tasks; a batch in each for many short calls, and a put for what all calls use.

    Both are patterns of its documents.
    """

    packages = ("ray",)
    sends_each = False

    def start(self) -> None:
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.ray = ray
        self.remote = cache(ray.remote)
        ray.init(
            num_cpus=N_WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=40,
            object_store_memory=2**31,
            _temp_dir=tempfile.gettempdir(),
        )

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        call = self.remote(fn).remote
        return [call(x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return list(self.ray.get(handles))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        call = self.remote(_batch).remote
        batches = [call(fn, xs[i : i + CHUNK]) for i in range(0, len(xs), CHUNK)]
        return [result for batch in self.gather(batches) for result in batch]

    def share(self, array: Any, n: int) -> list[Any]:
        shared, call = self.ray.put(array), self.remote(_pick_pushed).remote
        return self.gather([call(shared, i) for i in range(n)])

    def stop(self) -> None:
        self.ray.shutdown()


def _batch(fn: Call, xs: Sequence[Any]) -> list[Any]:
    return [fn(x) for x in xs]


def _pick_pushed(array: Any, i: int) -> float:
    return float(array[i])
