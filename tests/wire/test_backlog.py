"""A job has as many of its chunks in a lane as there are workers; the next wait in its backlog."""

import itertools

import pytest

from nbstreamq.wire.item_ranges import EVERYTHING, ONE, split
from nbstreamq.wire.keys import MONTH
from nbstreamq.wire.messages import Event
from nbstreamq.wire.records import Chunk
from nbstreamq.wire.settlement import Requeue, Settlement
from nbstreamq.wire.signing import Signer

JOB = "s.1"
#: Longer than what a worker is to have in its lane.
LONG = 1.0


@pytest.fixture
def join(store):
    """``join(n)``: there are so many workers."""

    def join(n):
        for k in range(n):
            store.join(f"w{k}", {"lanes": ["default"]})

    store.ensure_lanes(["default"])
    return join


@pytest.fixture
def send(store, make_task):
    """``send(n, job)``: submit so many chunks."""
    batches = itertools.count(1)

    def send(n, job=JOB, **changes):
        tasks = [make_task(k, job=job, **changes) for k in range(n)]
        batch = [("default", 0.0, store.encode_task(task), job) for task in tasks]
        store.submit("s", next(batches), batch)

    return send


@pytest.fixture
def after(store):
    """``after(delivery, *requeues, seconds=)``: settle it, after some work."""

    def after(delivery, *successors, seconds=LONG):
        event = Event.about(delivery.task, ONE, kind="finished", worker="w0", seconds=seconds)
        settlement = Settlement(delivery=delivery, events=[event], successors=list(successors))
        assert store.settle([settlement]) == [True]

    return after


@pytest.fixture
def add_named(store, join, make_task):
    """``add_named(*lanes)``: one worker, and the job ``j`` with a chunk in each lane."""

    def add_named(*lanes):
        join(1)
        store.open_job("j", "j:1", {"function": "f"}, instead_of="")
        for n, lane in enumerate(lanes):
            task, chunk = store.encode_task(make_task(n, job="j:1")), Chunk(n, 1, "digest")
            store.append_chunk("j:1", chunk, b"x", lane=lane, delay=0.0, task=task)

    return add_named


def numbers(deliveries):
    return [d.task.n for d in deliveries]


def n_kept(client, store, job=JOB):
    return client.llen(store.keys.backlog(f"default:{job}"))


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_as_many_chunks_are_in_the_lane_as_there_are_workers(store, join, send, take, n_workers):
    join(n_workers)
    send(5)
    assert store.lanes(["default"])[0]["waiting"] == 5
    assert numbers(take()) == list(range(max(1, n_workers)))


def test_the_next_one_follows_when_one_is_finished(join, send, take, after):
    join(2)
    send(5)
    first, second = take()
    after(second)
    (third,) = take()
    assert third.task.n == 2
    after(first)
    after(third)
    assert numbers(take()) == [3, 4]


def test_the_rest_of_a_chunk_meets_no_other_chunk_of_its_job(join, send, take, after):
    join(1)
    send(3, span=(range(4),))
    (delivery,) = take()
    after(delivery, Requeue(task=delivery.task.again((range(1, 4),))))
    (rest,) = take()
    assert (rest.task.n, rest.task.span) == (0, (range(1, 4),))


def test_another_job_does_not_wait_for_the_first(join, send, take):
    join(2)
    send(100)
    send(100, job="s.2")
    assert [(d.task.job, d.task.n) for d in take()] == [
        ("s.1", 0),
        ("s.1", 1),
        ("s.2", 0),
        ("s.2", 1),
    ]


def test_short_work_brings_more(join, send, take, after):
    join(1)
    send(200)
    n = 0
    while deliveries := take():
        n = max(n, len(deliveries))
        for delivery in deliveries:
            after(delivery, seconds=1e-5)
    assert n > 50


def test_a_worker_that_joins_gets_a_chunk_at_once(join, send, take):
    join(1)
    send(4)
    assert numbers(take()) == [0]
    join(3)
    assert numbers(take()) == [1, 2]


