"""Functions and values that a worker fetched, kept for the next task that needs them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import FunctionMissing, NbstreamqError, ServerUnreachable, SignatureError
from ..objects.functions import load_function
from ..objects.payloads import load
from ..protocol.connection import RECONNECT
from ..protocol.messages import Task
from ..protocol.store import Store

__all__ = ["Values"]

K = TypeVar("K")
V = TypeVar("V")

#: Functions kept at once.
MAX_FUNCTIONS = 256
#: Pickled size of the values kept at once.
MAX_VALUES_BYTES = 2**30


class _Cache(Generic[K, V]):
    """Keeps what was used last, within a budget."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[K, tuple[int, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: K, cost: int, value: V) -> V:
        if key not in self._kept:
            self._budget -= cost
        self._kept[key] = (cost, value)
        while self._budget < 0 and len(self._kept) > 1:
            _, (freed, _) = self._kept.popitem(last=False)
            self._budget += freed
        return value


class Values:
    """Fetches functions and values by digest.

    Parameters
    ----------
    store
        The queue that holds them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._functions: _Cache[tuple[str, str], Callable[..., Any]] = _Cache(MAX_FUNCTIONS)
        self._pickles: _Cache[str, bytes] = _Cache(MAX_VALUES_BYTES)
        self._values: _Cache[tuple[str, str], Any] = _Cache(MAX_VALUES_BYTES)
        #: Whose values are asked for.
        self._job = ""

    def function(self, task: Task) -> Callable[..., Any]:
        """Return the function of `task`.

        One that captures something mutable is unpickled anew for each job: what a task does to it
        must not show in the next job.

        Raises
        ------
        FunctionMissing
            The server does not hold it.
        PythonMismatch
            It was pickled by another Python.
        SignatureError
            What the server holds in its place was not signed with this queue's secret.
        """
        self._job = task.job
        known = self._functions.get((task.fn, "")) or self._functions.get((task.fn, task.job))
        if known is not None:
            return known
        what = f"function {task.name} of job {task.job}"
        data = self._fetch(self._store.get_function, task.fn, what)
        if data is None:
            raise FunctionMissing(
                f"The server no longer holds the function {task.name} of job {task.job}: it expired"
                " after a week, was evicted, or the server lost its data. Submit the call again."
            )
        loaded = load_function(data)
        return self._functions.put((task.fn, "" if loaded.pure else task.job), 1, loaded.fn)

    def value(self, digest: str) -> Any:
        """Return the value behind a `Ref`: as with functions, an object of this job's own."""
        known = self._values.get((digest, self._job))
        if known is not None:
            return known
        data = self._pickles.get(digest)
        if data is None:
            data = self._fetch(self._store.get_blob, digest, "value of a Ref")
        if data is None:
            raise NbstreamqError(
                f"The server no longer holds the value {digest} that q.put() stored: it expired"
                " after a week, was evicted, or the server lost its data. Put it again."
            )
        self._pickles.put(digest, len(data), data)
        return self._values.put((digest, self._job), len(data), load(data))

    @staticmethod
    def _fetch(get: Callable[[str], bytes | None], digest: str, what: str) -> bytes | None:
        while True:
            try:
                return get(digest)
            except ServerUnreachable:
                time.sleep(RECONNECT)
            except SignatureError as error:
                raise SignatureError(
                    f"The {what} was refused, and not unpickled: what the server holds as {digest}"
                    " does not carry this queue's signature. Somebody changed it there, see"
                    " q.dead(). Make another TaskQueue, which sends it anew, and look who else can"
                    " write to the server."
                ) from error
