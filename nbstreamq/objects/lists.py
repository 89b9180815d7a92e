"""Many values as one pickled list, of which the others can be had if some can't be unpickled."""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .blobs import Blobs

__all__ = ["dump_list", "load_list", "load_much"]

#: Bytes of a pickle that may make many objects.
MUCH = 2**14


def dump_list(values: Sequence[Any], blobs: Blobs | None) -> bytes | None:
    """Return `values` as a pickled list; None if some must be pickled alone.

    Those are what can't be pickled, has large parts, or refers to values elsewhere.
    """
    from .pickler import Pickler  # needs cloudpickle: slow to import

    file = io.BytesIO()
    pickler = Pickler(file, apart=None if blobs is None else blobs.large)
    try:
        pickler.dump(list(values))
    except BaseException:  # noqa: BLE001 - a class's own code runs here; alone each shows what is wrong
        return None
    return None if pickler.buffers or pickler.held else file.getvalue()


def load_list(data: bytes, failed: dict[int, BaseException]) -> list[Any]:
    """Return the values; None for those that can't be had, of which `failed` then has the error."""
    try:
        values: list[Any] = load_much(data)
    except BaseException:  # noqa: BLE001 - as above
        return _load_each(_split(data), failed)
    return values


def load_much(data: bytes) -> Any:
    """Return what may be many objects, all of them wanted: no garbage is looked for meanwhile.

    For dicts and instances that takes half as long.
    """
    if len(data) < MUCH or not gc.isenabled():
        return pickle.loads(data)
    gc.disable()
    try:
        return pickle.loads(data)
    finally:
        gc.enable()


def _split(data: bytes) -> list[bytes]:
    """Return a pickled list's elements, each as a pickle that needs the memo of those before it.

    An element begins with the last operation that finds only what belongs to those before it on the
    stack. The list itself, the first in the memo, is left out.
    """
    elements: list[bytes] = []
    code: list[bytes] = []
    height, marks, firsts = 0, list[int](), dict[int, int]()
    operations = [*pickletools.genops(data)]
    ends = [at for _, _, at in operations[1:]] + [len(data)]
    for (what, _, at), end in zip(operations, ends, strict=True):
        found, needs = height, what.stack_before
        if pickletools.markobject in needs:
            height = marks.pop()
            needs = needs[: needs.index(pickletools.markobject)]
        elif what.name == "MARK":
            marks.append(height)
        height += len(what.stack_after) - len(needs)
        if what.name in {"APPEND", "APPENDS"} and height == 1 and not marks:
            lowest = 1 if what.name == "APPEND" else 2  # there is a mark below
            begins = [firsts[k] for k in range(lowest, found)] + [len(code)]
            elements += [b"".join(code[a:b]) + pickle.STOP for a, b in pairwise(begins)]
            code, firsts = [], {}
        elif what.name not in {"PROTO", "FRAME"}:
            firsts[found] = len(code)
            code.append(data[at:end])
    return elements


def _load_each(elements: list[bytes], failed: dict[int, BaseException]) -> list[Any]:
    """Load elements; what refers to a part of one that can't be loaded can't be, either."""
    values, memo = [], _Memo({0: None})
    for k, element in enumerate(elements):
        # The usual one, in Python: its memo can be mended.
        unpickler: Any = pickle._Unpickler(io.BytesIO(element))  # noqa: SLF001
        unpickler.memo, first = memo, len(memo)
        try:
            values.append(unpickler.load())
        except BaseException as error:  # noqa: BLE001 - as above
            failed[k] = error
            values.append(None)
            _mend(unpickler, element, first, error)
    return values


def _mend(unpickler: Any, element: bytes, first: int, error: BaseException) -> None:
    """Have in the memo what a failed element should have written there, from number `first` on.

    Names, which instances of a class share, and what was complete; the rest is missing.
    """
    memo, number, is_name = unpickler.memo, first, False
    unfinished = {id(one) for stack in (*unpickler.metastack, unpickler.stack) for one in stack}
    pushed: list[Any] = []
    for what, argument, _ in pickletools.genops(element):
        if what.name == "MEMOIZE":
            if is_name:
                memo[number] = pushed[-1]
            elif number not in memo or id(memo.get(number)) in unfinished:
                memo[number] = _Missing(error)
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
        return _Missing(error)


class _Missing:
    """Stands in a memo for what could not be made."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Memo(dict[int, Any]):
    def __getitem__(self, number: int) -> Any:
        found = super().__getitem__(number)
        if isinstance(found, _Missing):
            raise found.error
        return found
