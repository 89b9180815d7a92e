"""Lanes of homes: where tasks wait that only some workers may run."""

import pytest

from nbstreamq.wire.item_ranges import EVERYTHING
from nbstreamq.wire.keys import home_of, is_home_lane, may_run
from nbstreamq.wire.settlement import Requeue, Settlement

LANE = "default@1f3a9c20311"


@pytest.fixture
def move(store, submit, take):
    """``move(n)``: a task that a worker has taken and put into the lane of its home."""

    def move(n=0):
        submit(n)
        (delivery,) = take()
        store.use_lanes([LANE])
        follows = [Requeue(task=delivery.task, lane=LANE)]
        assert store.settle([Settlement(delivery=delivery, successors=follows)]) == [True]
        store.use_lanes([LANE])
        store.ensure_lanes([LANE])

    return move


@pytest.mark.parametrize(
    ("job", "home"),
    [
        ("1f3a9c20311aaaaaaaa.7", "1f3a9c20311"),
        ("aaaaaaaaaaaaaaaa.7@1f3a9c20311", "1f3a9c20311"),
        ("sweep:1f3a9c20311aaaaaaaa", "1f3a9c20311"),
        ("me@home:1f3a9c20311aaaaaaaa", "1f3a9c20311"),
    ],
)
def test_a_job_s_id_tells_its_home(job, home):
    assert home_of(job) == home


@pytest.mark.parametrize(
    "lane", ["default", "@1f3a9c20311", "gpu@1f3a9c20", "default@x", "low@ü" * 8]
)
def test_others_are_no_lanes_of_homes(lane):
    assert not is_home_lane(lane)


@pytest.mark.parametrize(
    ("homes", "home", "expected"),
    [
        ((), "1f3a9c20311", True),
        ((), "1f3a9c20312", False),
        (("1f3a9c20311",), "1f3a9c20311", True),
        (("1f3a9c20311",), "aaaaaaaa311", False),
    ],
)
def test_who_may_run_a_task(homes, home, expected):
    assert may_run(homes, home, "3.11") is expected


def test_a_task_that_moved_is_as_it_was(store, move, make_task, take):
    move(3)

    assert take() == []
    assert [d.task for d in take(lanes=[LANE])] == [make_task(3)]


def test_its_supervisors_hear_of_the_lane(store, move):
    newest = store.last_control()
    move()

    assert store.last_control() > newest
    assert store.home_lanes() == [LANE]
    assert LANE in store.used_lanes()
    assert LANE in store.known_lanes()


def test_it_is_counted_with_its_lane(store, move, submit):
    move(0)
    submit(1)

    (counts,) = store.lanes(["default"])

    assert counts["waiting"] == 2


def test_one_that_holds_anything_is_not_retired(store, move, take):
    move()
    store.retire_lanes([LANE])
    assert store.home_lanes() == [LANE]

    take(lanes=[LANE])  # what is in hand counts
    store.retire_lanes([LANE])
    assert store.home_lanes() == [LANE]


def test_an_empty_one_is_forgotten_and_comes_back(store, move, take, finish, client):
    move()
    store.settle([finish(d) for d in take(lanes=[LANE])])
    store.retire_lanes([LANE])
    assert store.home_lanes() == []
    assert 0 < client.ttl(store.keys.lane(LANE)) <= 86_400

    move(1)
    assert store.home_lanes() == [LANE]
    assert client.ttl(store.keys.lane(LANE)) > 86_400


def test_what_nobody_wants_is_dropped_from_its_front(store, move, client):
    move(0)
    move(1)
    store.drop_unwanted(LANE)
    assert client.xlen(store.keys.lane(LANE)) == 2

    store.cancel("s", EVERYTHING, EVERYTHING)  # as a supervisor does for a kernel that has died
    store.drop_unwanted(LANE)
    assert client.xlen(store.keys.lane(LANE)) == 0
