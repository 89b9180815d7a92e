"""Values <-> bytes: plain pickle where that is surely right, cloudpickle for the rest."""

from __future__ import annotations

import pickle
from typing import Any

from ..errors import NotPicklable

__all__ = ["SIMPLE", "dump", "load"]

#: Nothing of these types can hold a function or class of `__main__`.
SIMPLE = frozenset({int, float, str, bytes, bool, type(None), complex})

_plain_dumps = pickle.dumps


def dump(value: object, what: str, first: int = 0) -> bytes:
    """Return `value` as bytes.

    Parameters
    ----------
    value
        Anything; functions and classes that a worker can't import go by value.
    what
        What `value` is, for the message of an error: ``an argument of fib()``.
    first
        The number, for that message, of the first element of a list.

    Raises
    ------
    NotPicklable
        It can't travel; the message says which part of it, and why.
    """
    kind = type(value)
    if kind in SIMPLE or ((kind is tuple or kind is list) and _is_plain(value)):
        return _plain_dumps(value, 5)
    from .pickler import to_bytes

    try:
        return to_bytes(value)[0]
    except MemoryError:
        raise
    except Exception as error:
        from .diagnosis import explain

        raise NotPicklable(explain(value, error, what, first)) from error


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
