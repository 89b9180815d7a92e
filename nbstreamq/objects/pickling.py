"""Values <-> bytes: plain pickle where that is safe, cloudpickle for the rest."""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, NamedTuple

from ..errors import NotPicklable
from .large_values import Blobs

#: Nothing of these types can hold a function or class of `__main__`.
SIMPLE = frozenset({int, float, str, bytes, bool, type(None), complex})
_NESTED = frozenset({tuple, list})

_plain_dumps = pickle.dumps


def dump(
    value: object,
    what: str,
    blobs: Blobs | None = None,
    *,
    large: int | None = None,
    first: int = 0,
    generators: list[Any] | None = None,
    maps: bool = True,
) -> bytes:
    """Return `value` as bytes; with `blobs`, as a parcel if something large was laid there.

    Parameters
    ----------
    value
        Anything; functions and classes that a worker can't import go by value.
    what
        What `value` is, for the message of an error: ``an argument of fib()``.
    blobs
        Where large parts are to lie; None: all in one, to be kept longer than anybody here lives.
    large
        From how many bytes on the pickle itself lies there; None: as `blobs` has it.
    first
        The number, for the message of an error, of the first element of a list.
    generators
        Gets the random number generators that are copied.
    maps
        Send an array that maps a file as that file. A result is sent as a copy: the file may be on
        another machine, or gone with the task.

    Raises
    ------
    NotPicklable
        It can't travel; the message says which part of it, and why.
    NoRoom
        There is no room for its large parts.
    """
    kind = type(value)
    if kind in SIMPLE or ((kind is tuple or kind is list) and _is_plain(value)):
        data = _plain_dumps(value, 5)
        if blobs is None or len(data) < (blobs.large if large is None else large):
            return data
        return blobs.pack(data, (), what, large=large)
    from .functions import ShellLine
    from .pickler import pickled

    try:
        pickler = pickled(value, apart=None if blobs is None else blobs.large, maps=maps)
    except MemoryError:
        raise
    except ShellLine as error:
        raise error.with_traceback(None) from None  # the frames of pickle tell nobody anything
    except Exception as error:  # noqa: BLE001 - its text is in ours
        from .pickle_errors import explain

        raise NotPicklable(explain(value, error, what, first)) from None
    if generators is not None:
        generators += pickler.generators
    return pickler.message(blobs, what, large)


def all_simple(values: Sequence[Any]) -> bool:
    """Tell whether values are of simple types, or lists and tuples of such."""
    kinds = set(map(type, values))
    if kinds <= SIMPLE:
        return True
    nested = values if kinds <= _NESTED else [v for v in values if type(v) in _NESTED]
    flat = chain.from_iterable(nested)
    return kinds <= SIMPLE | _NESTED and SIMPLE.issuperset(map(type, flat))


def _is_plain(items: Any) -> bool:
    """Tell whether a list or tuple holds simple values only, or is the (args, kwargs) of a call."""
    if SIMPLE.issuperset(map(type, items)):
        return True
    if len(items) != 2:
        return False
    args, kwargs = items
    return (
        type(args) is tuple
        and type(kwargs) is dict
        and SIMPLE.issuperset(map(type, args))
        and SIMPLE.issuperset(map(type, kwargs.values()))
        and SIMPLE.issuperset(map(type, kwargs))
    )


def load(data: bytes) -> Any:
    """Return the value that `dump` wrote."""
    return pickle.loads(data)


class BatchPickle(NamedTuple):
    """How many values were pickled, and where the parts of a row end: their classes, and each."""

    n: int
    data: bytes
    ends: list[int]


