"""How the items of a map are cut into chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.client.chunks import MAX_BYTES, MAX_ITEMS, Pace, chunks

sizes = st.integers(0, 500)


@given(sizes, st.integers(1, 64), st.sampled_from([list, tuple, iter]))
def test_all_items_come_once_and_in_order(n, n_workers, kind):
    found = list(chunks(kind(range(n)), Pace(n, n_workers)))
    assert list(itertools.chain(*found)) == list(range(n))
    assert all(found)


@given(sizes, st.integers(1, 50))
def test_a_fixed_size_is_kept(n, size):
    pace = Pace.fixed(size)
    for chunk in chunks(range(n), pace):
        assert len(chunk) == size or chunk[-1] == n - 1
        pace.sent(len(chunk), 10 * MAX_BYTES)


@given(st.integers(1, 10**7), st.integers(0, 100))
def test_every_worker_gets_a_chunk_and_none_a_huge_one(n, n_workers):
    size = Pace(n, n_workers).size
    assert 1 <= size <= MAX_ITEMS
    assert size == 1 or -(-n // size) >= n_workers


@pytest.mark.parametrize("items", [[], (), range(0), iter(())], ids=repr)
def test_nothing_makes_no_chunk(items):
    assert list(chunks(items, Pace(0, 4))) == []


def test_chunks_of_unknown_number_grow():
    pace = Pace(None, 1)
    found = []
    for chunk in chunks(iter(range(10_000)), pace):
        found.append(len(chunk))
        pace.sent(len(chunk), len(chunk))
    assert found[0] == 1
    assert max(found) > 16
    assert sum(found) == 10_000


def test_large_items_make_small_chunks():
    pace = Pace(1_000_000, 1)
    assert pace.size == MAX_ITEMS
    pace.sent(MAX_ITEMS, 100 * MAX_BYTES)
    assert pace.size == MAX_ITEMS // 100
    pace.sent(1, 10 * MAX_BYTES)
    assert pace.size == 1


def test_large_items_of_unknown_number_stop_the_growth():
    pace = Pace(None, 1)
    for _ in range(1000):
        pace.sent(1, 2 * MAX_BYTES)
    assert pace.size == 1


def test_items_are_taken_no_earlier_than_their_chunk():
    taken = []
    found = chunks((taken.append(i) or i for i in range(10)), Pace.fixed(4))
    assert next(found) == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]


def test_an_item_does_not_wait_long_for_slow_others():
    def slowly():
        import time

        for i in range(3):
            time.sleep(0.03)  # longer than a chunk waits to be filled
            yield i

    assert list(chunks(slowly(), Pace.fixed(100))) == [[0], [1], [2]]


def test_an_error_of_the_items_comes_through():
    def failing():
        yield 1
        raise LookupError

    found = chunks(failing(), Pace.fixed(1))
    assert next(found) == [1]
    with pytest.raises(LookupError):
        next(found)
