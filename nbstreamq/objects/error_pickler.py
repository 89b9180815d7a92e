"""The pickler of exceptions, which includes their traceback, causes and notes.

Imported late, because cloudpickle is slow to import.
"""

from __future__ import annotations

import functools
import io
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

from ..tracebacks import OWN_FOLDER
from .classes import is_made_by_code
from .pickler import Pickler, Rehearsal

#: One frame: file, function, line, first line of the function, `__name__` of its globals.
_FrameRecord = tuple[str, str, int, int, str]
#: Most frames of other tasks in a traceback, half of them outermost. An error passes through all
#: tasks that wait for each other, and each adds its frames: more take longer at each of them.
MOST_FRAMES = 100
#: Stands for the frames in between.
_LEFT_OUT: _FrameRecord = ("<frames in between were left out>", "...", 1, 1, "")
#: A global of the frames that are made here.
_MADE = "__made_by_nbstreamq__"
#: Id of an object that was pickled by itself -> the object, and why that failed; empty if it did
#: not fail. The object is held, because its id would be reused if it were gone.
Tried = dict[int, tuple[object, str]]


class ErrorPickler(Pickler):
    """Pickles exceptions so that the client raises them as they were raised in the worker.

    Parameters
    ----------
    tried
        None: all must be picklable. Else `NotSent` replaces what is not, and exceptions whose own
        ``__reduce__`` fails are taken apart. Objects that are tried by themselves are added.
    """

    def __init__(self, file: Any, tried: Tried | None) -> None:
        super().__init__(file, lenient=True)
        self._tried = tried

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, TracebackType):
            return make_traceback, (_frames_of(obj),)
        if isinstance(obj, BaseException):
            is_hopeless = self._tried is not None and _problem_with(obj, self._tried)
            return _take_apart(obj, self._tried or {}) if is_hopeless else _reduce_error(obj)
        if self._tried is None or isinstance(obj, type | FunctionType):
            return super().reducer_override(obj)
        # A copy without some of its parts must not clean up.
        if hasattr(type(obj), "__del__"):
            return NotSent.instead_of(obj, "it has a __del__ that cleans up").__reduce__()
        try:
            return self._reduce_now(obj)
        except Exception as problem:  # noqa: BLE001 - the code of a library runs here
            return NotSent.instead_of(obj, str(problem)).__reduce__()

    def _reduce_now(self, obj: Any) -> Any:
        """Return what pickle would use for `obj`, so that an error is raised here."""
        reduced = super().reducer_override(obj)
        if reduced is not NotImplemented:
            return reduced
        reduce = self.dispatch_table.get(type(obj))
        return reduce(obj) if reduce else obj.__reduce_ex__(5)


def _problem_with(obj: Any, tried: Tried) -> str:
    """Return why an object can't be sent; empty if it can.

    Each is tried once. Otherwise each level of nested exceptions would double the time.
    """
    if id(obj) not in tried:
        tried[id(obj)] = obj, ""  # it may hold itself
        try:
            pickle_error(obj, tried)
        except MemoryError:
            raise
        except Exception as problem:  # noqa: BLE001 - as above
            tried[id(obj)] = obj, str(problem) or type(problem).__name__
    return tried[id(obj)][1]


def _take_apart(error: BaseException, tried: Tried) -> Any:
    """Return how to make an exception from the arguments and attributes that can be sent."""

    def sent(part: object) -> object:
        problem = _problem_with(part, tried)
        replaced = problem and not isinstance(part, BaseException)
        return NotSent.instead_of(part, problem) if replaced else part

    make, (cls, *arguments), (state, chain), *rest = _reduce_as_built_in(error)
    args, final = (tuple(map(sent, parts)) for parts in arguments)
    state = {name: sent(part) for name, part in state.items()}
    return make, (cls, args, final), (state, chain), *rest


