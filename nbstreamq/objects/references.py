"""Arguments that are sent as references: `Ref`, and the results of other tasks.

Both are pickled as a call that looks the value up when it is unpickled. `resolving` sets what the
call finds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NoReturn

from ..errors import NbstreamqError, NotPicklable
from ..tracebacks import concise
from .large_values import addresses_of
from .mapped_files import ValueAddress

#: Takes the value's digest, the message that gives the value, and the addresses of its parts.
Fetch = Callable[[str, bytes, tuple[ValueAddress, ...]], Any]

_fetch: ContextVar[Fetch] = ContextVar("nbstreamq_fetch")
_dependencies: ContextVar[Sequence[Any]] = ContextVar("nbstreamq_dependencies", default=())
_collected: ContextVar[list[Any] | None] = ContextVar("nbstreamq_collected", default=None)


class TaskOnly:
    """Base of objects that only nbstreamq can pickle, because they have a meaning only in a task.

    Other picklers get an error. What they wrote could not be read, and a process pool of the
    standard library hangs when its worker can't read a call.
    """

    #: What to do instead, for the message.
    _instead: ClassVar[str]

    @concise
    def __reduce__(self) -> NoReturn:
        text = f"A {type(self).__name__} can't be pickled. {self._instead}"
        raise NotPicklable(text)

    def _reduce_for_task(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return how to make the object again in a task, as `__reduce__` does."""
        raise NotImplementedError


class Ref(TaskOnly):
    """A value that `TaskQueue.put` stored; as an argument, the task gets the value itself.

    Attributes
    ----------
    digest
        Digest of the value's content.
    size_bytes
        Size of the pickled value.
    type_name
        Type of the value, for people.

    Parameters
    ----------
    data
        Message that contains or names the value.
    last
        Turns that message into one whose value stays for a week, even if this client dies.

    Examples
    --------
    >>> ref = q.put("a long text")
    >>> q.submit(len, ref).result()
    11
    """

    _instead = "Pass it to a task as an argument; elsewhere use the value that it stands for."

    def __init__(
        self,
        digest: str,
        size_bytes: int,
        type_name: str,
        data: bytes,
        last: Callable[[bytes], bytes],
    ) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self.type_name = type_name
        self._data = data
        self._last = last
        self._durable: bytes | None = None

    def __repr__(self) -> str:
        return f"<Ref to {self.type_name}, {self.size_bytes:,} bytes>"

    def _reduce_for_task(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reduce(self._data)

    def _reduce_durable(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return how to have the value again for a week, also without this Ref."""
        if self._durable is None:
            self._durable = self._last(self._data)
        return self._reduce(self._durable)

    def _reduce(self, data: bytes) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _resolve, (self.digest, bytes(data), addresses_of(data))


def _resolve(digest: str, data: bytes, addresses: tuple[ValueAddress, ...]) -> Any:
    try:
        fetch = _fetch.get()
    except LookupError:
        raise NbstreamqError(
            "A Ref was unpickled outside a task, where its value can't be looked up. Pass the Ref"
            " as an argument of submit() or map()."
        ) from None
    return fetch(digest, data, addresses)


def dependency(index: int) -> Any:
    """Return the result that replaces the future number `index`."""
    return _dependencies.get()[index]


def dependency_number(future: Any) -> int:
    """Return the number under which the task finds the result of `future`.

    Raises
    ------
    NotPicklable
        No call is being submitted: a future can only be sent as an argument.
    """
    found = _collected.get()
    if found is None:
        raise NotPicklable(
            "A TaskFuture can't be pickled. Pass it as an argument of submit(), where the task gets"
            " its result, or return its result."
        )
    for index, other in enumerate(found):
        if other is future:
            return index
    found.append(future)
    return len(found) - 1


def fetch_by(fetch: Fetch) -> None:
    """Look up references with `fetch` in this thread from now on."""
    _fetch.set(fetch)


class collecting_futures:  # noqa: N801 - used like a function; a generator takes three times as long
    """A context that gives the list of the futures that are pickled in it."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[Any]:
        found: list[Any] = []
        self._token = _collected.set(found)
        return found

    def __exit__(self, *_: object) -> None:
        _collected.reset(self._token)


@contextmanager
def resolving(fetch: Fetch, dependencies: Sequence[Any] = ()) -> Iterator[None]:
    """A context in which references are looked up with `fetch`, and results in `dependencies`."""
    tokens = _fetch.set(fetch), _dependencies.set(dependencies)
    try:
        yield
    finally:
        _fetch.reset(tokens[0])
        _dependencies.reset(tokens[1])


class Dependent:
    """The pickled arguments of a call that needs results of other tasks, and those results.

    Parameters
    ----------
    args
        What `pickling.dump` made of the arguments; each future in them is a `dependency`.
    results
        What it made of the result of each future.
    """

    def __init__(self, args: bytes, results: Sequence[bytes]) -> None:
        self.args = args
        self.results = results

    def load(self, fetch: Fetch) -> Any:
        """Return the arguments with the results in them, and references looked up with `fetch`."""
        with resolving(fetch, [pickle.loads(result) for result in self.results]):
            return pickle.loads(self.args)
