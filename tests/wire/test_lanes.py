"""Which lanes are in use, and who hears of it."""

import pytest

from nbstreamq.wire.keys import RARE


def test_at_first_no_rare_lane_is_in_use(store, submit):
    submit(0)
    assert store.used_lanes() == frozenset()


@pytest.mark.parametrize("lane", RARE)
def test_a_rare_lane_is_in_use_from_its_first_task_on(store, submit, lane):
    submit(0, lane=lane)
    assert store.used_lanes() == {lane}


def test_it_stays_in_use_when_the_task_is_done(store, submit, take, finish):
    submit(0, lane="high")
    store.settle([finish(d) for d in take(lanes=["high"])])
    assert store.used_lanes() == {"high"}


@pytest.mark.parametrize("delay", [0.0, 60.0])
def test_supervisors_are_woken_by_the_first_task_of_a_rare_lane(store, submit, delay):
    newest = store.last_control()
    submit(0, lane="low", delay=delay)
    assert store.last_control() > newest


def test_they_are_not_by_others(store, submit):
    submit(0, lane="low")
    newest = store.last_control()
    submit(1, lane="low")
    submit(2, lane="default")
    submit(3, lane="gpu")
    assert store.last_control() == newest


def test_a_batch_may_use_several_lanes(store, make_task):
    lanes = ["default", "high", "low", "high"]
    batch = [(lane, 0.0, store.encode_task(make_task(n)), "") for n, lane in enumerate(lanes)]
    store.submit("s", 1, batch)
    assert store.used_lanes() == {"high", "low"}


def test_what_is_no_rare_lane_is_left_out(store, submit, client):
    submit(0, lane="high")
    client.hset(store.keys.lanes, mapping={b"\xff": 1, "default": 1, "nested9": 1})
    assert store.used_lanes() == {"high"}


def test_all_are_taken_to_be_in_use_where_that_is_not_told(store, client):
    client.set(store.keys.lanes, "no hash", ex=60)
    assert store.used_lanes() == frozenset(RARE)


def test_what_others_put_into_a_rare_lane_is_seen(store, client):
    client.xadd(store.keys.lane("nested3"), {"no": "task"})
    assert store.used_lanes() == {"nested3"}