class NotSent:
    """Stands for a part of an exception that could not be sent from the worker."""

    def __init__(self, type_name: str, why: str) -> None:
        self._type_name = type_name
        self._why = why

    @classmethod
    def instead_of(cls, part: object, why: str) -> NotSent:
        return cls(f"{type(part).__module__}.{type(part).__qualname__}", why)

    def __repr__(self) -> str:
        return f"<{self._type_name}, which could not be sent from the worker: {self._why}>"

    def __reduce__(self) -> Any:
        return NotSent, (self._type_name, self._why)


def pickle_error(error: Any, tried: Tried | None = None) -> bytes:
    """Return an exception, or a part of one, pickled.

    Parameters
    ----------
    tried
        None: all of it must be picklable. Else `NotSent` replaces parts that are not.

    Raises
    ------
    Exception
        It can't be pickled, or can't be unpickled again.
    """
    file = io.BytesIO()
    ErrorPickler(file, tried).dump(error)
    # Some can be pickled but not unpickled: https://github.com/python/cpython/issues/79492
    copy = Rehearsal(io.BytesIO(file.getvalue())).load()
    if isinstance(error, BaseException) and type(copy) is not type(error):
        raise TypeError(f"it came back as {type(copy).__qualname__}")
    return file.getvalue()


def _reduce_error(error: BaseException) -> Any:
    """Return how to make an exception, by its own ``__reduce__`` if it has one."""
    if _reduces_as_builtin(type(error)):
        make, made_of, state, *rest = _reduce_as_built_in(error)
        return make, made_of, state, None, None, set_error_state
    reduced = error.__reduce_ex__(5)
    if isinstance(reduced, str):
        raise TypeError(f"its __reduce__ names a global, {reduced!r}, not an exception")
    make, made_of, *rest = reduced
    state = rest[0] if rest else None, _chain_of(error)
    return make, made_of, state, None, None, set_error_state


def _reduce_as_built_in(error: BaseException) -> Any:
    """Return how to make an exception from its arguments and attributes, without its own code."""
    cls = type(error)
    base: Any = _built_in_base(cls)
    _, args, *rest = base.__reduce__(error)
    state = {**(rest[0] if rest else {}), **_state_of(error)}
    made_of = cls, args, error.args
    return make_error, made_of, (state, _chain_of(error)), None, None, set_error_parts


def _chain_of(error: BaseException) -> tuple[Any, ...]:
    return (
        error.__traceback__,
        error.__cause__,
        error.__context__,
        error.__suppress_context__,
        getattr(error, "__notes__", None),
    )


