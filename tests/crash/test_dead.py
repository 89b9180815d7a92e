"""q.dead(): what killed its workers is listed there, and can be tried again."""

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from nbstreamq import NbstreamqError, WorkerLost
from nbstreamq.notebook.reprs import dead_html
from nbstreamq.protocol.messages import Task
from nbstreamq.protocol.signing import Signer


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
    with pytest.raises(NbstreamqError, match="no more"):
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


def test_what_was_refused_can_not_be_tried(queue, client, store, wait_until):
    queue.run(1)
    client.xadd(store.keys.lane("low"), {"job": "<b>", "n": "7"})
    (letter,) = wait_until(queue.dead, describe="the refusal")
    assert (letter.kind, letter.task, letter.lane) == ("refused", "<b>-7", "low")
    assert not letter.can_retry
    assert "&lt;b&gt;-7" in dead_html(queue.dead())
    assert "<b>" not in dead_html(queue.dead())
    with pytest.raises(NbstreamqError, match="can't be tried again"):
        letter.retry()
    assert len(queue.dead()) == 1
