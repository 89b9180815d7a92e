"""Functions <-> bytes: never stale, and pickled again only when something has changed."""

from __future__ import annotations

import functools
import hashlib
import linecache
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ref

from ..errors import PythonMismatch
from ..home import PYTHON
from .large_values import MessageWithRefs, ValueWriter, addresses_of
from .mapped_files import ValueAddress
from .pickling import pickle_or_explain
from .random_numbers import type_name
from .staleness import Snapshot
from .surroundings import Surroundings, arriving

_DIGEST_BYTES = 16
#: Longest name of a function, in characters.
MAX_NAME = 200
#: Most functions remembered by a session. A larger number keeps more memory in use where functions
#: hold each other.
_MOST_KNOWN = 1000
#: Hashed by identity, and weakly referable.
_CACHEABLE = frozenset({FunctionType, BuiltinFunctionType, functools.partial, type})

#: File names of notebook cells whose lines came with a function.
_received_sources: set[str] = set()


@dataclass(frozen=True)
class FunctionPickle:
    """A function, ready to be sent.

    Attributes
    ----------
    digest
        Of `data`, in hex: the key that the function is stored by.
    data
        What `load_function` reads; a `MessageWithRefs` if it refers to large values.
    name
        The function's name in messages.
    generator
        The type of a random number generator that is captured, and so copied; or empty.
    is_async
        Whether a call makes a coroutine or an async generator.
    """

    digest: str
    data: bytes
    name: str
    generator: str = ""
    is_async: bool = False


@dataclass(frozen=True)
class LoadedFunction:
    """A function that was unpickled.

    Attributes
    ----------
    fn
        The function.
    pure
        Whether it captures only immutable values, so that several jobs may call it. Else each job
        loads it again.
    addresses
        Where its large parts are.
    surroundings
        The context to call it in; None if it needs none.
    """

    fn: Callable[..., Any]
    pure: bool
    addresses: tuple[ValueAddress, ...]
    surroundings: Surroundings | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in its surroundings."""
        with self.surroundings or nullcontext():
            return self.fn(*args, **kwargs)


class FunctionPickler:
    """Pickles functions, each again only when something that it captures may have changed.

    Safe to use from several threads.

    Parameters
    ----------
    writer, durable
        Where large captured values go; and those of functions that outlive this process.
    """

    def __init__(
        self, writer: ValueWriter | None = None, durable: ValueWriter | None = None
    ) -> None:
        self._writer, self._durable = writer, durable
        self._lock = threading.Lock()
        #: By weak references to the functions.
        self._known: dict[ref[Any], tuple[Snapshot, FunctionPickle]] = {}

    def dump(self, fn: Callable[..., Any], *, durable: bool = False) -> FunctionPickle:
        """Return `fn` as bytes, as it is now.

        Parameters
        ----------
        durable
            The bytes outlive this process, and so do the large values that they refer to.

        Raises
        ------
        NotPicklable
            The function, or something that it captures, can't be pickled; the message says what.
        """
        if type(fn) in _CACHEABLE:
            known = self._known.get(ref(fn))
            if known is not None and known[0].holds(fn):
                pickled = known[1]
                if not (durable and isinstance(pickled.data, MessageWithRefs)):
                    return pickled
        return self._pickle(fn, self._durable if durable else self._writer)

    def forget(self) -> None:
        """Pickle each function again when it is called next."""
        with self._lock:
            self._known.clear()

    def _pickle(self, fn: Callable[..., Any], writer: ValueWriter | None) -> FunctionPickle:
        snapshot = Snapshot.of(fn)
        pickled = _pickle_function(fn, writer, pure=snapshot is not None)
        if writer is self._durable and isinstance(pickled.data, MessageWithRefs):
            return pickled  # Each time its values are renewed on the server.
        # Another thread may have rebound something while the function was being pickled.
        if snapshot is not None and type(fn) in _CACHEABLE and snapshot.holds(fn):
            with self._lock:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[ref(fn, functools.partial(_drop, ref(self)))] = (snapshot, pickled)
        return pickled


def _drop(pickler: ref[FunctionPickler], function: ref[Any]) -> None:
    """Forget a function that is gone."""
    if (known := pickler()) is not None:
        known._known.pop(function, None)  # noqa: SLF001 - it is this module's


def _is_async(fn: Callable[..., Any]) -> bool:
    """Return whether a call of `fn` only makes a coroutine or an async generator."""
    import inspect

    from .standard import lru_cache_wrapper

    call: Any = fn
    while isinstance(call, functools.partial | lru_cache_wrapper):
        call = call.func if isinstance(call, functools.partial) else call.__wrapped__
    if not inspect.isroutine(call) and not isinstance(call, type):
        call = type(call).__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


def _pickle_function(
    fn: Callable[..., Any], writer: ValueWriter | None, *, pure: bool
) -> FunctionPickle:
    name = name_of(fn)
    pickler = pickle_or_explain(fn, f"{name}()", writer)
    body = pickler.message(writer, f"what {name}() captures")
    addresses = addresses_of(body)
    data = pickle.dumps(
        (PYTHON, name, pure, _sources(pickler.filenames), bytes(body), addresses), 5
    )
    if isinstance(body, MessageWithRefs):
        data = MessageWithRefs.around(data, body.held)
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    generator = "".join(map(type_name, pickler.generators[:1]))
    return FunctionPickle(digest, data, name, generator, _is_async(fn))


def load_function(data: bytes) -> LoadedFunction:
    """Return the function that `FunctionPickler.dump` wrote.

    Raises
    ------
    PythonMismatch
        It was written by another minor version of Python, and was not unpickled.
    """
    python, name, pure, sources, body, addresses = pickle.loads(data)
    if python != PYTHON:
        raise PythonMismatch(
            f"{name}() was sent by Python {python}, and this worker runs Python {PYTHON}: their"
            f" bytecode differs. Start the workers with Python {python}, or the notebook's kernel"
            f" with Python {PYTHON}."
        )
    for filename, source in sources.items():
        # Another kernel's cell, or an older one, may have come under the same name.
        if filename in _received_sources or filename not in linecache.cache:
            _received_sources.add(filename)
            lines = source.splitlines(keepends=True)
            linecache.cache[filename] = (len(source), None, lines, filename)
    with arriving() as arrived:
        fn = pickle.loads(body)
    return LoadedFunction(fn, pure, addresses, arrived.surroundings)


def _sources(filenames: set[str]) -> dict[str, str]:
    """Return the sources that are in no file, such as those of notebook cells."""
    sources = {}
    for filename in sorted(filenames):
        if not os.path.exists(filename):  # noqa: PTH110  # it may not be a path at all
            source = "".join(linecache.getlines(filename))
            if source:
                sources[filename] = source
    return sources


def name_of(fn: Callable[..., Any]) -> str:
    """Return a readable name of `fn`: ``fib``, ``Model.fit``, ``<lambda>``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    text = str(name).rpartition("<locals>.")[2]
    # It is part of messages, so it must be short and encodable.
    return text[:MAX_NAME].encode(errors="backslashreplace").decode()
