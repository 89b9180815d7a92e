"""A queue where a pool is expected: of multiprocessing, or of concurrent.futures."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings

import pytest


@pytest.fixture(scope="module")
def q(shared_queue):
    return shared_queue


@pytest.fixture
def pool(q):
    with q.pool() as pool:
        yield pool


def reciprocal(x):
    return 1 / x


def test_maps_return_lists(pool):
    assert pool.map(abs, range(-500, 0)) == [*range(500, 0, -1)]
    assert pool.starmap(pow, [(2, 3), [3, 2]], chunksize=1) == [8, 9]
    assert pool.apply(pow, (2, 3)) == pool.apply(int, ("11",), {"base": 7}) == 8


def test_iterators_yield_results_as_they_come(pool, gate):
    def wait(name):
        gate(name).wait()
        return name

    slow_first = pool.imap_unordered(wait, ["slow", "fast"], chunksize=1)
    gate("fast").open()
    assert next(slow_first) == "fast"
    gate("slow").open()
    assert list(slow_first) == ["slow"]
    assert list(pool.imap(wait, iter(["slow", "fast"]))) == ["slow", "fast"]


def test_an_error_is_raised_where_the_result_is_asked_for(pool):
    with pytest.raises(ZeroDivisionError):
        pool.map(reciprocal, [1, 0])
    result = pool.apply_async(reciprocal, (0,))
    result.wait()
    assert (result.ready(), result.successful()) == (True, False)
    with pytest.raises(ZeroDivisionError):
        result.get()


def test_callbacks_get_results_and_errors(pool):
    seen, both = [], threading.Semaphore(0)

    def note(outcome):
        seen.append(outcome)
        both.release()

    pool.map_async(abs, [-1, -2], callback=note, error_callback=note)
    assert both.acquire(timeout=10)
    pool.starmap_async(reciprocal, [(0,)], callback=note, error_callback=note)
    assert both.acquire(timeout=10)
    assert seen[0] == [1, 2]
    assert isinstance(seen[1], ZeroDivisionError)


def test_a_result_that_is_late_raises_the_error_of_multiprocessing(pool, gate):
    result = pool.apply_async(gate("later").wait)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    with pytest.raises(ValueError, match="not over"):
        result.successful()
    gate("later").open()
    assert result.get(timeout=10) is None


def test_a_closed_pool_finishes_what_it_has(q, tmp_path):
    pool = q.pool()
    for number in range(20):
        pool.apply_async((tmp_path / str(number)).touch)
    with pytest.raises(ValueError, match="still open"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.map(abs, [1])
    pool.join()
    assert len(list(tmp_path.iterdir())) == 20
    assert q.submit(abs, -1).result() == 1


def test_leaving_the_block_cancels_what_is_not_over(q, gate):
    with q.pool() as pool:
        result = pool.map_async(gate("never").wait, [30] * 10)
    pool.join()
    assert not result.successful()
    assert q.submit(abs, -1).result(timeout=10) == 1


# -- as an executor -----------------------------------------------------------------------------


def test_starmap_spreads_each_item(q):
    assert list(q.starmap(pow, ((x, 2) for x in range(3)), buffersize=2)) == [0, 1, 4]
    with pytest.raises(TypeError, match="iterable"):
        q.starmap(pow, 3)


def test_starmap_may_have_a_name(q):
    for _ in range(2):
        job = q.starmap(pow, [(2, 3), (3, 2)], name="powers")
        assert job.result() == [8, 9]
    job.delete()


def test_the_size_counts_workers_that_are_still_to_start(new_queue):
    queue = new_queue(workers=3)
    assert queue.size == queue._max_workers == 3
    queue.run(1)
    assert queue.submit(abs, -1).result() == 1
    assert queue.size == 1


def test_the_initializer_runs_before_any_call(new_queue):
    def prepare(name, number):
        os.environ[name] = str(number)

    queue = new_queue(initializer=prepare, initargs=("NBSTREAMQ_TEST_PREPARED", 7))
    found = queue.map(lambda _: os.environ.get("NBSTREAMQ_TEST_PREPARED"), range(50))
    assert set(found) == {"7"}


def test_an_initializer_that_fails_is_reported(new_queue, wait_until):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        queue = new_queue(workers=1, initializer=reciprocal, initargs=(0,))
        assert queue.submit(abs, -1).result() == 1
        wait_until(lambda: warned, describe="a warning")
    assert "calls run without it: ZeroDivisionError" in str(warned[0].message)
