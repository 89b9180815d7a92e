"""Copies of signed messages, put back by somebody who can write to the server: not run again."""

import os
import signal
import warnings

import pytest

from nbstreamq import NbstreamqError
from nbstreamq.wire.messages import State
from tests.counting import Runs


class Flaky(Runs):
    """A function whose runs are counted; what it is told to, fails the first time."""

    def __init__(self, folder, failing):
        super().__init__(folder)
        self.failing = failing

    def __call__(self, x):
        first = x not in self.counts
        self.note(x)
        if first and x in self.failing:
            raise ValueError(x)
        return x * 10


@pytest.fixture
def runs(tmp_path):
    return lambda *failing: Flaky(tmp_path / "runs", failing)


def n_without_ends(events):
    """How many entries have no event that ends items."""
    return sum(b"finished" not in b"".join(fields.values()) for fields in events)


@pytest.fixture
def waiting(client, store, wait_until):
    """``waiting(n, lane)``: the entries of a lane that no worker serves yet, once there are `n`."""

    def waiting(n=1, lane="default"):
        key = store.keys.lane(lane)
        wait_until(lambda: client.xlen(key) == n, describe="the tasks")
        return [fields for _, fields in client.xrange(key)]

    return waiting


@pytest.fixture
def refused(wait_until):
    """``refused(queue, n, kind)``: once `n` copies were refused, and nothing else was."""

    def refused(queue, n=1, kind="task"):
        name = f"replayed {kind}"
        wait_until(lambda: sum(queue.status().refused.values()) >= n, describe="the refusals")
        assert queue.status().refused == {name: n}

    return refused


class TestATask:
    def test_that_was_done_is_refused_and_kept(
        self, new_queue, runs, waiting, store, client, refused
    ):
        queue, run = new_queue(workers=0), runs()
        future = queue.submit(run, 1)
        (copy,) = waiting()
        queue.run(1)
        assert future.result(20) == 10
        client.xadd(store.keys.lane("low"), copy)
        refused(queue)
        assert run.counts == {1: 1}
        (letter,) = queue.dead()
        assert (letter.kind, letter.task, letter.lane) == ("refused", future.id, "low")
        assert not letter.can_retry
        with pytest.raises(NbstreamqError, match="It was run"):
            letter.retry()
        assert "1 replayed task" in str(queue.status())
        assert queue.submit(run, 2).result(20) == 20

    def test_that_lies_beside_its_copies_is_run_once(
        self, new_queue, runs, waiting, store, client, refused
    ):
        queue, run = new_queue(workers=0), runs()
        future = queue.submit(run, 1)
        (copy,) = waiting()
        for _ in range(5):
            client.xadd(store.keys.lane("default"), copy)
        queue.run(1)
        assert future.result(20) == 10
        refused(queue, 5)
        assert run.counts == {1: 1}

    def test_is_known_to_all_workers_of_the_machine_also_later_ones(
        self, new_queue, runs, waiting, store, client, refused, wait_until
    ):
        queue, run = new_queue(workers=0), runs()
        futures = [queue.submit(run, x) for x in range(20)]
        copies = waiting(20)
        queue.run(2)
        assert [f.result(20) for f in futures] == [x * 10 for x in range(20)]
        before = set(queue.everywhere(os.getpid).result(20))  # they know what was settled
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: {w.pid for w in queue.workers()} - before, describe="another worker")
        for copy in copies:
            client.xadd(store.keys.lane("default"), copy)
        refused(queue, 20)
        assert set(run.counts.values()) == {1}

    def test_that_was_a_chunk_is_refused_whole(
        self, new_queue, runs, waiting, store, client, refused
    ):
        queue, run = new_queue(workers=0), runs()

        def slow(x):
            import time

            time.sleep(0.05)
            return run(x)

        job = queue.map(slow, range(10), chunksize=10)
        (copy,) = waiting()
        queue.run(2)
        assert job.result(20) == [x * 10 for x in range(10)]
        queue.everywhere(os.getpid).result(20)
        client.xadd(store.keys.lane("default"), copy)
        refused(queue)
        assert set(run.counts.values()) == {1}

    def test_for_one_worker_is_not_run_by_another(
        self, queue, runs, store, client, refused, wait_until
    ):
        run = runs()
        queue.run(2)
        wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
        assert queue.everywhere(run, 1).result(20) == [10, 10]
        # As it is kept for who comes later: a task of its own kind, that is no task in a lane.
        ((_, kept),) = client.xrange(store.keys.setup)
        client.xadd(store.keys.lane("default"), kept)
        wait_until(lambda: queue.status().refused == {"task": 1}, describe="the refusal")
        # And twice there: who comes later does it once.
        client.xadd(store.keys.setup, kept)
        queue.run(3)
        wait_until(lambda: run.counts[1] == 3, describe="the set-up")
        refused_now = {"task": 1, "replayed setup": 1}
        wait_until(lambda: queue.status().refused == refused_now, describe="the refusal")
        assert run.counts == {1: 3}


