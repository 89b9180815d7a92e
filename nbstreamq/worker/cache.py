"""Keep functions and values that a worker fetched, and write its large results."""

from __future__ import annotations

import functools
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ..errors import FunctionMissing, SecretMismatch, ServerUnreachable, SignatureError
from ..objects.functions import LoadedFunction, load_function
from ..objects.large_values import (
    ServerBackend,
    ServerResults,
    SharedReader,
    UrlBackend,
    ValueBackend,
    ValueWriter,
    copy_of,
    last_part,
    refused,
    register,
    server_parts,
)
from ..objects.mapped_files import FetchedFiles, MappedFiles, ValueAddress, is_file
from ..objects.pickling import load
from ..settings import Settings
from ..wire.connection import RECONNECT
from ..wire.keys import is_named, session_of
from ..wire.messages import Event, Task
from ..wire.signing import Signer
from ..wire.store import Store
from .edits import Edits

K = TypeVar("K")
V = TypeVar("V")

#: Most bytes of functions, and of values, that are kept.
MAX_BYTES = 2**30
#: Seconds to wait for a client to send a function again that the server lacks, and between looks.
#: Longer helps a busy client; shorter fails sooner when there is none.
SUPPLY, SUPPLY_PAUSE = 5.0, 0.02
#: Bytes that are added to the size of a function, for objects that it may have made.
FUNCTION_BYTES = 2**22


class _Cache(Generic[K, V]):
    """An LRU cache with a byte budget, which drops what refers to deleted files."""

    def __init__(self, with_files: set[tuple[int, Any]] | None = None) -> None:
        self._budget = MAX_BYTES
        self._kept: OrderedDict[K, tuple[int, Sequence[ValueAddress], V]] = OrderedDict()
        #: Entries that refer to files; all caches share it, because a worker asks for it often.
        self._with_files = set[tuple[int, Any]]() if with_files is None else with_files

    def get(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[2]

    def put(self, key: K, cost: int, value: V, addresses: Sequence[ValueAddress] = ()) -> V:
        cost += sum(size for _, size in addresses)
        self._drop(key)
        self.drop_stale()
        self._budget -= cost
        self._kept[key] = (cost, addresses, value)
        if any(is_file(address) for address, _ in addresses):
            self._with_files.add((id(self), key))
        while self._budget < 0 and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return value

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: K) -> None:
        self._budget += self._kept.pop(key, (0,))[0]
        self._with_files.discard((id(self), key))

    def drop_stale(self) -> None:
        """Drop what the client has freed, so that its memory is freed here, too."""
        for key in [key for cache, key in self._with_files if cache == id(self)]:
            addresses = self._kept[key][1]
            if not all(os.path.exists(a) for a, _ in addresses if is_file(a)):  # noqa: PTH110
                self._drop(key)


class _Results(ValueWriter):
    """Writes large results; finds out where to only when there is one."""

    def __init__(self, session: str, backend_of: Callable[[str], ValueBackend]) -> None:
        self.session = session
        self._backend_of = backend_of
        self._once = True

    @functools.cached_property
    def backend(self) -> ValueBackend:  # type: ignore[override]
        return self._backend_of(self.session)


