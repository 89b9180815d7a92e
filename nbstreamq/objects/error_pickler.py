"""The pickler of exceptions: adds their traceback, causes and notes, without any global registry.

Imported late, since cloudpickle is slow to import.
"""

from __future__ import annotations

from types import FrameType, TracebackType
from typing import Any

from .pickler import Pickler

__all__ = ["ErrorPickler"]

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a `class` statement

#: One frame: file, function, line, first line of the function, `__name__` of its globals.
_FrameRecord = tuple[str, str, int, int, str]


class ErrorPickler(Pickler):
    """Pickles exceptions so that they are raised as themselves on the other side.

    Parameters
    ----------
    own_folder
        Frames of files below it are dropped from the top of tracebacks.
    """

    def __init__(self, file: Any, *, own_folder: str, lenient: bool = False) -> None:
        super().__init__(file, lenient=lenient)
        self._own_folder = own_folder

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            return _reduce_error(obj)
        if isinstance(obj, TracebackType):
            return make_traceback, (_frames_of(obj, self._own_folder),)
        return super().reducer_override(obj)


def _reduce_error(error: BaseException) -> Any:
    cls = type(error)
    if _reduces_as_builtin(cls):
        _, args, *rest = _reduced(error.__reduce__())
        state = _extend(rest[0] if rest else None, error)
        make: Any = make_error
        made_of: Any = (cls, args, error.args)
    else:
        make, made_of, *rest = _reduced(error.__reduce_ex__(5))
        state = rest[0] if rest else None
    chain = (
        error.__traceback__,
        error.__cause__,
        error.__context__,
        error.__suppress_context__,
        getattr(error, "__notes__", None),
    )
    return make, made_of, (state, chain), None, None, set_error_state


def _reduced(reduced: str | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(reduced, str):
        raise TypeError(f"its __reduce__ names a global, {reduced!r}, not an exception")
    return reduced


def _reduces_as_builtin(cls: type) -> bool:
    """Tell whether `cls` leaves pickling to Exception: it makes no use of its own __init__."""
    for name in ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if owner is not None and owner.__flags__ & _HEAP_TYPE:
            return False
    return True


def _extend(state: Any, error: BaseException) -> Any:
    """Add to `state` the name that Python 3.11 doesn't pickle, and it suggests names by."""
    if isinstance(error, NameError | AttributeError) and (state is None or type(state) is dict):
        return {**(state or {}), "name": error.name}
    return state


def make_error(cls: type[BaseException], args: tuple[Any, ...], final: tuple[Any, ...]) -> Any:
    """Return an exception like one made with other arguments than its ``.args``.

    Its own __init__ is not called: it may want other arguments, or decorate them once more.
    """
    static = [c for c in cls.__mro__ if not c.__flags__ & _HEAP_TYPE]
    base = max(static, key=lambda c: c.__basicsize__)
    try:
        error = base.__new__(cls, *args)
    except TypeError:  # MemoryError makes only those that have it as their first base
        error = BaseException.__new__(cls, *args)
    base.__init__(error, *args)  # type: ignore[misc]  # of the class that made it, two lines up
    if error.args != final:
        error.args = final
    return error


def set_error_state(error: BaseException, state: tuple[Any, tuple[Any, ...]]) -> None:
    """Give `error` its attributes, and what pickle would drop."""
    own, (trace, cause, context, suppress, notes) = state
    if own is not None:
        error.__setstate__(own)
    if notes is not None:
        error.__notes__ = list(notes)
    error.__cause__ = cause
    error.__context__ = context
    error.__suppress_context__ = suppress
    error.__traceback__ = trace


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
        # Not the instruction before the first, -1: IPython would look for it without end.
        made = TracebackType(made, _make_frame(*record), 2, record[2])
    return made


def _make_frame(filename: str, function: str, line: int, first: int, module: str) -> FrameType:
    """Return a frame that was in that line: of code which is made for it, and raises there.

    Source: the way in which jinja2 shows the lines of templates; tblib does the same, but gives the
    code columns of its own, which would be underlined in lines that they have nothing to do with.
    """
    code = compile("raise StopIteration", filename, "exec")
    table = _locations(len(code.co_code) // 2, line - first)
    code = code.replace(co_name=function, co_qualname=function)
    code = code.replace(co_firstlineno=first, co_linetable=table)
    try:
        exec(code, {"__name__": module, "__file__": filename})  # noqa: S102 - it is ours
    except StopIteration as error:
        trace = error.__traceback__
    assert trace is not None  # noqa: S101 - it was raised two lines up
    assert trace.tb_next is not None  # noqa: S101
    return trace.tb_next.tb_frame


def _locations(n_instructions: int, offset: int) -> bytes:
    """Return a location table: all instructions so many lines below the first, in no column.

    Source: "The locations table" in CPython's InternalDocs/code_objects.md; 13 is the kind without
    columns.
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
