"""Values <-> bytes: plain pickle where that is surely right, cloudpickle for the rest."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..errors import NotPicklable
from .blobs import Blobs

__all__ = ["SIMPLE", "all_simple", "dump", "load"]

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
    from .pickler import pickled
    from .shells import ShellLine

    try:
        pickler = pickled(value, apart=None if blobs is None else blobs.large, maps=maps)
    except MemoryError:
        raise
    except ShellLine as error:
        raise error.with_traceback(None) from None  # the frames of pickle tell nobody anything
    except Exception as error:  # noqa: BLE001 - its text is in ours
        from .diagnosis import explain

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
