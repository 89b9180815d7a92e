"""bury: a dead worker is forgotten, but never what it had in hand."""


def consumers(client, key):
    return [c["name"].decode() for c in client.xinfo_consumers(key, "workers")]


def test_a_worker_with_a_task_in_hand_is_not_buried(store, submit, take, finish):
    store.join("w1", {})
    submit(0)
    (held,) = take("w1")
    assert store.forget_worker("w1", ["high", "default"]) is False
    assert list(store.workers()) == ["w1"]
    assert store.held(["default"], "w1") == [held]
    store.settle([finish(held)])
    assert store.forget_worker("w1", ["high", "default"]) is True


def test_a_worker_with_a_task_of_its_own_lane_in_hand_is_not_buried(store, make_task, take):
    store.join("w1", {})
    store.everywhere(["w1"], [make_task(0), make_task(0)])
    take("w1", lanes=["@w1"])
    assert store.forget_worker("w1", ["default"]) is False


def test_a_buried_worker_leaves_no_trace(store, client, submit, take, finish):
    store.join("w1", {})
    submit(0)
    store.settle([finish(d) for d in take("w1")])
    assert consumers(client, store.keys.lane("default")) == ["w1"]
    assert store.forget_worker("w1", ["high", "default", "low"]) is True
    assert consumers(client, store.keys.lane("default")) == []
    assert store.workers() == {}
    assert client.exists(store.keys.lane("@w1")) == 0


def test_the_others_are_left_alone(store, submit, take):
    store.join("w1", {})
    store.join("w2", {})
    submit(0)
    (held,) = take("w2")
    assert store.forget_worker("w1", ["high", "default"]) is True
    assert store.held(["default"], "w2") == [held]
    assert list(store.workers()) == ["w2"]


def test_burying_twice_is_allowed(store):
    store.join("w1", {})
    assert store.forget_worker("w1", ["default"]) is True
    assert store.forget_worker("w1", ["default"]) is True


def test_lanes_that_are_gone_or_not_served_yet_do_not_matter(store, submit):
    store.join("w1", {})
    submit(0, lane="gpu")
    assert store.forget_worker("w1", ["gpu", "nowhere"]) is True
    assert store.lanes(["gpu"])[0]["waiting"] == 1


def test_what_it_has_not_read_of_its_own_lane_is_in_its_hand(store, make_task):
    store.join("w1", {})
    store.everywhere(["w1"], [make_task(0), make_task(0)])
    assert store.forget_worker("w1", ["default"]) is False
    assert [held.task.n for held in store.held(["@w1"], "w1")] == [0]
