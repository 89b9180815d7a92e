"""The large values of a client: each content is written once."""

from __future__ import annotations

import pytest

from nbstreamq.objects.large_values import SAMPLE_BYTES, SAMPLES, ValueStore


@pytest.fixture
def store(backend):
    return ValueStore("s", backend)


def value(size, **changes):
    data = bytearray(size)
    for at, byte in changes.items():
        data[int(at.removeprefix("at"))] = byte
    return memoryview(data)


@pytest.mark.parametrize("size", [1, SAMPLE_BYTES, 3 * SAMPLES * SAMPLE_BYTES + 7])
def test_a_content_is_written_once(store, backend, size):
    first, again = store.write(value(size)), store.write(value(size))
    assert again is first
    assert backend.n_written == 1


def test_the_same_samples_are_not_the_same_content(store, backend):
    size, between = 3 * SAMPLES * SAMPLE_BYTES, SAMPLE_BYTES + 1
    kept = [store.write(value(size, **{f"at{between}": byte})) for byte in (1, 2, 1, 2)]
    assert kept[0].digest == kept[2].digest != kept[1].digest
    assert [backend.values[one.address[0]][between] for one in kept] == [1, 2, 1, 2]
    assert backend.n_written == 2
    del kept[0], kept[1]  # the first content
    assert store.write(value(size, **{f"at{between}": 2})) is kept[0]


def test_zeros_of_another_length_are_another_content(store):
    assert store.write(value(SAMPLE_BYTES)) is not store.write(value(SAMPLE_BYTES + 1))


def test_a_value_is_freed_with_its_last_holder_and_the_rest_at_the_end(store, backend):
    size, between = 3 * SAMPLES * SAMPLE_BYTES, SAMPLE_BYTES + 1
    alike = [store.write(value(size, **{f"at{between}": byte})) for byte in (1, 2)]
    assert len(backend.values) == 2
    alike.pop(0)
    assert list(backend.values) == ["2"]
    store.close()
    assert not backend.values
