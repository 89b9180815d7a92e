"""take: waiting tasks go to a worker, the most urgent first, each to one worker only."""

import threading
import time

import pytest

from nbstreamq.wire.item_ranges import parse_ranges


def numbers(deliveries):
    return [d.task.n for d in deliveries]


def test_urgent_lanes_are_served_first(submit, take):
    submit(1, lane="low")
    submit(2, lane="default")
    submit(3, lane="high")
    assert numbers(take()) == [3, 2, 1]
    assert take() == []


def test_no_more_is_taken_from_a_lane_than_asked_for(submit, take):
    submit(1, 2, 3, lane="high")
    submit(4, 5, 6, lane="low")
    assert numbers(take(count=2)) == [1, 2, 4, 5]
    assert numbers(take(count=2)) == [3, 6]


def test_an_urgent_task_overtakes_what_waits(submit, take):
    submit(1, 2)
    assert numbers(take(count=1)) == [1]
    submit(3, lane="high")
    assert numbers(take(count=1)) == [3, 2]


def test_only_the_asked_lanes_are_served(submit, take):
    submit(1, lane="high")
    assert take(lanes=["default", "low"]) == []


def test_each_task_goes_to_one_worker(store, submit):
    submit(*range(200))
    taken = []

    def work(name):
        mine = store.clone()
        while found := mine.take([], ["default"], name, 3):
            taken.extend(numbers(found))
        mine.close()

    workers = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(taken) == list(range(200))


def test_what_is_cancelled_is_told_on_delivery(store, submit, take, make_task):
    submit(0, make_task(0, job="s.2"))
    store.cancel("s.1", parse_ranges("0:1,4:6"), parse_ranges("0:1"))
    first, second = take()
    assert first.cancelled == parse_ranges("0:1,4:6")
    assert second.cancelled == ()


def test_waiting_returns_a_task_that_comes_later(store, submit):
    later = threading.Timer(0.1, submit, (7,))
    later.start()
    other = store.clone()
    assert numbers(other.take([], ["high", "default"], "w1", 1, block=10)) == [7]
    later.join()
    other.close()


def test_waiting_tells_what_is_cancelled(store, submit):
    submit(0)
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    (delivery,) = store.take([], ["default"], "w1", 1, block=1)
    assert delivery.cancelled == parse_ranges("0:1")


@pytest.mark.parametrize("block", [0, 0.0001, 0.05])
def test_waiting_in_vain_ends_in_time(store, block):
    began = time.monotonic()
    assert store.take([], ["high", "default"], "w1", 1, block=block) == []
    assert time.monotonic() - began < 2


def test_settling_and_taking_is_one_step(store, submit, take, finish, bodies):
    submit(0, 1)
    (held,) = take(count=1)
    (following,) = store.take([finish(held)], ["default"], "w1", 10)
    assert following.task.n == 1
    assert bodies() == [b"result"]


def test_what_a_worker_holds_is_known(store, submit, take, finish):
    submit(0, 1, 2)
    submit(3, lane="high")
    taken = take("w1", count=2)
    take("w2")
    store.settle([finish(taken[0])])
    assert numbers(store.held(["high", "default", "gpu"], "w1")) == [0, 1]
    assert numbers(store.held(["high", "default"], "w2")) == [2]
    assert store.held(["high", "default"], "w3") == []


def test_waiting_and_running_tasks_are_counted(store, submit, take):
    submit(0, 1, 2)
    take(count=1)
    submit(3, delay=60)
    assert store.lanes(["default", "gpu"]) == [
        {"lane": "default", "waiting": 2, "running": 1, "delayed": 1, "over": 0},
        {"lane": "gpu", "waiting": 0, "running": 0, "delayed": 0, "over": 0},
    ]
