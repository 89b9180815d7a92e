"""Who wanted a call: when the session or the named job is gone, nobody does."""

import pytest

from nbstreamq.wire.item_ranges import EVERYTHING
from nbstreamq.wire.keys import LANES
from nbstreamq.wire.records import Chunk


@pytest.fixture
def late(store):
    """Another worker's store: it comes later, and nobody has told it anything."""
    late = store.clone()
    yield late
    late.close()


def wanted(store):
    return [d.is_wanted for d in store.take([], LANES, "w1", 100)]


def test_calls_of_a_session_run_while_it_is_there(store, late, submit, client):
    submit(0, 1)
    assert client.ttl(store.keys.session("s")) > 0
    assert wanted(late) == [True, True]


def test_calls_of_one_that_is_gone_do_not_though_no_cancellation_is_known(store, late, submit):
    submit(0, 1)
    store.forget_session("s")
    assert wanted(late) == [False, False]


def test_calls_of_a_deleted_job_do_not(store, late, make_task):
    def append(job):
        fields = store.encode_task(make_task(0, job=job))
        chunk = Chunk(0, 1, "digest")
        assert store.append_chunk(job, chunk, b"args", lane="default", delay=0.0, task=fields)

    for name in ("kept", "deleted"):
        store.open_job(name, f"{name}:1", {"function": "f"}, instead_of="")
        append(f"{name}:1")
    store.delete_job("deleted", "deleted:1")
    assert wanted(late) == [True, False]


def test_what_everywhere_asked_for_is_done_whoever_has_gone(store, late, make_task):
    store.join("w1", {})
    assert store.everywhere(["w1"], [make_task(0), make_task(0)])
    (delivery,) = late.take([], ["@w1"], "w1", 1)
    assert delivery.is_wanted


def test_whoever_was_there_just_now_is_not_asked_for_again(store, late, submit):
    submit(0)
    assert wanted(late) == [True]
    submit(1)
    store.forget_session("s")
    assert wanted(late) == [True]


def test_what_was_cancelled_of_those_who_are_gone_is_forgotten(
    store, late, submit, client, monkeypatch
):
    monkeypatch.setattr("nbstreamq.wire.store.TRUST", 0.0)
    submit(0)
    for job in ("s.1", "other.1", "gone:1"):
        store.cancel(job, EVERYTHING, EVERYTHING)
    known = lambda: {name.decode() for name in client.hkeys(store.keys.cancelled)}
    late.forget_cancellations()
    assert known() == {"#", "s.1", "other.1", "gone:1"}, "they may be trusted still"
    late.forget_cancellations()
    assert known() == {"#", "s.1"}
    store.forget_session("s")
    late.forget_cancellations()
    late.forget_cancellations()
    assert known() == {"#"}
