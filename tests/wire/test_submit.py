"""submit: a batch of tasks goes into its lanes, once."""

import pytest

from nbstreamq.wire.keys import WEEK


def numbers(deliveries):
    return [d.task.n for d in deliveries]


def test_tasks_arrive_as_they_were_submitted(submit, take, make_task):
    task = make_task(3, args=bytes(range(256)), opts=b'{"retries": 2}')
    submit(task)
    (delivery,) = take()
    assert delivery.task == task
    assert delivery.lane == "default"


def test_tasks_of_a_lane_keep_their_order(submit, take):
    submit(2, 0, 1)
    assert numbers(take()) == [2, 0, 1]


def test_the_same_batch_sent_again_does_nothing(store, take, make_task):
    batch = [("default", 0.0, store.encode_task(make_task(n)), "") for n in range(3)]
    for _ in range(3):
        store.submit("s", 1, batch)
    assert numbers(take()) == [0, 1, 2]


@pytest.mark.parametrize("n", [1, 3])
def test_a_first_attempt_counts_for_the_second(store, take, make_task, n):
    """It goes another way to the server where the batch is a single task."""
    batch = [("default", 0.0, store.encode_task(make_task(i)), "") for i in range(n)]
    store.submit("s", 1, batch, again=False)
    store.submit("s", 1, batch)
    assert numbers(take()) == list(range(n))


def test_an_older_batch_sent_late_does_nothing(store, take, make_task):
    store.submit("s", 2, [("default", 0.0, store.encode_task(make_task(2)), "")])
    store.submit("s", 1, [("default", 0.0, store.encode_task(make_task(1)), "")])
    assert numbers(take()) == [2]


def test_sessions_number_their_batches_apart(store, take, make_task):
    store.submit("s", 1, [("default", 0.0, store.encode_task(make_task(1)), "")])
    store.submit("t", 1, [("default", 0.0, store.encode_task(make_task(2)), "")])
    assert numbers(take()) == [1, 2]


def test_one_batch_may_fill_several_lanes(store, take, make_task):
    lanes = ["low", "high", "gpu", "low"]
    store.ensure_lanes(["gpu"])
    batch = [(lane, 0.0, store.encode_task(make_task(n)), "") for n, lane in enumerate(lanes)]
    store.submit("s", 1, batch)
    assert numbers(take(lanes=["low"])) == [0, 3]
    assert numbers(take(lanes=["high"])) == [1]
    assert numbers(take(lanes=["gpu"])) == [2]


def test_a_lane_that_no_worker_has_served_yet_keeps_its_tasks(store, submit, take):
    submit(5, lane="gpu")
    store.ensure_lanes(["gpu"])
    assert numbers(take(lanes=["gpu"])) == [5]


def test_a_delayed_task_waits_outside_its_lane(store, submit, take):
    submit(0, delay=60)
    assert take() == []
    (counts,) = store.lanes(["default"])
    assert counts == {"lane": "default", "waiting": 0, "running": 0, "delayed": 1, "over": 0}


@pytest.mark.parametrize("delay", [0.0, 0.0004, -1.0])
def test_a_delay_of_less_than_a_millisecond_is_none(submit, take, delay):
    submit(0, delay=delay)
    assert numbers(take()) == [0]


def test_a_delayed_task_wakes_the_supervisors(store, submit):
    newest = store.last_control()
    submit(0)
    assert store.last_control() == newest
    submit(1, delay=60)
    assert store.last_control() > newest


def test_5000_tasks_in_one_batch(store, take, make_task):
    batch = [
        ("default", 60.0 * (n % 2), store.encode_task(make_task(n, args=b"x" * 50)), "")
        for n in range(5000)
    ]
    store.submit("s", 1, batch)
    (counts,) = store.lanes(["default"])
    assert (counts["waiting"], counts["delayed"]) == (2500, 2500)
    assert numbers(take(count=5000)) == list(range(0, 5000, 2))


def test_what_a_session_keeps_goes_away_by_itself(store, submit, client):
    submit(0, delay=60)
    for key in (store.keys.session("s"), store.keys.control):
        assert 0 < client.ttl(key) <= WEEK


def test_a_session_that_is_done_is_forgotten(store, submit, take, finish, client):
    submit(0)
    store.settle([finish(d) for d in take()])
    store.forget_session("s")
    assert client.exists(store.keys.session("s"), store.keys.events("s")) == 0


def test_who_asks_whether_it_is_remembered_is_kept(store, submit, client):
    store.check_secret()
    submit(0)
    client.expire(store.keys.session("s"), 60)
    assert store.remembers("s", 0)
    assert client.ttl(store.keys.session("s")) > WEEK - 60


def test_who_asks_though_his_number_has_expired_gets_his_results(
    store, submit, take, finish, client
):
    store.check_secret()
    submit(0)
    deliveries = take()
    client.delete(store.keys.session("s"))
    assert store.remembers("s", 0)
    store.settle([finish(d) for d in deliveries])
    assert client.xlen(store.keys.events("s")) == 1


def test_a_batch_that_the_server_does_not_know_is_not_made_known_by_asking(store, submit, client):
    store.check_secret()
    submit(0)
    client.delete(store.keys.session("s"))
    assert not store.remembers("s", 1)
    assert client.exists(store.keys.session("s")) == 0
