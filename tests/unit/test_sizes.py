"""Sizes and durations as people read them."""

from __future__ import annotations

import pytest

from nbstreamq.sizes import duration, in_units, read_size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (3_456_789, "3.5 MB"),
        (250 * 10**9, "250 GB"),
        (7 * 10**15, "7,000 TB"),
    ],
)
def test_a_size_has_a_unit_that_fits(n_bytes, text):
    assert in_units(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4213, "0.42 s"),
        (12.3, "12 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (604_800, "7 days"),
    ],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("text", "n_bytes"), [("500MB", 5 * 10**8), ("1.5 GiB", 3 * 2**29)])
def test_a_size_is_read(text, n_bytes):
    assert read_size("it", text) == n_bytes


@pytest.mark.parametrize("text", ["", "5", "MB", "-1MB", "1e3MB", "4 G", "4XB", "1MB\n"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="such as 500MB"):
        read_size("it", text)
