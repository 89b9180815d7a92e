"""Values <-> bytes: plain pickle where that is safe, cloudpickle for the rest."""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import NotPicklable
from .large_values import ValueWriter

if TYPE_CHECKING:
    from .pickler import Pickler

#: Nothing of these types can hold a function or class of `__main__`.
PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex})
_PLAIN_OR_NESTED = PLAIN | {tuple, list}

_plain_dumps = pickle.dumps

#: Returns the value that `dump`, or `dump_plain_call`, wrote.
load: Callable[[bytes], Any] = pickle.loads


def dump_plain_call(args: tuple[Any, ...], kwargs: dict[str, Any], below: int) -> bytes | None:
    """Return what ``dump((args, kwargs), ...)`` returns, if all are plain values; else None.

    Parameters
    ----------
    below
        Bytes that the pickle must stay below.
    """
    if not PLAIN.issuperset(map(type, args)) or (kwargs and not _are_plain(kwargs)):
        return None
    data = _plain_dumps((args, kwargs), 5)
    return data if len(data) < below else None


def _are_plain(kwargs: dict[str, Any]) -> bool:
    return PLAIN.issuperset(map(type, kwargs.values())) and PLAIN.issuperset(map(type, kwargs))


def dump(
    value: Any,
    what: str,
    writer: ValueWriter | None = None,
    *,
    min_external_bytes: int | None = None,
    first: int = 0,
    generators: list[Any] | None = None,
    maps: bool = True,
) -> bytes:
    """Return `value` as bytes; large parts of it go to `writer`, and the bytes refer to them.

    Parameters
    ----------
    value
        Anything; functions and classes that a worker can't import are pickled by value.
    what
        What `value` is, for the message of an error: ``an argument of fib()``.
    writer
        Where large parts go; None: all is in the bytes, which may outlive this process.
    min_external_bytes
        Bytes from which the pickle itself goes there; None: as `writer` says.
    first
        The number of the first element, if `value` is a list, for the message of an error.
    generators
        Gets the random number generators that are copied.
    maps
        Send an array that maps a file as that file. A result is sent as a copy: the file may be on
        another machine, or be deleted when the task ends.

    Raises
    ------
    NotPicklable
        It can't be pickled; the message says which part of it, and why.
    NoRoom
        There is no room for its large parts.
    """
    kind = type(value)
    if kind in PLAIN or (kind in _PLAIN_OR_NESTED and PLAIN.issuperset(map(type, value))):
        data = _plain_dumps(value, 5)
        if writer is None:
            return data
        return writer.pack(data, (), what, min_external_bytes=min_external_bytes)
    pickler = pickle_or_explain(value, what, writer, first=first, maps=maps)
    if generators is not None:
        generators += pickler.generators
    return pickler.message(writer, what, min_external_bytes)


def pickle_or_explain(
    value: Any, what: str, writer: ValueWriter | None, *, first: int = 0, maps: bool = True
) -> Pickler:
    """Return a pickler that has pickled `value`; the parameters and errors are those of `dump`."""
    from .pickler import pickled  # slow to import
    from .shell_lines import ShellLine

    least = None if writer is None else writer.min_external_bytes
    try:
        return pickled(value, min_external_bytes=least, maps=maps)
    except MemoryError:
        raise
    except ShellLine as error:
        raise error.with_traceback(None) from None  # the frames of pickle tell nobody anything
    except Exception as error:  # noqa: BLE001 - its text is in ours
        from .pickle_errors import explain

        raise NotPicklable(explain(value, error, what, first)) from None


def are_lists_of_plain(values: Sequence[Any]) -> bool:
    """Tell whether values are plain, or lists and tuples of plain values."""
    if not _PLAIN_OR_NESTED.issuperset(map(type, values)):
        return False
    nested = (v for v in values if type(v) is tuple or type(v) is list)
    return PLAIN.issuperset(map(type, chain.from_iterable(nested)))


