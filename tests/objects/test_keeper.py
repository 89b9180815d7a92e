"""What a client keeps of large values: each content once, whatever it looks like."""

from __future__ import annotations

import pytest

from nbstreamq.objects.large_values import SAMPLE_BYTES, SAMPLES, ValueStore


@pytest.fixture
def keeper(place):
    return ValueStore("s", place)


def value(size, **changes):
    data = bytearray(size)
    for at, byte in changes.items():
        data[int(at.removeprefix("at"))] = byte
    return memoryview(data)


@pytest.mark.parametrize("size", [1, SAMPLE_BYTES, 3 * SAMPLES * SAMPLE_BYTES + 7])
def test_a_content_is_written_once(keeper, place, size):
    first, again = keeper.keep(value(size)), keeper.keep(value(size))
    assert again is first
    assert place.n_written == 1


def test_the_same_samples_are_not_the_same_content(keeper, place):
    size, between = 3 * SAMPLES * SAMPLE_BYTES, SAMPLE_BYTES + 1
    kept = [keeper.keep(value(size, **{f"at{between}": byte})) for byte in (1, 2, 1, 2)]
    assert kept[0].digest == kept[2].digest != kept[1].digest
    assert [place.values[blob.handle[0]][between] for blob in kept] == [1, 2, 1, 2]
    assert place.n_written == 2
    del kept[0], kept[1]  # the first content
    assert keeper.keep(value(size, **{f"at{between}": 2})) is kept[0]


def test_zeros_of_another_length_are_another_content(keeper):
    assert keeper.keep(value(SAMPLE_BYTES)) is not keeper.keep(value(SAMPLE_BYTES + 1))


def test_what_nobody_holds_is_freed_and_the_rest_at_the_end(keeper, place):
    size, between = 3 * SAMPLES * SAMPLE_BYTES, SAMPLE_BYTES + 1
    alike = [keeper.keep(value(size, **{f"at{between}": byte})) for byte in (1, 2)]
    assert len(place.values) == 2
    alike.pop(0)
    assert list(place.values) == ["2"]
    keeper.close()
    assert not place.values
