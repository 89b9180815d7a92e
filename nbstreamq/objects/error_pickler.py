"""The pickler of exceptions, which includes their traceback, causes and notes.

Imported late, because cloudpickle is slow to import.
"""

from __future__ import annotations

import io
from types import FrameType, TracebackType
from typing import Any

from .pickler import Pickler, Rehearsal

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a `class` statement

#: Most parts of an exception that are replaced; with more of them it is sent in another way.
_MOST_REPLACED = 50

#: One frame: file, function, line, first line of the function, `__name__` of its globals.
_FrameRecord = tuple[str, str, int, int, str]


class ErrorPickler(Pickler):
    """Pickles exceptions so that the client raises them as they were raised in the worker.

    Parameters
    ----------
    own_folder
        Frames of files below it are dropped from the top of tracebacks.
    replaced
        Id of a part that can't be pickled -> its stand-in; None: all must be pickled.
    plain
        Pickle exceptions without their own ``__reduce__``, and without parts that can't be sent.
    tried
        Id of a part of a plain exception -> the part, and what is sent for it. Parts are added.

    Attributes
    ----------
    begun
        The last object whose pickling began: if that failed, the culprit.
    """

    def __init__(
        self,
        file: Any,
        *,
        own_folder: str,
        lenient: bool = False,
        replaced: dict[int, NotSent] | None = None,
        plain: bool = False,
        tried: dict[int, tuple[object, object]] | None = None,
    ) -> None:
        super().__init__(file, lenient=lenient)
        self._own_folder = own_folder
        self._replaced = replaced
        self._plain = plain
        self._tried = {} if tried is None else tried
        self.begun: object = None

    def reducer_override(self, obj: Any) -> Any:
        self.begun = obj
        if self._replaced is not None and (stand_in := self._stand_in(obj)):
            return stand_in.__reduce__()
        if isinstance(obj, BaseException):
            return self._reduce_apart(obj) if self._plain else _reduce_error(obj)
        if isinstance(obj, TracebackType):
            return make_traceback, (_frames_of(obj, self._own_folder),)
        return super().reducer_override(obj)

    def _stand_in(self, obj: Any) -> NotSent | None:
        assert self._replaced is not None  # noqa: S101 - the caller checks it
        found = self._replaced.get(id(obj))
        # A copy without some of its parts must not clean up.
        if found is None and hasattr(type(obj), "__del__") and not isinstance(obj, type):
            return NotSent(obj, "it has a __del__ that cleans up")
        return found

    def _reduce_apart(self, error: BaseException) -> Any:
        """Return how to make an exception from the arguments and attributes that can be sent."""
        base: Any = _built_in_base(type(error))
        args, final = (
            tuple(self._arriving(part) for part in args)
            for args in (base.__reduce__(error)[1], error.args)
        )
        state = {name: self._arriving(part) for name, part in _state_of(error).items()}
        made_of = (type(error), args, final)
        return make_error, made_of, (state, _chain_of(error)), None, None, set_error_parts

    def _arriving(self, part: Any) -> Any:
        """Return a part of an exception if it can be sent, else a stand-in for it.

        Each part is tried once. Otherwise each level of nested exceptions would double the time.
        """
        if id(part) not in self._tried:
            self._tried[id(part)] = part, part  # it may hold itself
            try:
                pickle_error(part, own_folder=self._own_folder, plain=True, tried=self._tried)
            except MemoryError:
                raise
            except Exception as problem:  # noqa: BLE001 - the code of a library runs here
                self._tried[id(part)] = part, NotSent(part, str(problem))
        return self._tried[id(part)][1]


class NotSent:
    """Stands for a part of an exception that could not be sent from the worker."""

    def __init__(self, what: object, why: str) -> None:
        self._type = f"{type(what).__module__}.{type(what).__qualname__}"
        self._why = why

    def __repr__(self) -> str:
        return f"<{self._type}, which could not be sent from the worker: {self._why}>"

    def __reduce__(self) -> Any:
        return _not_sent, (self._type, self._why)


def _not_sent(type_: str, why: str) -> NotSent:
    made = NotSent.__new__(NotSent)
    made._type, made._why = type_, why  # noqa: SLF001 - as its __init__ does
    return made


