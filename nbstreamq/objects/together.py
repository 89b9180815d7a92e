"""Many values pickled together: as one list, or in a row if some might fail to be unpickled.

In a row each is a pickle of its own, which may refer to what those before it hold. So those that
can be had are had, but for what refers to a part of one that failed.
"""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from .blobs import Blobs

__all__ = ["Together", "dump_together", "load_together", "no_garbage"]


class Together(NamedTuple):
    """How many values were pickled, and where the parts of a row end: their classes, and each."""

    n: int
    data: bytes
    ends: list[int]


def dump_together(values: Sequence[Any], blobs: Blobs | None) -> Together | None:
    """Return `values` pickled; None if some must be pickled alone.

    Those are what can't be pickled, has large parts, or refers to values elsewhere.
    """
    kinds = set(map(type, values))
    try:
        if {str(kind.__module__).partition(".")[0] for kind in kinds} <= {"builtins", "numpy"}:
            data, _, is_harmless = _dump([list(values)], blobs)
            if is_harmless or not data:
                return Together(len(values), data, []) if data else None
        # The classes first: they shall not be a part of the first value that has one.
        data, ends, _ = _dump([tuple(kinds), *values], blobs)
    except BaseException:  # noqa: BLE001 - a class's own code runs here; alone each shows what is wrong
        return None
    return Together(len(values), data, ends) if data else None


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


def load_together(values: Together, failed: dict[int, BaseException]) -> list[Any]:
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