@contextmanager
def no_garbage() -> Iterator[None]:
    """Disable the garbage collector: while many live objects are made it takes half of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# -- many values in one pickle -----------------------------------------------------------------
#
# Values that run no code of their own when they are unpickled are one pickle of a list. Others are
# a row of pickles that share one memo: what they have in common, such as a class of a notebook, is
# there once. If one of them can't be unpickled, those after it refer to parts of it, so these are
# put into the memo by hand. To frame each value by itself instead, with a table of the classes
# beside them, would spare that; it was measured: results that share an object take six times the
# bytes and three times as long to load.


class BatchPickle(NamedTuple):
    """Values that were pickled together.

    Attributes
    ----------
    n
        How many there are.
    data
        A pickle of their list; or the pickles of a row: the first has their classes.
    ends
        Where each pickle of a row ends; empty: it is one list.
    """

    n: int
    data: bytes
    ends: list[int]


def dump_batch(values: Sequence[Any], writer: ValueWriter | None) -> BatchPickle | None:
    """Return `values` pickled; None if some must be pickled by themselves.

    Those are values that can't be pickled, have large parts, or refer to values elsewhere.
    """
    kinds = set(map(type, values))
    try:
        if {str(kind.__module__).partition(".")[0] for kind in kinds} <= {"builtins", "numpy"}:
            data, _, is_harmless = _dump_row([list(values)], writer)
            if is_harmless or not data:
                return BatchPickle(len(values), data, []) if data else None
        # The classes first: they must not be a part of the first value that has one.
        data, ends, _ = _dump_row([tuple(kinds), *values], writer)
    except BaseException:  # noqa: BLE001 - a class's own code runs here; by itself each shows its error
        return None
    return BatchPickle(len(values), data, ends) if data else None


def _dump_row(parts: Sequence[Any], writer: ValueWriter | None) -> tuple[bytes, list[int], bool]:
    """Return the pickles of `parts`, where each ends, and whether they run no code of their own.

    The first is empty if some part is large or refers to values elsewhere.
    """
    from .pickler import Pickler  # needs cloudpickle: slow to import

    file, ends = io.BytesIO(), []
    pickler = Pickler(
        file, min_external_bytes=None if writer is None else writer.min_external_bytes
    )
    for part in parts:
        pickle.Pickler.dump(pickler, part)  # cloudpickle's only has other words for errors
        if pickler.buffers or pickler.held:
            return b"", [], False
        ends.append(file.tell())
    return file.getvalue(), ends, pickler.is_harmless


def load_batch(batch: BatchPickle) -> tuple[list[Any], dict[int, BaseException]]:
    """Return the values, and position -> error of those that can't be unpickled, which are None."""
    unpickler = pickle.Unpickler(io.BytesIO(batch.data))
    try:
        with no_garbage():
            if not batch.ends:
                return list(unpickler.load()), {}
            return [unpickler.load() for _ in batch.ends][1:], {}
    except BaseException as error:  # noqa: BLE001 - as above
        if batch.ends and type(error) is not KeyboardInterrupt:
            return _load_each([batch.data[a:b] for a, b in pairwise([0, *batch.ends])])
        return [None] * batch.n, dict.fromkeys(range(batch.n), error)


def _load_each(parts: list[bytes]) -> tuple[list[Any], dict[int, BaseException]]:
    """Load the values of a row, some of which can't be unpickled."""
    found: list[Any] = []
    failed: dict[int, BaseException] = {}
    memo = _Memo()
    for k, part in enumerate(parts, -1):
        # The Python version of the unpickler: its memo can be written to.
        unpickler: Any = pickle._Unpickler(io.BytesIO(part))  # noqa: SLF001
        unpickler.memo, first = memo, len(memo)
        try:
            found.append(unpickler.load())
        except BaseException as error:  # noqa: BLE001 - as above
            failed[k] = error.args[0] if type(error) is _LostError else error
            found.append(None)
            _complete_memo(unpickler, part, first, failed[k])
    failed.pop(-1, None)  # the classes: a value that needs one fails, too
    return found[1:], failed


def _complete_memo(unpickler: Any, part: bytes, first: int, error: BaseException) -> None:
    """Write into the memo what a part that failed would have written there, from `first` on.

    That is strings and names, which the instances of a class share. All else is marked as lost: it
    may be half made.
    """
    memo, number, is_name = unpickler.memo, first, False
    pushed: list[Any] = []
    for step, argument, _ in pickletools.genops(part):
        if step.name == "MEMOIZE":
            memo[number] = pushed[-1] if is_name else _LostError(error)
            number += 1
            continue
        is_name = isinstance(argument, str | bytes) or step.name == "STACK_GLOBAL"
        if step.name == "STACK_GLOBAL":
            pushed.append(_find(unpickler, *pushed[-2:]))
        elif is_name or step.name in {"BINGET", "LONG_BINGET"}:
            pushed.append(argument if is_name else memo.get(argument))


def _find(unpickler: Any, module: str, name: str) -> Any:
    try:
        return unpickler.find_class(module, name)
    except BaseException as error:  # noqa: BLE001 - an import runs anything
        return _LostError(error)


class _LostError(Exception):
    """Takes the place in a memo of an object that could not be made; raised when it is used."""


class _Memo(dict[int, Any]):
    def __getitem__(self, number: int) -> Any:
        found = super().__getitem__(number)
        if type(found) is _LostError:
            raise found
        return found
