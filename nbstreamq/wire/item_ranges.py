"""Which items of a chunk: sorted, disjoint ranges, written as ``0:10,12:13``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

ItemRanges = tuple[range, ...]

#: The span of nearly all messages: a call on its own.
ONE: ItemRanges = (range(1),)
#: Every item that any job can have.
EVERYTHING: ItemRanges = (range(2**53),)


def parse_ranges(text: str) -> ItemRanges:
    """Return the span that `text` writes; ValueError if it is not sorted, disjoint ranges."""
    if text == "0:1":
        return ONE
    span: list[range] = []
    end = 0
    for part in text.split(",") if text else ():
        start, _, stop = part.partition(":")
        span.append(range(int(start), int(stop)))
        if not end <= span[-1].start < span[-1].stop:
            raise ValueError(f"not a span: {text[:80]!r}")
        end = span[-1].stop
    return tuple(span)


def read_ranges(text: bytes) -> ItemRanges:
    """Return the span in an unsigned text; empty if it is malformed."""
    try:
        return parse_ranges(text.decode())
    except ValueError:
        return ()


def format_ranges(span: ItemRanges) -> str:
    """Return `span` as text, for `parse_ranges`."""
    if span is ONE:
        return "0:1"
    return ",".join(f"{r.start}:{r.stop}" for r in span)


def ranges_of(indices: Iterable[int]) -> ItemRanges:
    """Return the span of ascending `indices`.

    Examples
    --------
    >>> format_ranges(ranges_of([0, 1, 2, 7]))
    '0:3,7:8'
    """
    chosen = list(indices)
    if chosen == [0]:
        return ONE
    if chosen and chosen[-1] - chosen[0] == len(chosen) - 1:
        return (range(chosen[0], chosen[-1] + 1),)
    runs: list[range] = []
    for i in chosen:
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return tuple(runs)


def items(span: Iterable[range]) -> Iterator[int]:
    """Return the items of `span`, in order."""
    return chain.from_iterable(span)


def size(span: Iterable[range]) -> int:
    return sum(map(len, span))


def split(span: ItemRanges, n_first: int) -> tuple[ItemRanges, ItemRanges]:
    """Return the first `n_first` items of `span`, and the others."""
    first: list[range] = []
    rest: list[range] = []
    for r in span:
        take = min(len(r), max(0, n_first))
        n_first -= take
        if take:
            first.append(r[:take])
        if take < len(r):
            rest.append(r[take:])
    return tuple(first), tuple(rest)