class TestWhatIsRunAgainOnPurpose:
    """The same items, the same arguments: no copy."""

    def test_by_retries_and_after_failures(self, queue, runs):
        run = runs(*range(0, 40, 2))
        assert queue.options(retries=1).map(run, range(20), chunksize=3).result(20)
        job = queue.map(run, range(20, 40), chunksize=1)
        job.wait(20)
        assert job.retry_failed().result(20) == [x * 10 for x in range(20, 40)]
        assert queue.status().refused == {}

    def test_of_a_named_job_that_failed_or_was_cancelled(self, new_queue, runs):
        queue, run = new_queue(workers=0), runs(0, 5)
        queue.map(run, range(8), name="j", chunksize=1).cancel()
        queue.run(2)
        for _ in range(3):
            job = queue.map(run, range(8), name="j", chunksize=1)
            job.wait(20)
        assert job.result(20) == [x * 10 for x in range(8)]
        assert queue.status().refused == {}
        (status,) = queue.jobs()
        assert (status.done, status.failed, status.cancelled) == (8, 0, 0)

    def test_where_its_worker_died_or_gave_it_back(self, queue, gate):
        died = gate("died")

        def die_once(x):
            if x == 7 and died.first():
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        assert queue.map(die_once, range(200), chunksize=1).result(30) == list(range(200))
        assert queue.map(die_once, range(2000), chunksize=500).result(30) == list(range(2000))
        assert queue.status().refused == {}


class TestOnAnotherMachine:
    def test_a_copy_is_run_but_counts_for_nothing_in_a_named_job(
        self, new_queue, runs, waiting, store, client, start_node, refused, wait_until
    ):
        queue, run = new_queue(workers=0), runs(2)
        queue.map(run, range(6), name="j", chunksize=6)
        (copy,) = waiting()
        queue.run(1)
        job = queue.attach("j")
        job.wait(20)
        queue.run(0)
        wait_until(lambda: not queue.workers(), describe="their end")
        start_node()
        client.xadd(store.keys.lane("default"), copy)
        wait_until(lambda: set(run.counts.values()) == {2}, describe="its run: it can't know")
        assert queue.submit(abs, -1).result(20) == 1  # it says so when it takes the next task
        refused(queue)
        (status,) = queue.jobs()
        assert (status.done, status.failed) == (5, 1)
        again = new_queue(workers=0).attach("j")
        assert again.counts()[State.FAILED] == 1
        assert [v.kind for v in queue.dead()] == ["failed", "refused"]
        assert queue.attach("j").retry_failed().result(20) == [x * 10 for x in range(6)]
        (status,) = queue.jobs()
        assert (status.done, status.failed) == (6, 0)


class TestAnEvent:
    """A copy of an end is harmless: the first end counts, and that of an earlier run does not."""

    def test_of_a_failure_does_not_undo_the_retry(self, queue, runs, client, store, gate, refused):
        hold, run = gate("hold").path, runs(1)

        def held(x):
            import time
            from pathlib import Path

            if run.counts:
                while not Path(hold).exists():
                    time.sleep(0.002)
            print("once")
            return run(x)

        job = queue.map(held, [1], name="j")
        job.wait(20)
        events = [fields for _, fields in client.xrange(store.keys.events(job.id))]
        job.retry_failed()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for copy in events:
                client.xadd(store.keys.events(job.id), copy)
            refused(queue, n_without_ends(events), "event")
            gate("hold").open()
            assert job.result(20) == [10]
        assert job.counts()[State.DONE] == 1
        assert job[0].logs.count("once") == 2
        assert len([w for w in caught if "dealt with before" in str(w.message)]) == 1
        assert queue.attach("j").result(20) == [10]

    def test_found_in_what_was_is_refused_too(self, queue, new_queue, runs, client, store):
        job = queue.map(runs(1), [1], name="j")
        job.wait(20)
        assert job.retry_failed().result(20) == [10]
        events = [fields for _, fields in client.xrange(store.keys.events(job.id))]
        for copy in events:
            client.xadd(store.keys.events(job.id), copy)
        assert new_queue(workers=0).attach("j").result(5) == [10]
        n_refused = n_without_ends(events)
        assert queue.status().refused == {"replayed event": n_refused}
        assert client.xlen(store.keys.events(job.id)) == 2 * len(events) - n_refused


def test_an_order_to_cancel_does_not_stop_what_runs_again(
    queue, runs, client, store, gate, refused, wait_until
):
    hold, run = gate("hold").path, runs()

    def held(x):
        import time
        from pathlib import Path

        run(x)
        while not Path(hold).exists():
            time.sleep(0.002)
        return x

    job = queue.map(held, [1], name="j")
    wait_until(lambda: run.counts, describe="its run")
    job.cancel()
    orders = [f for _, f in client.xrange(store.keys.control) if f.get(b"kind") == b"cancel"]
    again = queue.map(held, [1], name="j")
    for copy in orders:
        client.xadd(store.keys.control, copy)
    refused(queue, len(orders), "control")
    gate("hold").open()
    assert again.result(20) == [1]


def test_functions_and_values_that_are_put_back_are_the_same(queue, runs, client, store):
    run = runs()
    ref = queue.put([1, 2])
    assert queue.submit(lambda x: run(len(x)), ref).result(20) == 20
    starts = [make("").replace("{", "\\{") for make in (store.keys.function, store.keys.value)]
    keys = [key for start in starts for key in client.scan_iter(start + "*")]
    assert len(keys) == 2
    kept = {key: client.get(key) for key in keys}
    client.delete(*keys)
    for key, value in kept.items():
        client.set(key, value, ex=60)
    queue.run(3)
    assert queue.map(lambda x, _: run(len(x)), [ref] * 50, range(50)).result(20) == [20] * 50
    assert queue.status().refused == {}