def test_more_follow_for_a_worker_that_joined_while_nothing_waited(join, send, take, after):
    join(1)
    send(1)
    join(3)
    send(6)
    assert len(take()) == 3


def test_halves_are_not_made_while_chunks_wait(store, join, send, take):
    join(1)
    send(2, span=(range(4),))
    (delivery,) = take()
    settlement = Settlement(delivery=delivery)
    settlement.continue_with(delivery.task)
    store.settle([settlement])
    assert len(take()) == 1
    send(1, job="s.2", span=(range(4),))
    (delivery,) = take()
    settlement = Settlement(delivery=delivery)
    settlement.continue_with(delivery.task)
    store.settle([settlement])
    halves = take()
    assert [d.task.span for d in halves] == [*split((range(4),), 2)]
    store.settle([Settlement(delivery=half) for half in halves])


def test_what_is_tried_again_later_makes_room(join, send, take, after):
    join(1)
    send(2)
    (delivery,) = take()
    after(delivery, Requeue(task=delivery.task.again(ONE, attempt=1), delay=60.0))
    assert numbers(take()) == [1]


def test_what_is_tried_again_at_once_makes_none(join, send, take, after):
    join(1)
    send(2)
    (delivery,) = take()
    after(delivery, Requeue(task=delivery.task.again(ONE, attempt=1)))
    (again,) = take()
    assert (again.task.n, again.task.attempt) == (0, 2)


def test_what_is_released_or_moved_to_its_home_makes_no_room(store, join, send, take):
    join(1)
    send(2)
    (delivery,) = take()
    store.settle([Settlement(delivery=delivery, successors=[Requeue(task=delivery.task)])])
    (delivery,) = take()
    assert delivery.task.n == 0
    lane = "default@0f0f0f0f311"
    store.ensure_lanes([lane])
    moved = Requeue(task=delivery.task, lane=lane)
    store.settle([Settlement(delivery=delivery, successors=[moved])])
    assert take() == []
    (delivery,) = take(lanes=[lane])
    store.settle([Settlement(delivery=delivery)])
    assert numbers(take()) == [1]  # in the lane that all workers serve


def test_a_delayed_chunk_is_not_counted(store, join, send, take, make_task, after):
    join(1)
    send(1)
    store.submit("s", 7, [("default", 60.0, store.encode_task(make_task(9)), JOB)])
    (delivery,) = take()
    after(delivery)
    send_again = [("default", 0.0, store.encode_task(make_task(3)), JOB)]
    store.submit("s", 8, send_again)
    assert numbers(take()) == [3]


def test_a_settlement_that_is_too_late_makes_no_room(store, join, send, take):
    join(1)
    send(3)
    (delivery,) = take()
    event = Event.about(delivery.task, ONE, kind="finished", worker="w0", seconds=LONG)
    settlement = Settlement(delivery=delivery, events=[event])
    assert [store.settle([settlement]), store.settle([settlement])] == [[True], [False]]
    assert numbers(take()) == [1]


def test_what_is_cancelled_is_settled_in_large_steps(store, join, send, take):
    join(1)
    send(1000)
    n_steps = 0
    while deliveries := take(count=512):
        n_steps += 1
        store.settle([Settlement(delivery=d) for d in deliveries])
    assert n_steps < 20


def test_a_named_job_goes_on_without_its_client(add_named, take, after):
    add_named("default", "default", "default")
    found = []
    while deliveries := take():
        found.append(numbers(deliveries))
        after(deliveries[0])
    assert found == [[0], [1], [2]]


def test_a_named_job_that_goes_on_in_another_lane(store, add_named, take):
    add_named("default", "default", "low", "low")
    found = []
    while deliveries := take():
        found += [(d.task.n, d.lane) for d in deliveries]
        store.settle([Settlement(delivery=d) for d in deliveries])
    assert sorted(found) == [(0, "default"), (1, "default"), (2, "low"), (3, "low")]


