"""q.dead(): what killed its workers is listed there, and can be tried again."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest

from nbstreamq import NbstreamqError, WorkerLost
from nbstreamq.notebook.html import dead_html
from nbstreamq.wire.messages import Task
from nbstreamq.wire.signing import Signer


class Poison:
    """Kills whoever calls it, until `path` is there."""

    def __init__(self, path):
        self.path = path

    def __call__(self, n=0):
        if n == 2 and not Path(self.path).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return n * 10


def test_nothing_is_there_at_first(shared_queue):
    assert shared_queue.dead() == []
    assert "nothing" in repr(shared_queue.dead())
    assert "Nothing" in dead_html(shared_queue.dead())


def test_a_call_that_kills_its_workers_is_listed_and_can_be_tried_again(queue, gate):
    cured = gate("cured")
    before = time.time()
    future = queue.options(lane="low").submit(Poison(cured.path), 2)
    assert isinstance(future.exception(30), WorkerLost)

    (letter,) = queue.dead()
    assert (letter.kind, letter.task, letter.lane) == ("failed", future.id, "low")
    assert letter.can_retry
    assert "lost its worker 3 times" in letter.why
    assert "SIGKILL" in letter.why
    assert before - 5 < letter.when.timestamp() < time.time() + 5
    assert future.id in repr(queue.dead())
    assert future.id in dead_html(queue.dead())

    cured.open()
    again = letter.retry()
    assert again.result(20) == 20
    assert again.id != future.id
    assert queue.dead() == []
    with pytest.raises(NbstreamqError, match="no longer in the dead stream"):
        letter.retry()


def test_it_may_kill_again_and_is_listed_again(queue, gate):
    first = queue.submit(Poison(gate().path), 2)
    assert isinstance(first.exception(30), WorkerLost)
    again = queue.dead()[0].retry()
    assert isinstance(again.exception(30), WorkerLost)
    assert [letter.task for letter in queue.dead()] == [again.id]


def test_an_item_of_a_map_is_tried_again_alone(queue, gate):
    cured = gate("cured")
    job = queue.map(Poison(cured.path), range(5), chunksize=5)
    job.wait(30)
    assert list(job.errors) == [2]
    (letter,) = queue.dead()
    assert letter.task == job[2].id
    cured.open()
    again = letter.retry()
    assert again.result(20) == 20
    assert again.replay() == 20
    assert queue.submit(abs, -1).result(20) == 1


def test_another_client_can_try_it(new_queue, gate):
    queue, cured = new_queue(), gate("cured")
    future = queue.submit(Poison(cured.path), 2)
    assert isinstance(future.exception(30), WorkerLost)
    other = new_queue(workers=0)
    cured.open()
    assert other.dead()[0].retry().result(20) == 20
    assert queue.dead() == []


def test_what_was_refused_can_be_tried_by_who_knows_its_secret(
    queue, new_queue, client, store, queue_name, wait_until
):
    assert queue.submit(abs, -1).result(20) == 1
    (key,) = client.scan_iter(store.keys.function("*").replace("{", "\\{"))
    digest = key.decode().rpartition(":")[2]
    args = pickle.dumps([-1, -2, -3])
    task = Task(
        job="x.1", n=5, span=(range(1, 3),), fn=digest, name="abs", call="map", args=args, losses=2
    )
    flat = task.encode(Signer("new", queue_name))
    client.execute_command("XADD", store.keys.lane("low"), "*", *flat)
    (letter,) = wait_until(queue.dead, describe="the refusal")
    assert not letter.can_retry

    (letter,) = new_queue(workers=0, secret="secret,new").dead()
    assert letter.can_retry
    assert (letter.kind, letter.task, letter.name) == ("refused", "x.1-6", "abs")
    assert [future.result(20) for future in letter.retry()] == [2, 3]


def test_what_was_refused_can_not_be_tried(queue, client, store, queue_name, wait_until):
    queue.run(1)
    task = Task(job="<b>", n=7, fn="f", name="f", call="map", args=b"")
    flat = task.encode(Signer("guess", queue_name))
    client.execute_command("XADD", store.keys.lane("low"), "*", *flat)
    (letter,) = wait_until(queue.dead, describe="the refusal")
    assert (letter.kind, letter.task, letter.lane) == ("refused", "<b>-7", "low")
    assert not letter.can_retry
    assert "&lt;b&gt;-7" in dead_html(queue.dead())
    assert "<b>" not in dead_html(queue.dead())
    with pytest.raises(NbstreamqError, match="can't be tried again"):
        letter.retry()
    assert len(queue.dead()) == 1


def fail(x=0, n=0):
    raise ValueError(f"no {x}" + n * "!")


@pytest.fixture
def mendable(gate):
    """A function that fails for multiples of 5, until the gate "mended" is open."""
    path = gate("mended").path

    def mendable(x):
        if x % 5 == 0 and not Path(path).exists():
            raise ValueError(f"no {x}")
        return x * 10

    return mendable


def eat(_):
    kept = []
    while True:
        kept.append(bytearray(2**22))
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("options", "call", "why", "attempts"),
    [
        ({}, fail, "ValueError: no 7", 1),
        ({"retries": 2}, fail, "ValueError: no 7", 3),
        ({"time_limit": 0.2}, time.sleep, "TimeLimitExceeded", 1),
        ({"memory_limit": 2**28}, eat, "MemoryLimitExceeded", 1),
        ({}, lambda _: threading.Lock(), "ResultNotPicklable", 1),
    ],
)
def test_whatever_fails_for_good_is_listed_once(queue, options, call, why, attempts):
    future = queue.options(**options).submit(call, 7)
    assert future.exception(30) is not None
    (letter,) = queue.dead()
    assert (letter.kind, letter.task, letter.items) == ("failed", future.id, (0,))
    assert (letter.attempts, letter.job, letter.can_retry) == (attempts, future.id[:-2], True)
    assert why in letter.why


def test_a_success_after_retries_and_a_cancelled_call_are_not_listed(queue, gate):
    ready = gate("ready")

    def second_time(x):
        if ready.first():
            raise ValueError(x)
        return x

    assert queue.options(retries=1).submit(second_time, 1).result(20) == 1
    future = queue.submit(time.sleep, 30)
    future.cancel()
    assert queue.submit(abs, -1).result(20) == 1
    assert queue.dead() == []


def test_a_result_that_can_not_travel_has_failed_in_the_job_s_counts_too(queue):
    job = queue.map(lambda x: x or threading.Lock(), range(2), name="j")
    job.wait(20)
    (status,) = queue.jobs()
    assert (status.done, status.failed) == (1, 1)
    assert [letter.items for letter in queue.dead()] == [(0,)]


def test_the_items_of_a_chunk_share_a_letter_that_says_what_was_frequent(queue):
    def fail(x):
        raise (KeyError(x) if x < 3 else ValueError("no"))

    # Within one slice of time, which a busy machine may cut short: then it is two letters.
    for _ in range(20):
        job = queue.map(fail, range(10), chunksize=10)
        job.wait(20)
        letter, *others = [letter for letter in queue.dead() if letter.job == job.id]
        if not others:
            break
    assert letter.items == tuple(range(10))
    assert letter.why == "ValueError: no (7 items); KeyError: 0; KeyError: 1; and 1 others"
    assert f"{job.id}-0 and 9 more" in str(letter)


def test_a_map_that_fails_as_a_whole_pushes_nothing_else_out(queue, new_queue):
    queue.run(2)
    future = new_queue(workers=0).submit(fail, "other")
    future.exception(20)
    job = queue.map(fail, range(300), chunksize=1)
    job.wait(30)
    first, *others = queue.dead()
    assert first.task == future.id
    assert {letter.job for letter in others} == {job.id}
    assert len(others) == 100


def test_retry_failed_takes_the_letters_of_its_job_off(queue, gate, mendable):
    kept = queue.submit(fail)
    job = queue.map(mendable, range(20), chunksize=4)
    job.wait(20)
    kept.exception(20)
    assert sorted(i for letter in queue.dead() for i in letter.items if letter.job == job.id) == [
        0,
        5,
        10,
        15,
    ]
    gate("mended").open()
    assert job.retry_failed().result(20) == [x * 10 for x in range(20)]
    assert [letter.task for letter in queue.dead()] == [kept.id]


def test_what_was_too_large_to_be_kept_says_what_to_do(queue):
    future = queue.submit(fail, "x" * 100_000)
    future.exception(20)
    (letter,) = queue.dead()
    assert not letter.can_retry
    with pytest.raises(NbstreamqError, match="retry_failed"):
        letter.retry()


class TestOfNamedJobs:
    def test_a_retry_mends_the_job(self, queue, new_queue, gate, mendable):
        job = queue.map(mendable, range(20), name="j", chunksize=20)
        job.wait(20)
        letters = queue.dead()  # more than one where a chunk was sliced
        assert {letter.job for letter in letters} == {job.id}
        assert [i for letter in letters for i in letter.items] == [0, 5, 10, 15]
        gate("mended").open()
        futures = [f for letter in letters for f in letter.retry()]
        assert [f.result(20) for f in futures] == [0, 50, 100, 150]
        assert [f.id for f in futures] == [f"{job.id}-{i}" for i in (0, 5, 10, 15)]
        assert queue.dead() == []
        (status,) = queue.jobs()
        assert (status.done, status.failed, status.cancelled) == (20, 0, 0)
        again = new_queue(workers=0).attach("j")
        assert again.result(5) == [x * 10 for x in range(20)]
        with pytest.raises(NbstreamqError, match="no longer in the dead stream"):
            letters[0].retry()

    def test_only_its_own_items_run_again(self, queue, gate, mendable):
        job = queue.map(mendable, range(20), name="j", chunksize=5)
        job.wait(20)
        first, *others = queue.dead()
        gate("mended").open()
        future = first.retry()
        assert future.result(20) == first.items[0] * 10
        (status,) = queue.jobs()
        assert (status.done, status.failed) == (17, 3)
        assert len(queue.dead()) == 3
        for letter in others:
            letter.retry().result(20)
        assert queue.attach("j").result(5) == [x * 10 for x in range(20)]

    def test_one_that_fails_again_is_listed_again(self, queue, mendable):
        job = queue.map(mendable, range(4), name="j", chunksize=4)
        job.wait(20)
        for _ in range(2):
            (letter,) = queue.dead()
            assert isinstance(letter.retry().exception(20), ValueError)
        (status,) = queue.jobs()
        assert (status.done, status.failed) == (3, 1)
        assert len(queue.dead()) == 1

    def test_what_killed_its_workers_is_mended_in_its_job(self, queue, gate):
        cured = gate("cured")
        queue.map(Poison(cured.path), range(5), name="j", chunksize=5).wait(30)
        (letter,) = queue.dead()
        cured.open()
        assert letter.retry().result(20) == 20
        assert queue.attach("j").result(5) == [0, 10, 20, 30, 40]

    def test_letters_go_with_their_job(self, queue, mendable):
        job = queue.map(mendable, range(4), name="j")
        job.wait(20)
        (letter,) = queue.dead()
        job.delete()
        assert queue.dead() == []
        with pytest.raises(NbstreamqError, match="no longer in the dead stream"):
            letter.retry()
