"""What a job will take, told by its first items."""

from __future__ import annotations

import pytest

from nbstreamq import NbstreamqError


def piece(_):
    import time

    time.sleep(0.02)
    return bytes(10_000)


def test_the_first_items_tell_what_all_take(shared_queue):
    estimate = shared_queue.map(piece, range(4)).estimate(n_items=6400)

    assert estimate.n_items == 6400
    assert 1 <= estimate.n_measured <= 4
    assert 0.02 <= estimate.item_seconds < 5
    assert estimate.seconds(64) == pytest.approx(100 * estimate.item_seconds)
    assert estimate.worker_bytes > 10 * 2**20
    assert estimate.result_bytes == pytest.approx(64e6, rel=0.01)
    assert "6,400 items of 0.0" in str(estimate)
    assert "   64 workers: 2" in str(estimate)
    assert "64.1 MB of results" in str(estimate)


def test_of_a_running_job_it_is_what_is_left(shared_queue, gate):
    hold = gate.hold
    job = shared_queue.map(lambda x: x or hold(), [1, 0, 0, 0], chunksize=1)

    estimate = job.estimate()
    gate.open()

    assert estimate.n_items == 3
    assert estimate.input_bytes > 0
    job.wait(20)


def test_a_job_of_which_nothing_ran_tells_nothing(shared_queue):
    job = shared_queue.options(delay=3600).map(abs, [1])
    job.cancel()
    with pytest.raises(NbstreamqError, match="has run"):
        job.estimate()