def test_what_runs_again_of_a_named_job_waits_in_the_backlog(store, add_named, take, make_task):
    add_named("default", "default", "default")
    while deliveries := take():
        store.settle([Settlement(delivery=d, ended=(0, 1, 0)) for d in deliveries])
    tasks = [store.encode_task(make_task(n, job="j:1", run=1)) for n in range(3)]
    span = (range(3),)
    record = store.find_job("j")
    store.rerun(record, span, tasks, lane="default", n_cancelled=0, token="t")
    assert numbers(take()) == [0]


def test_a_deleted_job_leaves_no_backlog(store, add_named, take, client):
    add_named("default", "default", "default")
    (delivery,) = take()
    store.delete_job("j", "j:1")
    assert n_kept(client, store, "j:1") == 0
    store.settle([Settlement(delivery=delivery)])
    assert take() == []
    assert not client.hgetall(store.keys.backlogs("default"))


def test_nothing_is_left_when_all_are_done_and_it_would_expire(store, join, send, take, client):
    keys = store.keys
    join(1)
    send(3)
    places = keys.backlog(f"default:{JOB}"), keys.placed(f"default:{JOB}"), keys.backlogs("default")
    assert all(0 < client.ttl(key) <= MONTH for key in places)
    while deliveries := take():
        store.settle([Settlement(delivery=d) for d in deliveries])
    assert not client.exists(*places)


def test_a_spoilt_backlog_harms_no_other_chunk(store, join, send, take, client):
    join(1)
    send(2)
    client.lpush(store.keys.backlog(f"default:{JOB}"), b"\xc1", b"text")
    found = []
    while deliveries := take():
        found += numbers(deliveries)
        store.settle([Settlement(delivery=d) for d in deliveries])
    assert found == [0, 1]


def test_a_message_that_was_settled_as_its_copy_leaves_no_place_taken(
    store, join, send, take, client
):
    join(1)
    send(2)
    (delivery,) = take()
    store.refuse_copy(delivery)
    assert numbers(take()) == [1]


def test_what_somebody_else_deletes_from_a_lane_leaves_no_place_taken(
    store, join, send, take, client
):
    join(2)
    send(5)
    client.xtrim(store.keys.lane("default"), maxlen=0)
    assert store.has_tasks(["default"])
    store.top_up(["default"])
    assert numbers(take()) == [2, 3]
    store.top_up(["default"])  # They are in work.
    assert take() == []


def test_what_waits_lives_as_long_as_there_are_supervisors(store, join, send, client):
    join(1)
    send(2)
    keys = store.keys
    places = keys.backlog(f"default:{JOB}"), keys.placed(f"default:{JOB}"), keys.backlogs("default")
    for key in places:
        client.expire(key, 100)
    store.top_up(["default"])
    assert all(client.ttl(key) > 100 for key in places)


def test_what_is_in_the_lane_of_a_home_keeps_its_place(store, join, send, take):
    join(1)
    send(2)
    (delivery,) = take()
    lane = "default@0f0f0f0f311"
    store.use_lanes([lane])
    store.ensure_lanes([lane])
    moved = Requeue(task=delivery.task, lane=lane)
    store.settle([Settlement(delivery=delivery, successors=[moved])])
    store.top_up(["default"])
    assert take() == []


def test_a_chunk_that_is_refused_leaves_no_place_taken(
    store, join, send, take, make_task, queue_name
):
    join(1)
    other = Signer("another secret", queue_name)
    store.submit("s", 7, [("default", 0.0, make_task(9).encode(other), JOB)])
    task = store.encode_task(make_task(1))
    store.submit("s", 8, [("default", 0.0, task, JOB)])
    assert take() == []
    assert numbers(take()) == [1]


def test_what_nobody_wants_in_the_lane_of_a_home_makes_room(store, join, send, take, client):
    join(1)
    send(2)
    (delivery,) = take()
    lane = "default@0f0f0f0f311"
    store.ensure_lanes([lane])
    moved = Requeue(task=delivery.task, lane=lane)
    store.settle([Settlement(delivery=delivery, successors=[moved])])
    store.cancel("s", EVERYTHING, EVERYTHING)
    store.drop_unwanted(lane)
    assert numbers(take()) == [1]
