"""Functions <-> bytes, and their identity: never stale, and not pickled again without need."""

from __future__ import annotations

import dis
import functools
import hashlib
import linecache
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ..errors import NotPicklable, PythonMismatch
from .bytecode import imported_names, names_of
from .large_values import Blobs, MessageWithRefs, ValueAddress, handles_of
from .modules import is_local
from .random_numbers import type_name
from .surroundings import Surroundings, arriving

_ATOMS = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(...), type(NotImplemented), range}
    | {CodeType}
)
#: Immutable types, by name: to import them here would be slow.
_FROZEN = frozenset(
    {
        ("datetime", "date"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("numpy", "bool"),
        ("numpy", "bool_"),
        ("numpy", "float32"),
        ("numpy", "float64"),
        ("numpy", "int32"),
        ("numpy", "int64"),
        ("numpy", "ufunc"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),
        ("re", "Pattern"),
        ("uuid", "UUID"),
    }
)


class _Mark:
    """Stands for what isn't there, or must not be held."""


_UNBOUND = _Mark()
_ROOT = _Mark()  # to hold the function itself would keep it in a weak cache for ever


class _Guard(Protocol):
    def holds(self, thing: Any, root: Any) -> bool: ...


class Snapshot:
    """What a function captured; only made if all of it is immutable."""

    __slots__ = ("_guards",)

    def __init__(self, guards: list[tuple[Any, _Guard]]) -> None:
        self._guards = guards

    def holds(self, root: Any) -> bool:
        """Tell whether `root`, which this was taken of, still captures the very same things."""
        for thing, guard in self._guards:
            if not guard.holds(root if thing is _ROOT else thing, root):
                return False
        return True


def take(root: Any) -> Snapshot | None:
    """Return a snapshot of the function `root`; None if anything it captures can be changed."""
    walk = _Walk(root)
    try:
        return Snapshot(walk.guards) if walk.is_fixed(root) else None
    except RecursionError:
        return None


class _FunctionGuard:
    __slots__ = ("_absent", "_attributes", "_cells", "_code", "_defaults", "_globals", "_keywords")

    def __init__(self, fn: FunctionType, root: Any) -> None:
        self._code = fn.__code__
        self._defaults = fn.__defaults__
        self._keywords = dict(fn.__kwdefaults__ or ())
        self._attributes = dict(fn.__dict__)
        names = names_of(fn.__code__).globals
        self._globals = [(n, _held(fn.__globals__.get(n, _UNBOUND), root)) for n in names]
        self._cells = [_held(_content(cell), root) for cell in fn.__closure__ or ()]
        self._absent = [n for n in imported_names(fn) if n not in sys.modules]

    def captured(self) -> list[Any]:
        values = [value for _, value in self._globals]
        return [*values, *self._cells, *self._keywords.values(), *self._attributes.values()]

    def holds(self, thing: FunctionType, root: Any) -> bool:
        if thing.__code__ is not self._code or thing.__defaults__ is not self._defaults:
            return False
        get = thing.__globals__.get
        for name, value in self._globals:
            found = get(name, _UNBOUND)
            if found is not value and not (value is _ROOT and found is root):
                return False
        return self._cells_hold(thing, root) and (
            _same_items(thing.__dict__, self._attributes)
            and _same_items(thing.__kwdefaults__ or {}, self._keywords)
            and not any(name in sys.modules for name in self._absent)
        )

    def _cells_hold(self, fn: FunctionType, root: Any) -> bool:
        for cell, value in zip(fn.__closure__ or (), self._cells, strict=True):
            found = _content(cell)
            if found is not value and not (value is _ROOT and found is root):
                return False
        return True


class _PartialGuard:
    __slots__ = ("_args", "_func", "_keywords")

    def __init__(self, thing: partial[Any]) -> None:
        self._func, self._args, self._keywords = thing.func, thing.args, dict(thing.keywords)

    def holds(self, thing: partial[Any], root: Any) -> bool:  # noqa: ARG002
        return (
            thing.func is self._func
            and thing.args is self._args
            and not vars(thing)
            and _same_items(thing.keywords, self._keywords)
        )


class _Walk:
    """Goes through what a function captures, and stops at the first thing that can be changed."""

    def __init__(self, root: Any) -> None:
        from .pickler import by_reference, lru_cache_wrapper

        self.guards: list[tuple[Any, _Guard]] = []
        self._root = root
        self._seen: dict[int, Any] = {}
        self._by_reference = by_reference
        self._lru_cache_wrapper = lru_cache_wrapper

    def is_fixed(self, value: Any) -> bool:
        kind = type(value)
        if kind in _ATOMS or kind is _Mark or id(value) in self._seen:
            return True
        self._seen[id(value)] = value
        if kind is FunctionType:
            return self._by_reference(value) or self._is_fixed_function(value)
        if kind is tuple or kind is frozenset:
            return all(map(self.is_fixed, value))
        if kind is ModuleType:
            return not is_local(value) and sys.modules.get(value.__name__) is value
        if isinstance(value, type):
            return self._by_reference(value)
        return self._is_fixed_callable(value, kind)

    def _is_fixed_function(self, fn: FunctionType) -> bool:
        # A function that rebinds its globals must not find, at its next job, what it left there.
        if names_of(fn.__code__).rebinds or not fn.__dict__.keys() <= {"__wrapped__"}:
            return False
        if any(is_local(m) for n in imported_names(fn) if (m := sys.modules.get(n)) is not None):
            return False
        guard = _FunctionGuard(fn, self._root)
        self._add(fn, guard)
        return self.is_fixed(fn.__defaults__) and all(map(self.is_fixed, guard.captured()))

    def _is_fixed_callable(self, value: Any, kind: type) -> bool:
        if kind is partial:
            self._add(value, _PartialGuard(value))
            parts = [value.func, value.args, *value.keywords.values()]
            return not vars(value) and all(map(self.is_fixed, parts))
        if kind is MethodType:
            return self.is_fixed(value.__func__) and self.is_fixed(value.__self__)
        if kind is BuiltinFunctionType:
            return self.is_fixed(value.__self__)
        if kind is self._lru_cache_wrapper:
            return self._by_reference(value) or self.is_fixed(value.__wrapped__)
        return (kind.__module__, kind.__qualname__) in _FROZEN

    def _add(self, thing: Any, guard: _Guard) -> None:
        self.guards.append((_ROOT if thing is self._root else thing, guard))


def _held(value: Any, root: Any) -> Any:
    return _ROOT if value is root else value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _UNBOUND


def _same_items(now: dict[str, Any], before: dict[str, Any]) -> bool:
    if not now and not before:
        return True
    return now.keys() == before.keys() and all(now[k] is v for k, v in before.items())


#: Modules and names of what IPython puts into a notebook, or of its type.
_OF_SHELL = frozenset(
    {
        ("IPython.core.autocall", "ExitAutocall"),
        ("IPython.core.display_functions", "display"),
        ("IPython.core.interactiveshell", "InteractiveShell.get_ipython"),
    }
)
#: Under other names they travel as anything else does.
_NAMES = frozenset({"display", "exit", "get_ipython", "quit"})
#: What a line with ``!`` or ``%`` calls -> how it begins in the notebook.
_CALLS = {"system": "!", "getoutput": "!", "run_line_magic": "%", "run_cell_magic": "%%"}


class ShellLine(NotPicklable):
    """A function has a line that only IPython can run."""


def captured_globals(fn: FunctionType) -> dict[str, Any]:
    """Return the globals that a function uses, without those of IPython.

    A worker has an `exit`, a `quit` and a `display` of its own, and no `get_ipython`.
    """
    known = fn.__globals__
    return {
        name: known[name]
        for name in names_of(fn.__code__).globals
        if name in known and not (name in _NAMES and _is_of_shell(known[name]))
    }


def _is_of_shell(value: Any) -> bool:
    if isinstance(value, FunctionType | MethodType):
        return (value.__module__, value.__qualname__) in _OF_SHELL
    return any((c.__module__, c.__qualname__) in _OF_SHELL for c in type(value).__mro__)


def check_shell_lines(fn: FunctionType) -> None:
    """Raise `ShellLine` if a function has a line with ``!`` or ``%`` outside of `try`."""
    if "get_ipython" not in names_of(fn.__code__).globals:
        return
    if line := _shell_line(fn.__code__):
        instead = "subprocess.run" if line.startswith("!") else "plain Python"
        raise ShellLine(
            f"{fn.__qualname__}() can't be sent to a worker: it has the line `{line}`, which only"
            f" IPython can run, and a worker runs plain Python. Use {instead} in the function, or"
            " have the line in a cell of its own."
        )


@lru_cache(1000)
def _shell_line(code: CodeType) -> str:
    """Return the first such line, as it stands in the notebook; nothing if there is none."""
    for now, after in _shell_calls(code):
        if now.argval in _CALLS and not _is_guarded(code, now.offset):
            return (_CALLS[now.argval] + " ".join(map(str, after))).strip()
    nested = (_shell_line(c) for c in code.co_consts if isinstance(c, CodeType))
    return next(filter(None, nested), "")


def _shell_calls(code: CodeType) -> Iterator[tuple[dis.Instruction, list[Any]]]:
    """Yield each attribute of what `get_ipython` returns, and the constants that follow it."""
    told = [i for i in dis.get_instructions(code) if i.opname.startswith("LOAD_")]
    for k, (before, now) in enumerate(pairwise(told), 1):
        if before.argval == "get_ipython" and isinstance(now.argval, str):
            following = [i.argval for i in told[k + 1 : k + 3] if i.opname == "LOAD_CONST"]
            yield now, following[: 1 if _CALLS.get(now.argval) == "!" else 2]


def _is_guarded(code: CodeType, offset: int) -> bool:
    """Tell whether an instruction is in a `try`, and not only in a `with`."""
    told = pairwise(dis.get_instructions(code))
    starts = {now.offset: (now.opname, after.opname) for now, after in told}
    return any(
        entry.start <= offset < entry.end
        and starts.get(entry.target, ("", ""))[0] == "PUSH_EXC_INFO"
        and starts[entry.target][1] != "WITH_EXCEPT_START"
        for entry in dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    )


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
    handles: tuple[ValueAddress, ...]
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
            fits = known is not None and not (
                lasting and isinstance(known[1].data, MessageWithRefs)
            )
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
        from .pickle_errors import explain

        raise NotPicklable(explain(fn, error, f"{name}()")) from None
    body = pickler.message(blobs, f"what {name}() captures")
    handles = handles_of(body)
    data = pickle.dumps((_PYTHON, name, pure, _sources(pickler.filenames), bytes(body), handles), 5)
    if isinstance(body, MessageWithRefs):
        data = MessageWithRefs.around(data, body.held)
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
