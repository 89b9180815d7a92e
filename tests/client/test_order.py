"""Results come in order, and jobs share the workers: counted by which items end before others."""

import time

import pytest

#: A chunk of a map lasts several slices.
SECONDS, N_ITEMS = 0.02, 200


def end(_):
    time.sleep(SECONDS)
    return time.monotonic()


def n_waiting(queue):
    return sum(lane.waiting for lane in queue.status().lanes)


def n_between(ends, begin, stop):
    return sum(begin < at < stop for at in ends)


@pytest.mark.parametrize("name", [None, "sweep"])
@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_items_end_roughly_in_their_order(make_queue, n_workers, name):
    queue = make_queue(workers=n_workers)
    ends = list(queue.map(end, range(N_ITEMS), name=name))
    # How many of the items behind each one ended before it.
    overtaken = [sum(other < at for other in ends[i:]) for i, at in enumerate(ends)]
    assert max(overtaken[:4]) < 20
    assert max(overtaken) < 80  # that of a worker which waits for the processor


def test_a_second_job_does_not_wait_for_the_first(queue):
    first = queue.map(end, range(N_ITEMS))
    next(first)
    asked = time.monotonic()
    second = queue.map(end, range(20))
    begun = next(second)
    first_ends = first.result(60)
    # Two workers have a slice of the first job in hand, each of at most six items.
    assert n_between(first_ends, asked, begun) < 40


def test_three_jobs_have_equal_shares_and_a_call_between_them_does_not_wait(queue, gate):
    held = [queue.submit(gate.hold) for _ in range(2)]
    jobs = [queue.map(end, range(N_ITEMS)) for _ in range(3)]
    gate.open()
    for future in held:
        future.result(60)
    next(jobs[0])
    asked = time.monotonic()
    answered = queue.submit(time.monotonic).result(60)
    ends = [job.result(60) for job in jobs]
    half = sorted(at for found in ends for at in found)[3 * N_ITEMS // 2]
    shares = [n_between(found, 0.0, half) for found in ends]
    assert max(shares) < 1.3 * min(shares)
    # At most a slice of each message of the three jobs, two of each.
    assert sum(n_between(found, asked, answered) for found in ends) < 90


def test_urgent_calls_still_come_first(queue):
    job = queue.map(end, range(N_ITEMS))
    next(job)
    asked = time.monotonic()
    answered = queue.options(lane="high").submit(time.monotonic).result(60)
    later = queue.options(lane="low").submit(time.monotonic)
    ends = job.result(60)
    assert n_between(ends, asked, answered) < 25
    assert later.result(60) > sorted(ends)[-20]


def test_waiting_chunks_are_counted(queue, gate, wait_until):
    held = [queue.submit(gate.hold) for _ in range(2)]
    job = queue.map(abs, range(50), chunksize=1)
    wait_until(lambda: n_waiting(queue) == 50, describe="all chunks")
    gate.open()
    for future in held:
        future.result(60)
    assert job.result(60) == list(range(50))


def test_a_cancelled_job_leaves_nothing_that_waits(queue, gate, wait_until):
    held = [queue.submit(gate.hold) for _ in range(2)]
    job = queue.map(abs, range(500), chunksize=1)
    job.cancel()
    gate.open()
    for future in held:
        future.result(60)
    wait_until(lambda: n_waiting(queue) == 0, describe="all chunks dropped")
