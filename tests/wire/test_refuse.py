"""refuse: an entry with a wrong signature is set aside, neither run nor delivered again."""

import pytest

from nbstreamq.wire.keys import WEEK
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store


@pytest.fixture
def stranger(client, queue_name, store, make_task):
    """A client with another secret, that has submitted a task."""
    stranger = Store(client, queue_name, Signer("guess", queue_name))
    stranger.submit("x", 1, [("default", 0.0, stranger.encode_task(make_task(9)), "")])
    yield stranger
    stranger.close()


def test_a_stranger_s_task_is_not_delivered_and_its_neighbours_are(stranger, submit, take):
    submit(0)
    assert [d.task.n for d in take()] == [0]


def test_waiting_passes_over_a_stranger_s_task(store, stranger):
    assert store.take([], ["default"], "w1", 1, block=0.01) == []


def test_a_refused_entry_is_kept_with_the_reason(stranger, store, take, client):
    take()
    ((_, fields),) = client.xrange(store.keys.dead)
    assert fields[b"job"] == b"s.1"
    assert b"another secret" in fields[b"refused"]
    assert 0 < client.ttl(store.keys.dead) <= WEEK


def test_a_refused_entry_is_held_and_counted_no_more(stranger, store, take):
    take()
    assert store.held(["default"], "w1") == []
    assert store.lanes(["default"])[0]["waiting"] == 0
    assert store.forget_worker("w1", ["default"]) is True


def test_an_entry_that_is_no_task_at_all_is_refused(store, take, client):
    client.xadd(store.keys.lane("default"), {"hello": "world"})
    assert take() == []
    assert client.xlen(store.keys.dead) == 1


def test_an_entry_of_thousands_of_fields_is_refused(store, submit, take, client):
    client.xadd(store.keys.lane("default"), {f"field{i}": "x" for i in range(10_000)})
    submit(0)
    assert [d.task.n for d in take()] == [0]
    assert client.xlen(store.keys.dead) == 1


def test_a_task_changed_on_the_server_is_refused(store, submit, take, client):
    submit(0)
    lane = store.keys.lane("default")
    ((entry_id, fields),) = client.xrange(lane)
    client.xdel(lane, entry_id)
    client.xadd(lane, fields | {b"args": b"evil pickle"})
    assert take() == []
    assert client.xlen(store.keys.dead) == 1


def test_a_task_of_another_queue_is_refused(store, client, queue_name, make_task, take):
    other = Signer("secret", queue_name + "-other")
    flat = make_task(0).encode(other)
    client.xadd(store.keys.lane("default"), dict(zip(flat[::2], flat[1::2], strict=True)))
    assert take() == []