def pickle_error(
    error: Any,
    *,
    own_folder: str,
    plain: bool,
    tried: dict[int, tuple[object, object]] | None = None,
) -> bytes:
    """Return an exception, or a part of one, pickled; `NotSent` replaces parts that can't be.

    Raises
    ------
    Exception
        It can't be pickled, or can't be unpickled again.
    """
    replaced: dict[int, NotSent] | None = None
    tried = {} if tried is None else tried
    #: Held, because their ids would be reused if they were gone.
    culprits: list[object] = []
    while True:
        file = io.BytesIO()
        pickler = ErrorPickler(
            file,
            own_folder=own_folder,
            lenient=True,
            replaced=replaced,
            plain=plain,
            tried=tried,
        )
        try:
            pickler.dump(error)
            break
        except Exception as problem:
            culprit = pickler.begun
            if (
                len(culprits) == _MOST_REPLACED
                or culprit is error
                or id(culprit) in (replaced or ())
            ):
                raise
            culprits.append(culprit)
            replaced = (replaced or {}) | {id(culprit): NotSent(culprit, str(problem))}
    # Some can be pickled but not unpickled: https://github.com/python/cpython/issues/79492
    copy = Rehearsal(io.BytesIO(file.getvalue())).load()
    if type(copy) is not type(error):
        raise TypeError(f"it came back as {type(copy).__qualname__}")
    return file.getvalue()


def _reduce_error(error: BaseException) -> Any:
    cls = type(error)
    if _reduces_as_builtin(cls):
        _, args, *rest = _reduced(error.__reduce__())
        state = rest[0] if rest else None
        if state is None or type(state) is dict:
            state = (state or {}) | _state_of(error)
        make: Any = make_error
        made_of: Any = (cls, args, error.args)
    else:
        make, made_of, *rest = _reduced(error.__reduce_ex__(5))
        state = rest[0] if rest else None
    return make, made_of, (state, _chain_of(error)), None, None, set_error_state


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


def _reduced(reduced: str | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(reduced, str):
        raise TypeError(f"its __reduce__ names a global, {reduced!r}, not an exception")
    return reduced


def _reduces_as_builtin(cls: type) -> bool:
    """Tell whether `cls` inherits its pickling from a built-in exception."""
    for name in ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if owner is not None and owner.__flags__ & _HEAP_TYPE:
            return False
    return True


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
    built_in = [c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE]
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


def _frames_of(trace: TracebackType, own_folder: str) -> list[_FrameRecord]:
    frames = []
    todo: TracebackType | None = trace
    while todo is not None:
        frame = todo.tb_frame
        code = frame.f_code
        line = todo.tb_lineno or code.co_firstlineno
        name = str(frame.f_globals.get("__name__", ""))
        frames.append((code.co_filename, code.co_name, line, code.co_firstlineno, name))
        todo = todo.tb_next
    first = next((i for i, f in enumerate(frames) if not f[0].startswith(own_folder)), 0)
    return frames[first:]


def make_traceback(frames: list[_FrameRecord]) -> TracebackType | None:
    """Return a traceback with these frames, outermost first; they have no variables."""
    made = None
    for record in reversed(frames):
        # Not -1, the instruction before the first: IPython would search for it for ever.
        made = TracebackType(made, _make_frame(*record), 2, record[2])
    return made


def _make_frame(filename: str, function: str, line: int, first: int, module: str) -> FrameType:
    """Return a frame at a line, from code that is made to raise there.

    jinja2 shows the lines of templates in this way. tblib does so, too, but its code has column
    numbers, and Python would underline these columns in lines that have other code.
    """
    code = compile("raise StopIteration", filename, "exec")
    table = _locations(len(code.co_code) // 2, line - first)
    code = code.replace(co_name=function, co_qualname=function)
    code = code.replace(co_firstlineno=first, co_linetable=table)
    try:
        exec(code, {"__name__": module, "__file__": filename})  # noqa: S102 - it is our own code
    except StopIteration as error:
        trace = error.__traceback__
    assert trace is not None  # noqa: S101 - it was raised two lines up
    assert trace.tb_next is not None  # noqa: S101
    return trace.tb_next.tb_frame


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