class Values:
    """Fetches functions and values by digest.

    Parameters
    ----------
    store
        The queue that holds them.
    signer
        Of the queue.
    worker
        Id of this worker.
    has_files
        Whether clients on this machine find large results in files.
    """

    def __init__(
        self, store: Store, signer: Signer, worker: str, *, has_files: bool = False
    ) -> None:
        self._store, self._worker = store, worker
        self._settings = Settings.from_environment()
        #: Kept values that are files of clients, which may free them.
        self.with_files = set[tuple[int, Any]]()
        self._functions: _Cache[tuple[str, str], LoadedFunction] = _Cache(self.with_files)
        self._values: _Cache[tuple[str, str], Any] = _Cache(self.with_files)
        self._signer = signer
        self._has_files = has_files
        on_server = ServerBackend(self._ask, self._tell, self._tell)
        files = FetchedFiles(self._settings)
        self._reader = SharedReader(on_server, self._at_url(worker), signer, files)
        register(worker, self._reader)
        #: The job whose values are asked for.
        self._job = ""
        #: Copies that clients were asked for of late: they are not asked for the same one again.
        self._sent = deque[ValueAddress](maxlen=1000)
        self._results = _Results("", self._backend_of)
        self.edits = Edits(self._forget)

    def _forget(self) -> None:
        """Forget functions and values: a module was edited that they may have been made with."""
        self._functions.clear()
        self._values.clear()

    def drop_stale(self) -> None:
        """Drop files that clients have freed."""
        self._functions.drop_stale()
        self._values.drop_stale()

    def results(self, job: str) -> ValueWriter | None:
        """Return what writes large results of a job; None for a named job, which keeps them all."""
        if is_named(job):
            return None
        session = session_of(job)
        if session != self._results.session:
            self._results = _Results(session, self._backend_of)
        return self._results

    def _backend_of(self, session: str) -> ValueBackend:
        """Return where a client reads its large results."""
        if (at_url := self._at_url(session)) is not None:
            return at_url
        files = MappedFiles(session, self._settings) if self._has_files else None
        if files is not None and files.exist():
            return files
        return ServerResults(self._ask, self._tell, self._tell, session)

    def _at_url(self, session: str) -> UrlBackend | None:
        url = self._settings.store
        return UrlBackend(url, session, self._signer, self._tell) if url else None

    def function(self, task: Task) -> LoadedFunction:
        """Return the function of `task`.

        One that captures something mutable is unpickled again for each job: what a task does to it
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
        functions = self._functions
        known = functions.get((task.fn, "")) or functions.get((task.fn, task.job))
        if known is not None:
            return known
        what = f"function {task.name}() of job {task.job}"
        try:
            data = self._ask(lambda store: store.get_function(task.fn))
        except SignatureError as error:
            raise refused(what) from error
        if data is None and (data := self._await_function(task)) is None:
            raise FunctionMissing(
                f"The server no longer holds the function {task.name} of job {task.job}: it expired"
                " after a week, was evicted, or the server lost its data; and no client that knows"
                " it is there. Submit the call again."
            )
        loaded = load_function(data)
        if parts := server_parts(loaded.addresses):
            self._ask(lambda store: store.renew_values(parts, task.fn))
        key = (task.fn, "" if loaded.pure else task.job)
        return self._functions.put(key, len(data) + FUNCTION_BYTES, loaded, loaded.addresses)

    def _await_function(self, task: Task) -> bytes | None:
        """Ask the client for a function that the server lacks, and wait for it."""
        self.want(task, task.fn)
        found: bytes | None = self._await(lambda store: store.get_function(task.fn))
        return found

    def _await(self, get: Callable[[Store], Any]) -> Any:
        """Wait until the client has sent something that it was asked for; None if it does not."""
        until = time.monotonic() + SUPPLY
        while (found := self._ask(get)) is None and time.monotonic() < until:
            time.sleep(SUPPLY_PAUSE)
        return found

    def has_been_sent(self, task: Task, address: ValueAddress) -> bool:
        """Ask the client to send a value that is in a file of its machine; return whether it did.

        On that machine, a file that is missing was freed.
        """
        copy = copy_of(address)
        if self._has_files or not is_file(address[0]) or copy in self._sent:
            return False
        self._sent.append(copy)
        self.want(task, f"{address[0]} {address[1]}")
        return self._await(lambda store: store.get_value(last_part(copy))) is not None

    def want(self, task: Task, what: str = "") -> None:
        """Tell the client that the server lacks something.

        Parameters
        ----------
        what
            Digest of a function; or path and size of a file with a value; nothing: a value that was
            on the server.
        """
        event = Event.about(task, task.span, kind="wanted", worker=self._worker, body=what.encode())
        self._ask(lambda store: store.publish([event]))

    def has_other_secret(self) -> bool:
        """Return whether the queue has a new secret that this worker does not know."""
        try:
            self._ask(lambda store: store.check_secret(write=False))
        except SecretMismatch:
            return True
        return False

    def value(self, digest: str, data: bytes, addresses: Sequence[ValueAddress]) -> Any:
        """Return the value of a `Ref`; each job gets an object of its own, as with functions."""
        known = self._values.get((digest, self._job))
        if known is not None:
            return known
        return self._values.put((digest, self._job), len(data), load(data), addresses)

    def forked(self) -> None:
        """Close the connection, which belongs to the process that this one was forked from."""
        self._store.close()

    def _ask(self, question: Callable[[Store], Any]) -> Any:
        while True:
            try:
                return question(self._store)
            except ServerUnreachable:
                time.sleep(RECONNECT)

    def _tell(self, do: Callable[[Store], object], _: int) -> object:
        return self._ask(do)
