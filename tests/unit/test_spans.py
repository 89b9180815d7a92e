"""Spans are sets of item numbers, written as ranges."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.protocol.spans import ONE, format_span, items, parse_span, size, span_of, split

numbers = st.sets(st.integers(0, 60)) | st.sets(st.integers(0, 2**40))


@given(numbers)
def test_a_span_holds_just_the_items_it_was_made_of(wanted):
    span = span_of(sorted(wanted))
    assert list(items(span)) == sorted(wanted)
    assert size(span) == len(wanted)


@given(numbers)
def test_a_span_is_written_and_read_back(wanted):
    span = span_of(sorted(wanted))
    assert parse_span(format_span(span)) == span


@given(numbers)
def test_a_span_has_as_few_ranges_as_possible(wanted):
    span = span_of(sorted(wanted))
    assert all(a.stop < b.start for a, b in pairwise(span))


@given(numbers, st.integers(-3, 70))
def test_split_parts_a_span_after_so_many_items(wanted, n_first):
    ordered = sorted(wanted)
    first, rest = split(span_of(ordered), n_first)
    n = max(0, n_first)
    assert (list(items(first)), list(items(rest))) == (ordered[:n], ordered[n:])


def test_the_span_of_a_single_call_is_shared():
    assert parse_span("0:1") is ONE


def test_an_empty_text_is_the_empty_span():
    assert parse_span("") == ()
    assert format_span(()) == ""


@pytest.mark.parametrize(
    "text", ["5:5", "3:1", "0:2,1:3", "4:5,0:1", "-1:3", "1", "a:b", "0:1,", ",", "1.5:2", ":"]
)
def test_what_is_not_sorted_disjoint_ranges_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_span(text)
