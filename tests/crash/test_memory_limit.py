"""An item that takes too much memory fails alone: the machine, its chunk and the workers live."""

import sys
import time
from pathlib import Path

import pytest

from nbstreamq import MemoryLimitExceeded

MIB = 2**20


def hog(path="/dev/null"):
    """Take more and more, until somebody ends it."""
    with Path(path).open("a") as file:
        file.write("x")
    taken = []
    while True:
        taken.append(b"x" * (20 * MIB))
        time.sleep(0.005)


def test_only_the_item_that_blows_up_fails_and_at_once(queue, tmp_path):
    runs = str(tmp_path / "runs")
    limited = queue.options(memory_limit=300 * MIB)
    job = limited.map(lambda i: hog(runs) if i == 5 else i, range(12), chunksize=12)
    job.wait(30)

    assert list(job.errors) == [5]
    error = job.errors[5]
    assert isinstance(error, MemoryLimitExceeded)
    assert isinstance(error, MemoryError)
    assert f"{300 * MIB:,} bytes" in str(error)
    assert error.task == job[5].id
    assert [job[i].result(0) for i in range(12) if i != 5] == [i for i in range(12) if i != 5]
    assert (tmp_path / "runs").read_text() == "x", "no second worker is sacrificed"
    assert queue.map(abs, range(20)).result(20) == list(range(20))


def test_many_hogs_leave_the_pool_as_it_was(queue, wait_until):
    job = queue.options(memory_limit=300 * MIB).map(lambda _: hog(), range(4), chunksize=1)
    job.wait(40)

    assert {type(error) for error in job.errors.values()} == {MemoryLimitExceeded}
    assert len(job.errors) == 4
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    assert queue.submit(abs, -1).result(20) == 1


def test_it_is_retried_as_often_as_retries_says(queue, gate):
    again = gate()
    limited = queue.options(memory_limit=300 * MIB, retries=1)

    assert limited.submit(lambda: hog() if again.first() else "done").result(30) == "done"


def test_the_next_attempt_has_the_next_limit(queue, tmp_path):
    def take(n_bytes):
        taken = b"x" * n_bytes
        time.sleep(0.3)
        return len(taken)

    patient = queue.options(memory_limit=[150 * MIB, 300 * MIB])
    future = patient.submit(take, 200 * MIB)
    job = patient.map(lambda i: hog(tmp_path / "runs") if i == 2 else i, range(4), chunksize=4)

    assert future.result(30) == 200 * MIB
    assert future.attempts == 2
    job.wait(30)
    assert list(job.errors) == [2]
    error = job.errors[2]
    assert isinstance(error, MemoryLimitExceeded)
    assert f"{300 * MIB:,} bytes, after {150 * MIB:,} in earlier attempts" in str(error)
    assert (tmp_path / "runs").read_text() == "xx"


def test_other_failures_have_no_attempts_from_limits(queue, tmp_path):
    def fail():
        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        raise ValueError

    future = queue.options(memory_limit=[150 * MIB, 300 * MIB]).submit(fail)
    assert isinstance(future.exception(20), ValueError)
    assert (tmp_path / "runs").read_text() == "x"


def test_who_stays_below_it_or_has_none_is_let_be(queue):
    def take(n_bytes):
        taken = b"x" * n_bytes
        time.sleep(0.3)
        return len(taken)

    assert queue.options(memory_limit=400 * MIB).submit(take, 50 * MIB).result(20) == 50 * MIB
    assert queue.submit(take, 350 * MIB).result(20) == 350 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells them apart")
def test_a_file_that_is_mapped_is_no_memory(queue, tmp_path):
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate(400 * MIB)

    def read():
        import mmap

        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            n_zeros = sum(data[i] == 0 for i in range(0, len(data), 4096))
            time.sleep(0.3)
            return n_zeros

    limited = queue.options(memory_limit=300 * MIB)
    assert limited.submit(read).result(20) == 400 * MIB // 4096


def test_a_limit_that_is_none_is_refused(queue):
    for wrong, kind in (
        (-1, ValueError),
        (1000, ValueError),
        ("1 GB", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(kind, match="memory_limit"):
            queue.options(memory_limit=wrong)