def _state_of(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an exception, including slots, without its notes."""
    state = object.__getstate__(error)
    own, slots = state if isinstance(state, tuple) else (state, None)
    found = {**(own or {}), **(slots or {})}
    found.pop("__notes__", None)
    if isinstance(error, NameError | AttributeError):
        found["name"] = error.name  # Python 3.11 doesn't pickle it, and suggests names by it
    return found


def _reduces_as_builtin(cls: type[BaseException]) -> bool:
    """Tell whether `cls` inherits its pickling from a built-in exception."""
    base = _built_in_base(cls)
    names = ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in names)


def make_error(cls: type[BaseException], args: tuple[Any, ...], final: tuple[Any, ...]) -> Any:
    """Return an exception made from `args`, whose ``.args`` are `final`.

    Its own __init__ is not called: it may need other arguments, or change them a second time.
    """
    base = _built_in_base(cls)
    try:
        error = base.__new__(cls, *args)
    except TypeError:  # MemoryError makes only classes that have it as their first base
        error = BaseException.__new__(cls, *args)
    base.__init__(error, *args)
    if error.args != final:
        _set(error, "args", final)
    return error


def _built_in_base(cls: type[BaseException]) -> type[BaseException]:
    """Return the built-in exception that the instances of `cls` are built on."""
    built_in = [c for c in cls.__mro__ if not is_made_by_code(c)]
    return max(built_in, key=lambda c: c.__basicsize__)


def set_error_state(error: BaseException, state: tuple[Any, tuple[Any, ...]]) -> None:
    """Set the attributes of `error`, and its traceback, causes and notes."""
    own, chain = state
    if own is None or type(error).__setstate__ is BaseException.__setstate__:
        set_error_parts(error, (own or {}, chain))
    else:
        error.__setstate__(own)
        set_error_parts(error, ({}, chain))


def set_error_parts(error: BaseException, parts: tuple[dict[str, Any], tuple[Any, ...]]) -> None:
    """Set the attributes of `error` without running code of its class."""
    own, (trace, cause, context, suppress, notes) = parts
    for name, value in own.items():
        _set(error, name, value)
    if notes is not None:
        _set(error, "__notes__", list(notes))
    _set(error, "__cause__", cause)
    _set(error, "__context__", context)
    _set(error, "__suppress_context__", suppress)
    _set(error, "__traceback__", trace)


def _set(error: BaseException, name: str, value: Any) -> None:
    """Set an attribute directly: the class may be frozen, or have a property of that name."""
    try:
        object.__setattr__(error, name, value)
    except AttributeError:
        vars(error)[name] = value


def _frames_of(trace: TracebackType) -> list[_FrameRecord]:
    """Return the frames of a traceback, without those of nbstreamq at its top."""
    frames, n_made = [], 0
    todo: TracebackType | None = trace
    while todo is not None:
        frame = todo.tb_frame
        code = frame.f_code
        line = todo.tb_lineno or code.co_firstlineno
        name = str(frame.f_globals.get("__name__", ""))
        frames.append((code.co_filename, code.co_name, line, code.co_firstlineno, name))
        n_made += _MADE in frame.f_globals
        todo = todo.tb_next
    first = next((i for i, f in enumerate(frames) if not f[0].startswith(OWN_FOLDER)), 0)
    # Also in between: tasks that a coroutine starts run through the worker's code.
    shown = [f for f in frames[first:] if not f[0].startswith(f"{OWN_FOLDER}worker/")] or frames
    if n_made > MOST_FRAMES + 1:
        shown[-n_made + MOST_FRAMES // 2 : -MOST_FRAMES // 2] = [_LEFT_OUT]
    return shown


def make_traceback(frames: list[_FrameRecord]) -> TracebackType | None:
    """Return a traceback with these frames, outermost first; they have no variables."""
    made = None
    for record in reversed(frames):
        # Not -1, the instruction before the first: IPython would search for it forever.
        made = TracebackType(made, _make_frame(*record), 2, record[2])
    return made


def _make_frame(filename: str, function: str, line: int, first: int, module: str) -> FrameType:
    """Return a frame at a line, from code that is made to raise there.

    It keeps the frames alive that have led here, so it is not kept itself.
    """
    code = _code_at(filename, function, line, first)
    try:
        exec(code, {"__name__": module, "__file__": filename, _MADE: True})  # noqa: S102 - our code
    except StopIteration as error:
        trace = error.__traceback__
    assert trace is not None  # noqa: S101 - it was raised two lines up
    assert trace.tb_next is not None  # noqa: S101
    return trace.tb_next.tb_frame


@functools.lru_cache(maxsize=128)
def _code_at(filename: str, function: str, line: int, first: int) -> CodeType:
    """Return code that raises at a line.

    jinja2 shows the lines of templates in this way. tblib does so, too, but its code has column
    numbers, and Python would underline these columns in lines that have other code.
    """
    code = compile("raise StopIteration", filename, "exec")
    table = _locations(len(code.co_code) // 2, line - first)
    code = code.replace(co_name=function, co_qualname=function)
    return code.replace(co_firstlineno=first, co_linetable=table)


def _locations(n_instructions: int, offset: int) -> bytes:
    """Return a location table: all instructions are `offset` lines below the first, in no column.

    See "The locations table" in CPython's InternalDocs/code_objects.md; 13 is the kind of entries
    without columns.
    """
    table, moved = b"", _signed_varint(offset)
    for first in range(0, n_instructions, 8):
        n = min(8, n_instructions - first)
        table += bytes([0x80 | 13 << 3 | n - 1]) + moved
        moved = b"\0"
    return table


def _signed_varint(value: int) -> bytes:
    rest = -value << 1 | 1 if value < 0 else value << 1
    digits = []
    while rest > 63:
        digits.append(0x40 | rest & 63)
        rest >>= 6
    return bytes([*digits, rest])
