"""The dead stream: what was refused or given up is listed, can be found again, and is bounded."""

import pytest

from nbstreamq.wire.item_ranges import parse_ranges
from nbstreamq.wire.keys import WEEK
from nbstreamq.wire.records import DeadEntry
from nbstreamq.wire.settlement import KEPT_BYTES, PermanentFailure, Settlement
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import DEAD_ENTRIES, Store

#: Of how many entries in the dead stream a sender may be the cause: see settle.lua.
PER_SENDER = 100


@pytest.fixture
def give_up(store):
    """``give_up(*deliveries, reason=)``: settle them as what failed for good."""

    def give_up(*deliveries, reason="lost"):
        store.settle(
            [
                Settlement(delivery=d, given_up=[PermanentFailure(task=d.task, reason=reason)])
                for d in deliveries
            ]
        )

    return give_up


def test_nothing_is_dead_at_first(store):
    assert store.dead() == []


def test_what_is_given_up_is_listed_with_its_payload(store, submit, take, give_up, make_task):
    submit(make_task(7, losses=2), lane="low")
    give_up(*take(), reason="lost its worker 3 times")
    (entry,) = store.dead()
    assert entry == DeadEntry(
        entry_id=entry.entry_id,
        has_failed=True,
        reason="lost its worker 3 times",
        source="lane:low",
        lane="low",
        task=make_task(7, losses=2),
        claim="s.1-7",
    )
    assert store.dead_entry(entry.entry_id) == entry


def test_each_has_an_entry_of_its_own_and_the_newest_is_last(store, submit, take, give_up):
    submit(0, 1, 2)
    give_up(*take())
    assert [e.claim for e in store.dead()] == ["s.1-0", "s.1-1", "s.1-2"]
    store.forget_dead([store.dead()[1]])
    assert [e.claim for e in store.dead()] == ["s.1-0", "s.1-2"]


def test_who_comes_too_late_gives_nothing_up(store, submit, take, give_up, finish):
    submit(0)
    (delivery,) = take()
    store.settle([finish(delivery)])
    give_up(delivery)
    assert store.dead() == []


def test_others_are_settled_beside_it(store, submit, take, give_up, finish, bodies):
    submit(0, 1)
    lost, done = take()
    what = PermanentFailure(task=lost.task, reason="lost")
    store.settle([finish(done), Settlement(delivery=lost, given_up=[what])])
    assert [e.claim for e in store.dead()] == ["s.1-0"]
    assert bodies() == [b"result"]
    assert store.held(["default"], "w1") == []


def test_it_goes_away_by_itself_and_not_before_its_function(store, submit, take, give_up, client):
    store.put_function("f" * 8, b"function")
    client.expire(store.keys.function("f" * 8), 60)
    submit(0)
    give_up(*take())
    for key in (store.keys.dead, store.keys.function("f" * 8)):
        assert WEEK - 60 < client.ttl(key) <= WEEK


