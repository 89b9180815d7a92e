"""One small class for each tool, which sets it up as the tool's documents recommend."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from .calls import pick, sleep

__all__ = ["N_WORKERS", "PEERS", "Call", "Peer", "load"]

N_WORKERS = 2
Call = Callable[[Any], Any]

#: Name -> module and class. nbstreamq is first, the others are compared with it.
PEERS = {
    "nbstreamq": ("pools", "Nbstreamq"),
    "ProcessPoolExecutor": ("pools", "StandardPool"),
    "loky": ("pools", "Loky"),
    "joblib": ("pools", "Joblib"),
    "mpire": ("pools", "Mpire"),
    "ipyparallel": ("clusters", "Ipyparallel"),
    "dask.distributed": ("clusters", "Dask"),
    "ray": ("clusters", "Ray"),
    "rq": ("queues", "Rq"),
    "huey": ("queues", "Huey"),
    "dramatiq": ("queues", "Dramatiq"),
    "celery": ("queues", "Celery"),
    "arq": ("async_queues", "Arq"),
    "saq": ("async_queues", "Saq"),
    "taskiq": ("async_queues", "Taskiq"),
    "streaq": ("async_queues", "Streaq"),
    "pydocket": ("async_queues", "Docket"),
}


class Peer(ABC):
    """A tool with two workers. Functions take one argument.

    Attributes
    ----------
    packages
        Distributions whose versions are printed.
    has_map
        Whether it puts many items into one message.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    has_map: ClassVar[bool] = True

    @abstractmethod
    def start(self) -> None:
        """Start what is needed for `N_WORKERS` workers."""

    @abstractmethod
    def submit(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        """Submit ``fn(x)`` for each x with a call of its own; return handles."""

    @abstractmethod
    def gather(self, handles: list[Any]) -> list[Any]:
        """Return the results of handles, in order."""

    def spread(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        """Run ``fn`` on each x, the ordinary way for many; no chunk size is given."""
        return self.gather(self.submit(fn, xs))

    def map(self, fn: Call, xs: Sequence[Any]) -> list[Any]:
        """Run ``fn`` on each x, the fastest way for many short calls."""
        return self.spread(fn, xs)

    #: Whether `share` sends the array with each item. Then fewer items are enough.
    sends_each: ClassVar[bool] = True

    def share(self, array: Any, n: int) -> list[Any]:
        """Run `n` calls that use the same large array."""
        return self.gather(self.submit(pick, [(array, i) for i in range(n)]))

    def hold(self) -> None:
        """Stop the workers from taking more calls."""
        self.submit(sleep, [60] * N_WORKERS)

    def stop(self) -> None:  # noqa: B027 - most leave nothing
        """Remove what would be left after the processes are killed, which comes next."""


def load(name: str) -> Peer:
    """Return a peer. Its module imports the tool itself only when the peer starts."""
    module, kind = PEERS[name]
    peer = getattr(importlib.import_module(f".{module}", __package__), kind)()
    assert isinstance(peer, Peer)
    return peer
