"""settle: whoever acknowledges an entry writes what follows from it; nobody else does."""

import threading

import pytest

from nbstreamq.wire.item_ranges import format_ranges, parse_ranges, split
from nbstreamq.wire.keys import DAY, WEEK
from nbstreamq.wire.messages import Event
from nbstreamq.wire.settlement import Requeue, Settlement
from tests.wire.reading import read_events


def spans(deliveries):
    return [format_ranges(d.task.span) for d in deliveries]


@pytest.fixture
def chunk(submit, take, make_task):
    """A delivered task of 10 items."""
    submit(make_task(0, span=parse_ranges("0:10")))
    return take()[0]


def rest(delivery, span="4:10"):
    settlement = Settlement(delivery=delivery)
    settlement.continue_with(delivery.task.again(parse_ranges(span)))
    return settlement


def test_a_settled_entry_is_gone_and_its_event_is_there(store, submit, take, finish, bodies):
    submit(0)
    assert store.settle([finish(d) for d in take()]) == [True]
    assert bodies() == [b"result"]
    (counts,) = store.lanes(["default"])
    assert (counts["waiting"], counts["running"]) == (0, 0)


def test_the_second_to_settle_an_entry_writes_nothing(store, chunk, finish, bodies, take):
    late = finish(chunk, b"late")
    late.continue_with(chunk.task)
    assert store.settle([finish(chunk, b"first")]) == [True]
    assert store.settle([late]) == [False]
    assert bodies() == [b"first"]
    assert take() == []


def test_one_late_entry_does_not_stop_the_others(store, submit, take, finish, bodies):
    submit(0, 1, 2)
    first, second, third = take()
    store.settle([finish(second, b"2")])
    batch = [finish(first, b"1"), finish(second, b"again"), finish(third, b"3")]
    assert store.settle(batch) == [True, False, True]
    assert bodies() == [b"2", b"1", b"3"]