def test_only_the_newest_are_kept(store, submit, take, give_up, client, make_task):
    client.xadd(store.keys.dead, {"first": "of all"})
    sessions = range(2 * DEAD_ENTRIES // PER_SENDER)
    for session in sessions:
        submit(*(make_task(n, job=f"s{session}.1") for n in range(PER_SENDER)))
        give_up(*take(count=PER_SENDER))
    assert DEAD_ENTRIES <= client.xlen(store.keys.dead) < DEAD_ENTRIES + 200
    assert store.dead()[-1].claim == f"s{sessions[-1]}.1-{PER_SENDER - 1}"


def test_one_sender_s_failures_push_out_only_his_own(store, submit, take, give_up, make_task):
    submit(make_task(0, job="other.1"))
    give_up(*take())
    for n in range(PER_SENDER + 20):
        submit(make_task(n, job=f"s.{n}"))
    give_up(*take(count=2 * PER_SENDER))
    found = [e.task.job for e in store.dead()]
    assert found == ["other.1", *(f"s.{n}" for n in range(20, PER_SENDER + 20))]


def test_the_items_of_a_slice_share_an_entry(store, submit, take, make_task):
    submit(make_task(100, span=parse_ranges("0:50")))
    (delivery,) = take()
    failed = delivery.task.again(parse_ranges("3:5,7:8"), attempt=2, losses=1)
    what = PermanentFailure(task=failed, reason="ValueError: no")
    store.settle([Settlement(delivery=delivery, given_up=[what])])
    (entry,) = store.dead()
    assert (entry.task, entry.items) == (failed, (103, 104, 107))
    assert store.letters_of("s.1") == [entry]
    assert store.letters_of("s.2") == []


def test_the_arguments_are_kept_unless_they_are_large(store, submit, take, give_up, make_task):
    large, small = (make_task(n, args=bytes(KEPT_BYTES + 1 - n)) for n in range(2))
    submit(large, small)
    give_up(*take())
    assert [e.task for e in store.dead()] == [large.with_changes(args=b""), small]


@pytest.mark.parametrize("key", ["dead", "letters"])
def test_spoilt_books_hold_no_settlement_up(
    store, submit, take, give_up, client, key, bodies, finish
):
    spoilt = {"dead": store.keys.dead, "letters": store.keys.letters("s")}[key]
    client.set(spoilt, "nonsense", ex=60)
    submit(0, 1)
    lost, done = take()
    what = PermanentFailure(task=lost.task, reason="lost")
    settled = store.settle([Settlement(delivery=lost, given_up=[what]), finish(done)])
    assert settled == [True, True]
    assert bodies() == [b"result"]


def test_a_stranger_s_task_is_listed_with_what_it_claims(
    store, client, queue_name, make_task, take
):
    stranger = Signer("guess", queue_name)
    flat = make_task(9).encode(stranger)
    client.execute_command("XADD", store.keys.lane("low"), "*", *flat)
    take()
    (entry,) = store.dead()
    assert (entry.has_failed, entry.task) == (False, None)
    assert (entry.source, entry.lane, entry.claim) == ("lane:low", "low", "s.1-9")
    assert "another secret" in entry.reason


def test_who_knows_its_secret_can_read_it(store, client, queue_name, make_task, take):
    """As after a change of the secret: it was refused by who did not know the new one yet."""
    other = Store(client, queue_name, Signer("new", queue_name))
    client.execute_command("XADD", store.keys.lane("low"), "*", *other.encode_task(make_task(9)))
    take()
    (entry,) = other.dead()
    assert (entry.task, entry.has_failed) == (make_task(9), False)
    other.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"hello": "world"},
        {"event": "evil pickle"},
        {"event": b"\xff" * 40, "more": "x"},
        {"refused": b"\xff", "from": b"\xff"},
        {
            "refused": "x" * 10_000,
            "from": "lane:" + "y" * 10_000,
            "job": "z" * 10_000,
            "n": b"\xff",
        },
        {"refused": "alone"},
    ],
)
def test_what_somebody_wrote_there_is_listed_as_such(store, client, fields):
    client.xadd(store.keys.dead, fields)
    client.expire(store.keys.dead, 60)
    (entry,) = store.dead()
    assert (entry.has_failed, entry.task) == (False, None)
    assert len(repr(entry)) < 2000


@pytest.mark.parametrize("change", [{b"failed": b"x" * 30}, {b"from": b"lane:high"}, {b"n": b"7"}])
def test_a_changed_entry_is_not_believed(store, submit, take, give_up, client, change):
    submit(0)
    give_up(*take())
    ((_, fields),) = client.xrange(store.keys.dead)
    client.xadd(store.keys.dead, fields | change)
    entry = store.dead()[1]
    assert (entry.task, entry.has_failed) == (None, False)
    assert "somebody else" in entry.reason


def test_an_entry_of_another_queue_is_not_believed(
    store, submit, take, give_up, client, queue_name
):
    submit(0)
    give_up(*take())
    for signer in (Signer("guess", queue_name), Signer("secret", "other")):
        other = Store(client, queue_name, signer)
        assert [e.task for e in other.dead()] == [None]
        other.close()
