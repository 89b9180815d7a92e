"""Item ranges: sets of item numbers, written as ``0:10,12:13``."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.wire.item_ranges import (
    ONE,
    format_ranges,
    items,
    parse_ranges,
    ranges_of,
    size,
    split,
)

numbers = st.sets(st.integers(0, 60)) | st.sets(st.integers(0, 2**40))


@given(numbers)
def test_a_span_holds_just_the_items_it_was_made_of(wanted):
    span = ranges_of(sorted(wanted))
    assert list(items(span)) == sorted(wanted)
    assert size(span) == len(wanted)


@given(numbers)
def test_a_span_is_written_and_read_back(wanted):
    span = ranges_of(sorted(wanted))
    assert parse_ranges(format_ranges(span)) == span


@given(numbers)
def test_a_span_has_as_few_ranges_as_possible(wanted):
    span = ranges_of(sorted(wanted))
    assert all(a.stop < b.start for a, b in pairwise(span))


@given(numbers, st.integers(-3, 70))
def test_split_parts_a_span_after_so_many_items(wanted, n_first):
    ordered = sorted(wanted)
    first, rest = split(ranges_of(ordered), n_first)
    n = max(0, n_first)
    assert (list(items(first)), list(items(rest))) == (ordered[:n], ordered[n:])


def test_the_span_of_a_single_call_is_shared():
    assert parse_ranges("0:1") is ONE


def test_an_empty_text_is_the_empty_span():
    assert parse_ranges("") == ()
    assert format_ranges(()) == ""


@pytest.mark.parametrize(
    "text", ["5:5", "3:1", "0:2,1:3", "4:5,0:1", "-1:3", "1", "a:b", "0:1,", ",", "1.5:2", ":"]
)
def test_what_is_not_sorted_disjoint_ranges_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_ranges(text)
