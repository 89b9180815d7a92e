"""Functions <-> bytes, and their identity: never stale, and not pickled again without need."""

from __future__ import annotations

import functools
import hashlib
import linecache
import os
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import NotPicklable, PythonMismatch
from .blobs import Blobs, Handle, Parcel, handles_of
from .captures import Snapshot, take
from .generators import type_name
from .shells import ShellLine
from .surroundings import Surroundings, arriving

__all__ = ["FunctionPickle", "FunctionPickler", "LoadedFunction", "load_function", "name_of"]

#: Bytecode is the same within one minor version of Python.
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_DIGEST_BYTES = 16
#: Longest name of a function, in characters.
MAX_NAME = 200
#: Functions remembered by a session; more keep more memory where a cycle holds them.
_MOST_KNOWN = 1000
#: Hashed by identity, and weakly referable.
_CACHEABLE = frozenset({FunctionType, BuiltinFunctionType, functools.partial, type})

#: Names of cells whose lines came with a function.
_received_sources: set[str] = set()


@dataclass(frozen=True)
class FunctionPickle:
    """A function, ready to travel.

    Attributes
    ----------
    digest
        Of `data`, in hex: the key that the function is stored by.
    data
        What `load_function` reads; a parcel if it refers to large values.
    name
        For people.
    generator
        The type of a random number generator that it captures, and takes a copy of; or nothing.
    """

    digest: str
    data: bytes
    name: str
    generator: str = ""


@dataclass(frozen=True)
class LoadedFunction:
    """A function that arrived.

    Attributes
    ----------
    fn
        The function.
    pure
        Whether it captures only what can't change: it may be called for other jobs, too. Else it
        has to be loaded anew for each job.
    handles
        Where its large parts lie.
    surroundings
        The context to call it in; None: it needs none.
    """

    fn: Callable[..., Any]
    pure: bool
    handles: tuple[Handle, ...]
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
    blobs
        Where large captured values go.
    """

    def __init__(self, blobs: Blobs | None = None) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._known: WeakKeyDictionary[Any, tuple[Snapshot, FunctionPickle]] = WeakKeyDictionary()

    def dump(self, fn: Callable[..., Any], *, lasting: bool = False) -> FunctionPickle:
        """Return `fn` as bytes, as it is now; `lasting`: all in one, to outlive this process.

        Raises
        ------
        NotPicklable
            The function, or something that it captures, can't travel; the message says what.
        TypeError
            It is a coroutine function or an async generator function.
        """
        if type(fn) in _CACHEABLE:
            known = self._known.get(fn)
            fits = known is not None and not (lasting and isinstance(known[1].data, Parcel))
            if known is not None and fits and known[0].holds(fn):
                return known[1]
        return self._dump_anew(fn, None if lasting else self._blobs)

    def forget(self) -> None:
        """Pickle each function again when it is wanted next."""
        with self._lock:
            self._known.clear()

    def _dump_anew(self, fn: Callable[..., Any], blobs: Blobs | None) -> FunctionPickle:
        _refuse_async(fn)
        snapshot = take(fn)
        pickled = _pickle_function(fn, blobs, pure=snapshot is not None)
        # Something may have been rebound by another thread while it was being pickled.
        if snapshot is not None and type(fn) in _CACHEABLE and snapshot.holds(fn):
            with self._lock:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[fn] = (snapshot, pickled)
        return pickled


def _refuse_async(fn: Callable[..., Any]) -> None:
    """Raise TypeError if a call of `fn` only makes a coroutine or an async generator."""
    import inspect

    from .pickler import lru_cache_wrapper

    call: Any = fn
    while isinstance(call, functools.partial | lru_cache_wrapper):
        call = call.func if isinstance(call, functools.partial) else call.__wrapped__
    if not inspect.isroutine(call) and not isinstance(call, type):
        call = type(call).__call__
    name = name_of(fn)
    if inspect.iscoroutinefunction(call):
        raise TypeError(
            f"{name}() is a coroutine function: a worker would return its coroutine and run"
            " nothing. Submit a plain function that runs it, such as"
            f" `def run(*args): return asyncio.run({name}(*args))`."
        )
    if inspect.isasyncgenfunction(call):
        raise TypeError(
            f"{name}() is an async generator function: a worker can't iterate over what it returns."
            " Submit a plain function that collects its values with asyncio.run and returns them"
            " as a list."
        )


def _pickle_function(fn: Callable[..., Any], blobs: Blobs | None, *, pure: bool) -> FunctionPickle:
    from .pickler import pickled

    name = name_of(fn)
    try:
        pickler = pickled(fn, apart=None if blobs is None else blobs.large, maps=True)
    except MemoryError:
        raise
    except ShellLine as error:
        raise error.with_traceback(None) from None  # the frames of pickle tell nobody anything
    except Exception as error:  # noqa: BLE001 - its text is in ours
        from .diagnosis import explain

        raise NotPicklable(explain(fn, error, f"{name}()")) from None
    body = pickler.message(blobs, f"what {name}() captures")
    handles = handles_of(body)
    data = pickle.dumps((_PYTHON, name, pure, _sources(pickler.filenames), bytes(body), handles), 5)
    if isinstance(body, Parcel):
        data = Parcel.around(data, body.held)
    digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    return FunctionPickle(digest, data, name, "".join(map(type_name, pickler.generators[:1])))


def load_function(data: bytes) -> LoadedFunction:
    """Return the function that `FunctionPickler.dump` wrote.

    Raises
    ------
    PythonMismatch
        It was written by another minor version of Python, and was not unpickled.
    """
    python, name, pure, sources, body, handles = pickle.loads(data)
    if python != _PYTHON:
        raise PythonMismatch(
            f"{name}() was sent by Python {python}, and this worker runs Python {_PYTHON}: their"
            f" bytecode differs. Start the workers with Python {python}, or the notebook's kernel"
            f" with Python {_PYTHON}."
        )
    for filename, source in sources.items():
        # Another kernel's cell, or an older one, may have come under the same name.
        if filename in _received_sources or filename not in linecache.cache:
            _received_sources.add(filename)
            lines = source.splitlines(keepends=True)
            linecache.cache[filename] = (len(source), None, lines, filename)
    with arriving() as arrived:
        fn = pickle.loads(body)
    return LoadedFunction(fn, pure, handles, arrived.surroundings)


def _sources(filenames: set[str]) -> dict[str, str]:
    """Return the sources that are in no file, such as those of notebook cells."""
    sources = {}
    for filename in sorted(filenames):
        if not os.path.exists(filename):  # noqa: PTH110  # it may be no path at all
            source = "".join(linecache.getlines(filename))
            if source:
                sources[filename] = source
    return sources


def name_of(fn: Callable[..., Any]) -> str:
    """Return a name of `fn` for people: ``fib``, ``Model.fit``, ``<lambda>``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    text = str(name).rpartition("<locals>.")[2]
    # It is part of messages: it must be short, and there must be a way to encode it.
    return text[:MAX_NAME].encode(errors="backslashreplace").decode()
