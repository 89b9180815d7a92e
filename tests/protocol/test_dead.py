"""The dead stream: what was refused or given up is listed, can be found again, and is bounded."""

import pytest

from nbstreamq.protocol.dead import DeadEntry
from nbstreamq.protocol.keys import WEEK
from nbstreamq.protocol.refusal import DEAD_ENTRIES
from nbstreamq.protocol.settlement import GivenUp, Settlement
from nbstreamq.protocol.signing import Signer
from nbstreamq.protocol.store import Store


@pytest.fixture
def give_up(store):
    """``give_up(delivery, reason)``: settle it as the supervisor does when it is lost for good."""

    def give_up(*deliveries, reason="lost"):
        settlements = []
        for d in deliveries:
            what = GivenUp(lane=d.lane, task=d.task, reason=reason)
            settlements.append(Settlement(delivery=d, given_up=[what]))
        store.settle_lost(settlements)

    return give_up


def test_nothing_is_dead_at_first(store):
    assert store.dead() == []


def test_what_is_given_up_is_listed_with_its_payload(store, submit, take, give_up, make_task):
    submit(make_task(7, losses=2), lane="low")
    give_up(*take(), reason="lost its worker 3 times")
    (entry,) = store.dead()
    assert entry == DeadEntry(
        entry_id=entry.entry_id,
        given_up=True,
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
    store.forget_dead(store.dead()[1].entry_id)
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
    what = GivenUp(lane=lost.lane, task=lost.task, reason="lost")
    store.settle_lost([finish(done), Settlement(delivery=lost, given_up=[what])])
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


def test_only_the_newest_are_kept(store, submit, take, give_up, client):
    client.xadd(store.keys.dead, {"first": "of all"})
    for _ in range(2):
        submit(*range(DEAD_ENTRIES))
        give_up(*take(count=DEAD_ENTRIES))
    assert DEAD_ENTRIES <= client.xlen(store.keys.dead) < DEAD_ENTRIES + 200
    assert store.dead()[-1].claim == f"s.1-{DEAD_ENTRIES - 1}"


def test_a_stranger_s_task_is_listed_with_what_it_claims(
    store, client, queue_name, make_task, take
):
    stranger = Signer("guess", queue_name)
    flat = make_task(9).encode(stranger)
    client.execute_command("XADD", store.keys.lane("low"), "*", *flat)
    take()
    (entry,) = store.dead()
    assert (entry.given_up, entry.task) == (False, None)
    assert (entry.source, entry.lane, entry.claim) == ("lane:low", "low", "s.1-9")
    assert "another secret" in entry.reason


def test_who_knows_its_secret_can_read_it(store, client, queue_name, make_task, take):
    """As after a change of the secret: it was refused by who did not know the new one yet."""
    other = Store(client, queue_name, Signer("new", queue_name))
    client.execute_command("XADD", store.keys.lane("low"), "*", *other.encode_task(make_task(9)))
    take()
    (entry,) = other.dead()
    assert (entry.task, entry.given_up) == (make_task(9), False)
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
    assert (entry.given_up, entry.task) == (False, None)
    assert len(repr(entry)) < 2000


def test_a_sealed_entry_of_another_queue_is_not_believed(store, client, queue_name, make_task):
    what = GivenUp(lane="low", task=make_task(1), reason="lost")
    for signer in (Signer("guess", queue_name), Signer("secret", "other")):
        client.xadd(store.keys.dead, {"event": what.seal(signer)})
    client.expire(store.keys.dead, 60)
    assert [e.task for e in store.dead()] == [None, None]
