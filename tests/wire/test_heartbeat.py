"""heartbeat: who lives says so, and learns who fell silent."""

import pytest

from nbstreamq.wire.keys import WEEK

HOUR = 3600_000


@pytest.fixture
def set_back(store, client):
    """Set the server's clock back an hour: all that it wrote before seems to be from later."""

    def set_back():
        for key in (store.keys.nodes, store.keys.delayed("default")):
            for member, score in client.zrange(key, 0, -1, withscores=True):
                client.zadd(key, {member: score + HOUR})

    return set_back


def test_all_nodes_and_their_heartbeats_are_told(store, client):
    store.heartbeat("there", {})
    _, beats = store.clone().heartbeat("here", {})
    assert set(beats) == {"there", "here"}
    seconds, _ = client.time()
    assert all(abs(beat / 1000 - seconds) < 30 for beat in beats.values())


def test_a_forgotten_node_is_not_told(store):
    store.heartbeat("gone", {})
    store.forget_node("gone")
    assert set(store.heartbeat("here", {})[1]) == {"here"}


def test_a_clock_that_is_set_back_is_noticed_once(store, set_back):
    others = store.clone(), store.clone()
    for k, node in enumerate((store, *others)):
        node.heartbeat(f"node{k}", {})
    set_back()

    steps = [node.heartbeat(f"node{k}", {})[0] for k, node in enumerate((store, *others))]
    assert steps == [pytest.approx(HOUR / 1000, abs=30), 0, 0]
    assert store.heartbeat("node0", {})[0] == 0


def test_a_new_node_does_not_judge_the_clock(store, set_back):
    store.heartbeat("node0", {})
    set_back()
    assert store.clone().heartbeat("node1", {})[0] == 0


def test_delayed_tasks_keep_their_delay(store, set_back, make_task, client):
    store.heartbeat("here", {})
    store.submit("s", 1, [("default", 60.0, store.encode_task(make_task(0)), "")])
    set_back()
    assert store.promote(["default"]) > 3600

    step, _ = store.heartbeat("here", {})
    store.hasten(step, ["default"])
    assert store.promote(["default"]) == pytest.approx(60, abs=30)
    assert client.xrevrange(store.keys.control, count=1)[0][1] == {b"kind": b"due"}


def test_workers_are_described_to_all(store):
    described = {"w1": {"node": "here", "lanes": ["default", "gpu"]}, "w2": {"node": "here"}}
    store.heartbeat("here", described)
    assert store.workers() == described
    assert "gpu" in store.known_lanes()


def test_300_workers_of_one_node(store):
    described = {f"w{i}": {"node": "here", "pid": i} for i in range(300)}
    store.heartbeat("here", described)
    assert store.workers() == described


def test_a_worker_s_own_lane_lives_as_long_as_it_does(store, client):
    store.join("w1", {"node": "here"})
    own = store.keys.lane("@w1")
    client.expire(own, 10)
    store.heartbeat("here", {"w1": {"node": "here"}})
    assert client.ttl(own) > WEEK - 10


def test_what_nobody_renews_goes_away(store, client):
    store.heartbeat("here", {"w1": {}})
    for key in (store.keys.nodes, store.keys.workers):
        assert 0 < client.ttl(key) <= WEEK
