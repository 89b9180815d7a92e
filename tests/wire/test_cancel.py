"""cancel: items are marked for whoever takes them, and told to those who run them."""

import pytest

from nbstreamq.wire.item_ranges import parse_ranges
from nbstreamq.wire.keys import WEEK
from nbstreamq.wire.messages import ControlMessage
from nbstreamq.wire.signing import Signer


@pytest.fixture
def listen(store, wait_until):
    """``listen(after)``: the orders that a supervisor receives."""
    supervisor = store.clone()

    def listen(after):
        supervisor.await_control(after)
        wait_until(lambda: supervisor.wire.wait(0), describe="a control entry")
        return supervisor.controls(after)

    yield listen
    supervisor.close()


def test_supervisors_are_told_what_is_cancelled_now(store, listen):
    start = store.last_control()
    store.cancel("s.1", parse_ranges("0:9"), parse_ranges("5:9"))
    after, orders = listen(start)
    assert orders == [ControlMessage(kind="cancel", job="s.1", span=parse_ranges("5:9"))]
    assert after == store.last_control()


def test_a_supervisor_is_not_ready_before_there_is_an_order(store, wait_until):
    supervisor = store.clone()
    supervisor.await_control(store.last_control())
    assert supervisor.wire.wait(0) is False
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    wait_until(lambda: supervisor.wire.wait(0), describe="the order")
    supervisor.close()


def test_orders_come_once_and_in_order(store, listen):
    start = store.last_control()
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    after, first = listen(start)
    store.cancel("s.1", parse_ranges("0:2"), parse_ranges("1:2"))
    store.cancel("s.2", parse_ranges("0:1"), parse_ranges("0:1"))
    _, later = listen(after)
    assert [(o.job, o.span) for o in first + later] == [
        ("s.1", parse_ranges("0:1")),
        ("s.1", parse_ranges("1:2")),
        ("s.2", parse_ranges("0:1")),
    ]


def test_a_wake_up_is_no_order(store, submit, listen):
    start = store.last_control()
    submit(0, delay=60)
    after, orders = listen(start)
    assert orders == []
    assert after == store.last_control() > start


def test_a_forged_order_is_passed_over_and_stops_no_other(store, client, listen):
    start = store.last_control()
    forged = ControlMessage(kind="cancel", job="s.1", span=parse_ranges("0:1"))
    flat = forged.encode(Signer("guess", store.keys.queue))
    client.xadd(store.keys.control, dict(zip(flat[::2], flat[1::2], strict=True)))
    store.cancel("s.2", parse_ranges("0:1"), parse_ranges("0:1"))
    after, orders = listen(start)
    assert [order.job for order in orders] == ["s.2"]
    assert after == store.last_control()
    client.expire(store.keys.control, WEEK)


def test_the_latest_span_of_a_job_counts(store, submit, take):
    submit(0)
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    store.cancel("s.1", parse_ranges("0:1,7:9"), parse_ranges("7:9"))
    assert take()[0].cancelled == parse_ranges("0:1,7:9")


def test_marks_go_away_by_themselves(store, client):
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    for key in (store.keys.cancelled, store.keys.control):
        assert 0 < client.ttl(key) <= WEEK


def test_before_any_order_a_supervisor_listens_from_the_start(store):
    assert store.last_control() == b"0"


def test_a_session_that_is_gone_has_all_its_jobs_cancelled(store, submit, take, make_task):
    submit(0, make_task(0, job="s.2"), make_task(0, job="other.1"))
    everything = parse_ranges("0:9007199254740992")
    store.cancel("s", everything, everything)
    assert [d.cancelled for d in take()] == [everything, everything, ()]
