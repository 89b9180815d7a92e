"""heartbeat: who lives says so, and learns who fell silent."""

import time

import pytest

from nbstreamq.protocol.keys import WEEK


@pytest.fixture
def silent_node(store, client):
    """Let a node have sent its last heartbeat a minute ago, by the server's clock."""
    seconds, _ = client.time()
    client.zadd(store.keys.nodes, {"gone": (seconds - 60) * 1000})


def test_a_silent_node_is_told(store, silent_node):
    assert store.heartbeat("here", 30, {}) == ["gone"]


def test_a_node_that_was_heard_of_lately_is_not(store, silent_node):
    assert store.heartbeat("here", 90, {}) == []


def test_nobody_is_silent_to_itself(store, silent_node):
    assert store.heartbeat("gone", 30, {}) == []


def test_a_node_falls_silent_after_a_while(store):
    store.heartbeat("there", 1, {})
    time.sleep(0.06)
    assert store.heartbeat("here", 0.05, {}) == ["there"]


def test_a_forgotten_node_is_silent_no_more(store, silent_node):
    store.forget_node("gone")
    assert store.heartbeat("here", 30, {}) == []


def test_workers_are_described_to_all(store):
    described = {"w1": {"node": "here", "lanes": ["default", "gpu"]}, "w2": {"node": "here"}}
    store.heartbeat("here", 30, described)
    assert store.workers() == described
    assert "gpu" in store.known_lanes()


def test_300_workers_of_one_node(store):
    described = {f"w{i}": {"node": "here", "pid": i} for i in range(300)}
    store.heartbeat("here", 30, described)
    assert store.workers() == described


def test_a_worker_s_own_lane_lives_as_long_as_it_does(store, client):
    store.join("w1", {"node": "here"})
    own = store.keys.lane("@w1")
    client.expire(own, 10)
    store.heartbeat("here", 30, {"w1": {"node": "here"}})
    assert client.ttl(own) > WEEK - 10


def test_what_nobody_renews_goes_away(store, client):
    store.heartbeat("here", 30, {"w1": {}})
    for key in (store.keys.nodes, store.keys.workers):
        assert 0 < client.ttl(key) <= WEEK
