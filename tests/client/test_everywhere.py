"""Set-up code: once on every worker, those included that come later."""

from __future__ import annotations

import os

import pytest

from nbstreamq.client.session import Session
from nbstreamq.protocol.store import Store


@pytest.fixture
def two_workers(queue, wait_until):
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    return queue


def test_runs_once_on_each_worker(two_workers):
    found = two_workers.everywhere(os.getpid).result(10)
    assert sorted(found) == sorted(w.pid for w in two_workers.workers())


def test_runs_before_what_is_submitted_later(two_workers):
    def set_up(value):
        import builtins

        builtins.nbstreamq_test_value = value

    def value():
        import builtins

        return builtins.nbstreamq_test_value

    two_workers.everywhere(set_up, 5)
    assert list(two_workers.map(lambda _: value(), range(50), chunksize=1)) == [5] * 50


def test_late_joiners(make_queue, wait_until):
    def set_up():
        os.environ["NBSTREAMQ_TEST_SET_UP"] = "yes"

    def look(_):
        import time

        time.sleep(0.005)
        return os.getpid(), os.environ.get("NBSTREAMQ_TEST_SET_UP")

    queue = make_queue(workers=1)
    assert queue.submit(look, 0).result(10)[1] is None
    queue.everywhere(set_up).result(10)
    queue.run(3)
    wait_until(lambda: len(queue.workers()) == 3, describe="three workers")
    pids = {w.pid for w in queue.workers()}
    seen: dict[int, str | None] = {}

    def all_seen():
        seen.update(queue.map(look, range(12), chunksize=1).result(10))
        return pids <= seen.keys()

    wait_until(all_seen, describe="all three have worked")
    assert set(seen.values()) == {"yes"}


def test_with_no_workers_yet(make_queue):
    def set_up():
        import builtins

        builtins.nbstreamq_test_early = True

    def is_set_up():
        import builtins

        return builtins.nbstreamq_test_early

    queue = make_queue(workers=0)
    assert queue.everywhere(set_up).result(10) == []
    queue.run(1)
    assert queue.submit(is_set_up).result(10)


def test_errors(two_workers):
    job = two_workers.everywhere(int, "x")
    assert len(job) == 2
    with pytest.raises(ValueError, match="'x'"):
        job.result(10)


def test_results_that_are_faster_than_the_answer(two_workers_told, wait_until, monkeypatch):
    """The workers may be done before the client hears that its request was carried out."""
    queue, told = two_workers_told
    send = Store.everywhere

    def send_slowly(self, *args):
        sent = send(self, *args)
        if sent:
            wait_until(lambda: told.count("finished") == 2, describe="both results")
        return sent

    monkeypatch.setattr(Store, "everywhere", send_slowly)
    assert len(set(queue.everywhere(os.getpid).result(10))) == 2


@pytest.fixture
def two_workers_told(make_queue, wait_until, monkeypatch):
    """A queue with two workers, and the kinds of the events that it was told of."""
    told: list[str] = []
    deliver = Session._deliver

    def listen(self, event):
        go_on = deliver(self, event)
        told.append(event.kind)
        return go_on

    monkeypatch.setattr(Session, "_deliver", listen)
    queue = make_queue()
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    return queue, told
