"""join and everywhere: each worker gets each set-up task, once, whenever it joins."""

import threading

import pytest

from nbstreamq.wire.keys import WEEK


@pytest.fixture
def send(store, make_task):
    """``send(n)``: set-up task `n` for all workers, as a client does it."""

    def send(n, through=store):
        while True:
            names = list(through.workers())
            tasks = [make_task(n)] * (len(names) + 1)
            if through.everywhere(names, tasks):
                return

    return send


def own(store, worker):
    return [d.task.n for d in store.take([], [f"@{worker}"], worker, 100)]


def test_each_worker_gets_the_task_in_its_own_lane(store, send):
    for worker in ("w1", "w2"):
        assert store.join(worker, {}) == []
    send(0)
    assert own(store, "w1") == own(store, "w2") == [0]


def test_each_worker_gets_its_own_message(store, make_task):
    store.join("w1", {})
    store.join("w2", {})
    tasks = [make_task(n) for n in range(3)]
    assert store.everywhere(["w2", "w1"], tasks) is True
    assert (own(store, "w2"), own(store, "w1")) == ([0], [1])
    assert store.join("w3", {}) == [tasks[2]]


def test_a_late_joiner_gets_the_newest_thousand(store, send):
    for n in range(1002):
        send(n)
    assert [task.n for task in store.join("w1", {})] == list(range(2, 1002))


def test_a_late_joiner_gets_what_it_missed_in_order(store, send):
    send(0)
    store.join("w1", {})
    send(1)
    assert [task.n for task in store.join("w2", {})] == [0, 1]
    assert own(store, "w2") == []


@pytest.mark.parametrize("names", [[], ["w1"], ["w1", "w3"], ["w1", "w2", "w3"]])
def test_with_another_set_of_workers_nothing_is_sent(store, make_task, names):
    store.join("w1", {})
    store.join("w2", {})
    assert store.everywhere(names, [make_task(0)] * (len(names) + 1)) is False
    assert own(store, "w1") == own(store, "w2") == store.join("w4", {}) == []


def test_none_is_missed_or_doubled_while_workers_join(store, send):
    received = {}

    def join(worker):
        mine = store.clone()
        setup = [task.n for task in mine.join(worker, {})]
        received[worker] = (mine, setup)

    def ask():
        mine = store.clone()
        for n in range(20):
            send(n, through=mine)
        mine.close()

    threads = [threading.Thread(target=join, args=(f"w{i}",)) for i in range(20)]
    threads.insert(5, threading.Thread(target=ask))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker, (mine, setup) in received.items():
        assert setup + own(mine, worker) == list(range(20)), worker
        mine.close()


def test_300_workers(store, send):
    for i in range(300):
        store.join(f"w{i}", {})
    send(0)
    assert all(own(store, f"w{i}") == [0] for i in range(300))


def test_joining_again_keeps_what_waits_in_the_own_lane(store, send):
    store.join("w1", {})
    send(0)
    store.join("w1", {"pid": 2})
    assert own(store, "w1") == [0]
    assert store.workers() == {"w1": {"pid": 2}}


def test_a_worker_that_never_sends_a_heartbeat_goes_away(store, client):
    store.join("w1", {})
    for key in (store.keys.workers, store.keys.lane("@w1")):
        assert 0 < client.ttl(key) <= WEEK


def test_a_forged_set_up_task_is_left_out_and_keeps_no_worker_out(store, client, send):
    client.xadd(store.keys.setup, {"fn": b"evil", "sig": b"0" * 16})
    client.expire(store.keys.setup, 60)
    send(7)
    assert [task.n for task in store.join("w1", {})] == [7]
