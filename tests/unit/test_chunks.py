"""How the items of a map are cut into chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.client.submit import MAX_BYTES, MAX_ITEMS, ChunkSizer, chunks

sizes = st.integers(0, 500)


@given(sizes, st.integers(1, 64), st.sampled_from([list, tuple, iter]))
def test_all_items_come_once_and_in_order(n, n_workers, kind):
    found = list(chunks(kind(range(n)), ChunkSizer(n, n_workers)))
    assert list(itertools.chain(*found)) == list(range(n))
    assert all(found)


@given(sizes, st.integers(1, 50))
def test_a_fixed_size_is_kept(n, size):
    sizer = ChunkSizer.fixed(size, 2)
    for chunk in chunks(range(n), sizer):
        assert len(chunk) == size or chunk[-1] == n - 1
        sizer.sent(len(chunk), 10 * MAX_BYTES)


@given(st.integers(1, 10**7), st.integers(0, 100))
def test_every_worker_gets_a_chunk_and_none_a_huge_one(n, n_workers):
    size = ChunkSizer(n, n_workers).size
    assert 1 <= size <= MAX_ITEMS
    assert size == 1 or -(-n // size) >= n_workers


@pytest.mark.parametrize("items", [[], (), range(0), iter(())])
def test_nothing_makes_no_chunk(items):
    assert list(chunks(items, ChunkSizer(0, 4))) == []


def test_chunks_of_unknown_number_grow():
    sizer = ChunkSizer(None, 1)
    found = []
    for chunk in chunks(iter(range(10_000)), sizer):
        found.append(len(chunk))
        sizer.sent(len(chunk), len(chunk))
    assert found[0] == 1
    assert max(found) > 16
    assert sum(found) == 10_000


def cut(sizer, n):
    found = []
    for chunk in chunks(range(n), sizer):
        found.append(len(chunk))
        sizer.sent(len(chunk), len(chunk))
    return found


@given(st.integers(1, 10**5), st.integers(1, 64), st.floats(1e-8, 10))
def test_what_is_known_of_durations_loses_no_item(n, n_workers, seconds):
    sizer = ChunkSizer(n, n_workers)
    sizer.took(seconds, 1)
    assert sum(cut(sizer, n)) == n


def test_the_first_chunks_are_single_items_and_the_last_are_small():
    found = cut(ChunkSizer(1000, 2), 1000)
    assert found[:8] == [1, 1, 1, 1, 32, 32, 50, 50]
    assert max(found) == 50
    assert sorted(found[6:], reverse=True) == found[6:]
    assert found[-2:] <= [6, 6]
    assert len(found) < 35


def test_each_worker_gets_its_first_chunk_by_itself_unless_that_takes_long(monkeypatch):
    monkeypatch.setattr("nbstreamq.client.submit.HURRY", 10.0)
    for sizer in (ChunkSizer(1000, 3), ChunkSizer(None, 3), ChunkSizer.fixed(7, 3)):
        found = []
        for _ in range(5):
            found.append(sizer.immediate)
            sizer.sent(7, 7)
        assert found == [True, True, True, False, False]
    monkeypatch.setattr("nbstreamq.client.submit.HURRY", -1.0)
    sizer = ChunkSizer(1000, 3)
    assert sizer.immediate
    sizer.sent(7, 7)
    assert not sizer.immediate


def test_what_is_found_to_be_short_comes_in_large_chunks():
    sizer = ChunkSizer(100_000, 2)
    sizer.took(0.001, 5000)
    sizer.sent(1, 1)
    rest = cut(sizer, 99_999)
    assert rest[0] == 10_000
    assert rest[-2] >= 2500  # a quarter of what is worth a message
    assert len(rest) < 20


def test_what_is_found_to_be_long_comes_as_if_nothing_were_known():
    sizer = ChunkSizer(1000, 2)
    sizer.took(10.0, 1)
    assert cut(sizer, 1000) == cut(ChunkSizer(1000, 2), 1000)


def test_large_items_make_small_chunks():
    sizer = ChunkSizer(1_000_000, 1)
    for _ in range(10):
        sizer.sent(1, 1)
    assert sizer.size == MAX_ITEMS
    sizer.sent(MAX_ITEMS, 100 * MAX_BYTES)
    assert sizer.size == MAX_ITEMS // 100
    sizer.sent(1, 10 * MAX_BYTES)
    assert sizer.size == 1


def test_short_work_on_large_items_makes_no_large_chunk():
    sizer = ChunkSizer(None, 2)
    sizer.took(5e-6, 1)
    sizer.sent(1, MAX_BYTES // 2)
    assert sizer.size == 2


def test_large_items_of_unknown_number_stop_the_growth():
    sizer = ChunkSizer(None, 1)
    for _ in range(1000):
        sizer.sent(1, 2 * MAX_BYTES)
    assert sizer.size == 1


def test_items_are_taken_no_earlier_than_their_chunk():
    taken = []
    found = chunks((taken.append(i) or i for i in range(10)), ChunkSizer.fixed(4, 2))
    assert next(found) == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]


def test_an_item_does_not_wait_long_for_slow_others():
    def slowly():
        import time

        for i in range(3):
            time.sleep(0.03)  # longer than a chunk waits to be filled
            yield i

    assert list(chunks(slowly(), ChunkSizer.fixed(100, 2))) == [[0], [1], [2]]


def test_an_error_of_the_items_comes_through():
    def failing():
        yield 1
        raise LookupError

    found = chunks(failing(), ChunkSizer.fixed(1, 2))
    assert next(found) == [1]
    with pytest.raises(LookupError):
        next(found)