def test_of_many_who_settle_an_entry_one_wins(store, submit, take, finish, bodies):
    submit(*range(30))
    held = take()
    won = []

    def settle():
        mine = store.clone()
        for delivery in held:
            won.extend(mine.settle([finish(delivery)]))
        mine.close()

    rivals = [threading.Thread(target=settle) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert (won.count(True), len(won)) == (30, 120)
    assert len(bodies()) == 30


def test_several_events_of_an_entry_come_in_order(store, chunk):
    events = [Event(kind="output", job="s.1", n=0, worker="w1", body=b"%d" % i) for i in range(5)]
    store.settle([Settlement(delivery=chunk, events=events)])
    assert read_events(store, "s", b"0", 0)[1] == events


def test_a_successor_keeps_the_payload_and_changes_what_differs(store, chunk, take):
    task = chunk.task.again(parse_ranges("2:3,7:9"), attempt=1, losses=2)
    store.settle([Settlement(delivery=chunk, successors=[Requeue(task=task)])])
    (delivery,) = take()
    assert delivery.task == task
    assert delivery.entry_id > chunk.entry_id


def test_a_rest_is_halved_when_the_lane_is_idle(store, chunk, take):
    store.settle([rest(chunk)])
    assert spans(take()) == ["4:7", "7:10"]


def test_a_rest_stays_whole_when_others_wait(store, chunk, submit, take):
    submit(1)
    store.settle([rest(chunk)])
    assert spans(take()) == ["0:1", "4:10"]


def test_who_is_running_elsewhere_does_not_wait(store, submit, take, make_task):
    submit(make_task(0, span=parse_ranges("0:10")), 1)
    chunk, _other = take()
    store.settle([rest(chunk)])
    assert spans(take()) == ["4:7", "7:10"]


def test_a_rest_of_one_item_is_not_halved(store, chunk, take):
    store.settle([rest(chunk, "9:10")])
    assert spans(take()) == ["9:10"]


def test_two_rests_in_one_batch_count_for_each_other(store, submit, take, make_task):
    submit(make_task(0, span=parse_ranges("0:10")), make_task(10, span=parse_ranges("0:10")))
    store.settle([rest(d) for d in take()])
    assert spans(take()) == ["4:7", "7:10", "4:10"]


def test_a_delayed_successor_waits_until_it_is_due(store, chunk, take, wait_until):
    task = chunk.task.again(chunk.task.span, attempt=1)
    newest = store.last_control()
    store.settle([Settlement(delivery=chunk, successors=[Requeue(task=task, delay=0.05)])])
    assert take() == []
    assert store.last_control() > newest, "the supervisors must be woken"
    wait_until(lambda: store.promote(["default"]) is None, describe="the task to be due")
    assert [d.task for d in take()] == [task]


@pytest.mark.parametrize("delay", [0.0004, 0.0])
def test_a_delay_of_less_than_a_millisecond_is_none(store, chunk, take, delay):
    successor = Requeue(task=chunk.task, delay=delay)
    assert store.settle([Settlement(delivery=chunk, successors=[successor])]) == [True]
    assert [d.task for d in take()] == [chunk.task]


def test_a_lane_that_the_server_lost_is_just_too_late(store, chunk, client, bodies):
    client.delete(store.keys.lane("default"))
    assert store.settle([rest(chunk)]) == [False]
    assert bodies() == []
    store.ensure_lanes(["default"])


def test_events_go_to_the_session_of_their_job(store, take, finish, make_task):
    for session in ("one", "two"):
        task = store.encode_task(make_task(0, job=f"{session}.1"))
        store.submit(session, 1, [("default", 0.0, task, "")])
    store.settle([finish(d, d.task.job.encode()) for d in take()])
    for session in ("one", "two"):
        (event,) = read_events(store, session, b"0", 0)[1]
        assert event.body == session.encode() + b".1"


def test_what_a_deleted_job_still_prints_harms_no_call_of_others(
    store, submit, take, finish, make_task, client
):
    """A thread of an earlier task may print while another's result is sent."""
    submit(make_task(0))
    settlement = finish(*take())
    stray = Event(kind="output", job="sweep:1", n=0, worker="w", body=b"[]")
    settlement.events.insert(0, stray)
    assert store.settle([settlement]) == [True]
    (event,) = read_events(store, "s", b"0", 0)[1]
    assert event.kind == "finished"
    assert not client.exists(store.keys.events("sweep:1"))


def test_events_for_a_session_that_has_ended_leave_nothing(
    store, submit, take, finish, make_task, client
):
    submit(make_task(0), make_task(1))
    first, second = take()
    assert store.settle([finish(first)]) == [True]
    store.forget_session("s")
    assert store.settle([finish(second)]) == [True]
    store.publish([Event(kind="output", job="s.1", n=0, worker="w")])
    assert not client.exists(store.keys.events("s"))


def test_2000_entries_in_one_batch(store, submit, take, finish, make_task):
    submit(*(make_task(n, span=parse_ranges("0:10")) for n in range(2000)))
    batch = [finish(d) for d in take(count=2000)]
    for settlement in batch:
        settlement.continue_with(settlement.delivery.task.again(parse_ranges("5:10")))
    assert store.settle(batch) == [True] * 2000
    assert len(take(count=5000)) == 2001, "the first is halved, all others find it waiting"


def test_settling_nothing_is_allowed(store):
    assert store.settle([]) == []


def test_events_go_away_by_themselves(store, submit, take, finish, client):
    submit(0)
    store.settle([finish(d) for d in take()])
    assert WEEK - DAY < client.ttl(store.keys.events("s")) <= WEEK  # a laptop may sleep


class TestOfANamedJob:
    JOB = "j:1"

    @pytest.fixture
    def named(self, store, make_task):
        """``named(**changes)``: a task of the job ``j:1``, which there is."""
        assert store.open_job("j", self.JOB, {"function": "f"}, instead_of="")
        return lambda **changes: make_task(0, job=self.JOB, span=parse_ranges("0:10"), **changes)

    @pytest.fixture
    def done(self):
        """``done(delivery, n_items)``: the settlement of the first items, and of what is left."""

        def done(delivery, n_items=10):
            first, rest = split(delivery.task.span, n_items)
            event = Event(kind="finished", job=self.JOB, n=0, span=first, worker="w1")
            settlement = Settlement(delivery=delivery, events=[event], ended=(n_items, 0, 0))
            if rest:
                settlement.continue_with(delivery.task.again(rest))
            return settlement

        return done

    @pytest.fixture
    def counts(self, store):
        """``counts()``: how many items are done, and how many events say so."""

        def counts():
            events = store.history(self.JOB, b"0")[1]
            return store.job_record(self.JOB).n_done, [e.kind for e in events].count("finished")

        return counts

    @pytest.mark.parametrize("n_items", [10, 4])
    def test_a_copy_counts_for_nothing(self, store, submit, take, named, done, counts, n_items):
        submit(named())
        submit(named())
        first, copy = take()
        assert store.settle([done(first, n_items)]) == [True]
        n_waiting = store.lanes(["default"])[0]["waiting"]
        assert store.settle([done(copy, n_items)]) == [2]
        assert counts() == (n_items, 1)
        (lane,) = store.lanes(["default"])
        assert (lane["waiting"], lane["running"]) == (n_waiting, 0)
        assert store.refused() == {"replayed task": 1}
        assert [e.claim for e in store.dead()] == ["j:1-0"]

    def test_what_goes_back_as_it_is_comes_again(self, store, submit, take, named, done, counts):
        submit(named())
        (delivery,) = take()
        again = [Requeue(task=delivery.task)]
        assert store.settle([Settlement(delivery=delivery, successors=again)]) == [True]
        assert store.settle([done(*take())]) == [True]
        assert counts() == (10, 1)

    def test_a_lost_reply_is_no_copy(self, store, submit, take, named, done, counts):
        submit(named())
        (delivery,) = take()
        assert store.settle([done(delivery)]) == [True]
        assert store.settle([done(delivery)]) == [False]
        assert counts() == (10, 1)
        assert store.refused() == {}

    def test_a_rerun_is_no_copy(self, store, submit, take, named, done, counts):
        submit(named(), named(run=1))
        assert store.settle([done(d) for d in take()]) == [True, True]
        assert store.refused() == {}

    def test_what_is_remembered_lives_as_long_as_the_job(
        self, store, submit, take, named, done, client
    ):
        key = store.keys.settled(self.JOB)
        submit(named())
        store.settle([done(*take())])
        assert 0 < client.ttl(key) <= WEEK
        store.keep_job(self.JOB)
        assert client.ttl(key) == -1
        store.delete_job("j", self.JOB)
        assert not client.exists(key)
        submit(named())
        store.settle([done(*take())])
        assert not client.exists(key)
