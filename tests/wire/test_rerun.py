"""rerun: ended items of a named job wait again, once, whoever else wants that, too."""

import pytest

from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.messages import Event
from nbstreamq.wire.records import Chunk
from nbstreamq.wire.settlement import Settlement

JOB = "j:1"


@pytest.fixture
def rerun(store, make_task, take):
    """``rerun(record, token)``, of a job with one item, which has failed."""
    task = make_task(0, job=JOB)
    fields = store.encode_task(task)
    store.open_job("j", JOB, {"function": "f"}, instead_of="")
    store.append_chunk(JOB, Chunk(0, 1, "digest"), b"x", lane="default", delay=0.0, task=fields)
    store.close_job(JOB, 1)
    settlements = [Settlement(delivery=d) for d in take()]
    for settlement in settlements:
        settlement.events.append(Event.about(task, ONE, kind="finished", worker="w1"))
        settlement.count(failed=1)
    store.settle(settlements)

    def rerun(record, token):
        how = {"lane": "default", "n_cancelled": 0, "token": token}
        return store.rerun(record, ONE, [fields], **how)

    return rerun


def n_waiting(store):
    return store.lanes(["default"])[0]["waiting"]


def test_sent_again_it_is_done_once(store, rerun):
    record = store.find_job("j")
    assert (record.n_failed, n_waiting(store)) == (1, 0)
    assert [rerun(record, "mine"), rerun(record, "mine")] == [1, 1]
    record = store.find_job("j")
    assert (record.n_failed, record.n_reruns, n_waiting(store)) == (0, 1, 1)


def test_of_two_clients_the_second_is_told(store, rerun):
    record = store.find_job("j")
    assert [rerun(record, "mine"), rerun(record, "another's")] == [1, 0]
    assert n_waiting(store) == 1


def test_not_more_than_have_failed(store, rerun):
    assert rerun(store.find_job("j"), "mine") == 1
    assert rerun(store.find_job("j"), "mine, later") == 0


def test_a_cancellation_from_before_it_does_nothing(store, client, rerun, take):
    """Sent late, or twice after a lost connection, it would stop what was asked for since."""
    asked_at = store.find_job("j").n_reruns
    assert rerun(store.find_job("j"), "mine") == 1
    events = store.keys.events(JOB)
    last = client.xrevrange(events, count=1), store.last_control()

    assert store.cancel(JOB, ONE, ONE, run=asked_at) is False

    assert (client.xrevrange(events, count=1), store.last_control()) == last
    assert [d.cancelled for d in take()] == [()]


def test_it_can_be_cancelled_in_turn(store, rerun, take):
    assert rerun(store.find_job("j"), "mine") == 1
    assert store.cancel(JOB, ONE, ONE, run=store.find_job("j").n_reruns) is True
    assert [d.cancelled for d in take()] == [ONE]