def dump_batch(values: Sequence[Any], blobs: Blobs | None) -> BatchPickle | None:
    """Return `values` pickled; None if some must be pickled alone.

    Those are what can't be pickled, has large parts, or refers to values elsewhere.
    """
    kinds = set(map(type, values))
    try:
        if {str(kind.__module__).partition(".")[0] for kind in kinds} <= {"builtins", "numpy"}:
            data, _, is_harmless = _dump([list(values)], blobs)
            if is_harmless or not data:
                return BatchPickle(len(values), data, []) if data else None
        # The classes first: they shall not be a part of the first value that has one.
        data, ends, _ = _dump([tuple(kinds), *values], blobs)
    except BaseException:  # noqa: BLE001 - a class's own code runs here; alone each shows what is wrong
        return None
    return BatchPickle(len(values), data, ends) if data else None


def _dump(parts: Sequence[Any], blobs: Blobs | None) -> tuple[bytes, list[int], bool]:
    """Return parts in a row, where each ends, and if that is harmless; nothing if it is large."""
    from .pickler import Pickler  # needs cloudpickle: slow to import

    file, ends = io.BytesIO(), []
    pickler = Pickler(file, apart=None if blobs is None else blobs.large)
    for part in parts:
        pickle.Pickler.dump(pickler, part)  # cloudpickle's only has other words for errors
        if pickler.buffers or pickler.held:
            return b"", [], False
        ends.append(file.tell())
    return file.getvalue(), ends, pickler.is_harmless


@contextmanager
def no_garbage() -> Iterator[None]:
    """Look for no garbage: for who makes many objects, all wanted, that takes half of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def load_batch(values: BatchPickle, failed: dict[int, BaseException]) -> list[Any]:
    """Return the values; None for those that can't be had, of which `failed` then has the error."""
    n, data, ends = values
    unpickler = pickle.Unpickler(io.BytesIO(data))
    try:
        with no_garbage():
            if not ends:
                return list(unpickler.load())
            return [unpickler.load() for _ in ends][1:]
    except BaseException as error:  # noqa: BLE001 - as above
        if ends and type(error) is not KeyboardInterrupt:
            return _load_each([data[a:b] for a, b in pairwise([0, *ends])], failed)
        failed |= dict.fromkeys(range(n), error)
        return [None] * n


def _load_each(parts: list[bytes], failed: dict[int, BaseException]) -> list[Any]:
    """Load the values of a row, of which some can't be had."""
    found, memo = [], _Memo()
    for k, part in enumerate(parts, -1):
        # The usual one, in Python: its memo can be mended.
        unpickler: Any = pickle._Unpickler(io.BytesIO(part))  # noqa: SLF001
        unpickler.memo, first = memo, len(memo)
        try:
            found.append(unpickler.load())
        except BaseException as error:  # noqa: BLE001 - as above
            failed[k] = error.args[0] if type(error) is _LostError else error
            found.append(None)
            _mend(unpickler, part, first, failed[k])
    failed.pop(-1, None)  # the classes: who needs one fails, too
    return found[1:]


def _mend(unpickler: Any, part: bytes, first: int, error: BaseException) -> None:
    """Have in the memo what a failed part should have written there, from number `first` on.

    That is names, which instances of a class share. All else may be half made, and is lost.
    """
    memo, number, is_name = unpickler.memo, first, False
    pushed: list[Any] = []
    for what, argument, _ in pickletools.genops(part):
        if what.name == "MEMOIZE":
            memo[number] = pushed[-1] if is_name else _LostError(error)
            number += 1
            continue
        is_name = isinstance(argument, str | bytes) or what.name == "STACK_GLOBAL"
        if what.name == "STACK_GLOBAL":
            pushed.append(_find(unpickler, *pushed[-2:]))
        elif is_name or what.name in {"BINGET", "LONG_BINGET"}:
            pushed.append(argument if is_name else memo.get(argument))


def _find(unpickler: Any, module: str, name: str) -> Any:
    try:
        return unpickler.find_class(module, name)
    except BaseException as error:  # noqa: BLE001 - an import runs anything
        return _LostError(error)


class _LostError(Exception):
    """Stands in a memo for what could not be made, and is raised where that is referred to."""


class _Memo(dict[int, Any]):
    def __getitem__(self, number: int) -> Any:
        found = super().__getitem__(number)
        if type(found) is _LostError:
            raise found
        return found
