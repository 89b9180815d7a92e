"""Functions, large values and the queue's secret on the server."""

import pytest

from nbstreamq.errors import SecretMismatch, SignatureError
from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.keys import WEEK
from nbstreamq.wire.messages import Event
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from tests.wire.reading import read_events


@pytest.mark.parametrize("kind", ["function", "value"])
def test_a_value_is_kept_for_a_week(store, client, kind):
    getattr(store, f"put_{kind}")("d1", bytes(range(256)))
    assert getattr(store, f"get_{kind}")("d1") == bytes(range(256))
    assert 0 < client.ttl(getattr(store.keys, kind)("d1")) <= WEEK


@pytest.mark.parametrize("kind", ["function", "value"])
def test_a_value_that_is_not_there_is_none(store, kind):
    assert getattr(store, f"get_{kind}")("d1") is None


def test_a_large_value_comes_back(store):
    store.put_value("big", b"x" * 30_000_000)
    assert store.get_value("big") == b"x" * 30_000_000


@pytest.mark.parametrize("data", [b"", b"evil pickle", b"x" * 100])
def test_a_value_that_someone_else_wrote_is_refused(store, client, data):
    client.set(store.keys.function("d1"), data, ex=60)
    with pytest.raises(SignatureError):
        store.get_function("d1")


def test_a_value_under_another_s_digest_is_refused(store, client):
    store.put_function("d1", b"harmless")
    client.rename(store.keys.function("d1"), store.keys.function("d2"))
    with pytest.raises(SignatureError):
        store.get_function("d2")


@pytest.fixture
def knowing(client, queue_name):
    """``knowing(secret)``: the queue, for a process that has this secret, or several."""
    stores = []

    def knowing(secret):
        stores.append(Store(client, queue_name, Signer(secret, queue_name)))
        return stores[-1]

    yield knowing
    for store in stores:
        store.close()


class TestANewSecret:
    def test_is_the_queue_s_once_somebody_signs_with_it(self, knowing):
        knowing("old").check_secret()
        knowing("old,new").check_secret()
        knowing("old").check_secret()
        knowing("new,old").check_secret()
        knowing("new").check_secret()
        with pytest.raises(SecretMismatch):
            knowing("old").check_secret()

    def test_stays_when_somebody_comes_who_signs_with_the_old_one(self, knowing):
        knowing("old").check_secret()
        knowing("new,old").check_secret()
        knowing("old,new").check_secret()
        knowing("new").check_secret()

    def test_may_be_followed_by_another(self, knowing):
        knowing("1").check_secret()
        knowing("2,1").check_secret()
        knowing("3,2").check_secret()
        knowing("3").check_secret()
        with pytest.raises(SecretMismatch):
            knowing("2").check_secret()

    def test_is_not_the_queue_s_because_somebody_looks(self, knowing):
        knowing("old").check_secret()
        knowing("new,old").check_secret(write=False)
        knowing("old").check_secret()

    def test_makes_nothing_refused_by_who_does_not_know_it(
        self, knowing, submit, take, client, store, make_task
    ):
        """The store of these tests knows only ``secret``."""
        store.check_secret()
        new = knowing("new,secret")
        new.check_secret()
        task = make_task(1)
        submit(0)
        new.submit("s2", 1, [("default", 0.0, new.encode_task(task), "")])
        new.put_function("d1", b"data")
        with pytest.raises(SecretMismatch):
            take()
        with pytest.raises(SecretMismatch):
            store.get_function("d1")
        assert [d.task.n for d in store.held(["default"], "w1")] == [0]
        assert store.refused() == {}
        assert [d.task for d in new.take([], ["default"], "w2", 9)] == [task]
        assert new.get_function("d1") == b"data"

    def test_leaves_set_up_orders_and_events_to_who_knows_it(self, knowing, store, make_task):
        store.check_secret()
        new = knowing("new,secret")
        new.check_secret()
        assert new.everywhere([], [make_task(5)])
        new.cancel("s.1", ONE, ONE)
        new.publish([Event(kind="output", job="s.1", n=0, worker="w")])
        for other, n in ((store, 0), (new, 1)):
            assert len(other.join(f"w{n}", {})) == n
            reader = other.clone()
            reader.await_control(b"0")
            orders = [order.kind for order in reader.controls(b"0")[1]]
            assert orders == ["everywhere", "cancel"] * n
            reader.close()
            (event,) = read_events(other)[1]
            assert isinstance(event, Event) == bool(n)
        assert store.refused() == {}

    def test_does_not_shield_a_forgery(self, knowing, client, store):
        store.check_secret()
        new = knowing("new,secret")
        new.check_secret()
        client.xadd(store.keys.lane("default"), {"hello": "world"})
        assert new.take([], ["default"], "w1", 9) == []
        assert new.refused() == {"task": 1}


def test_the_first_secret_is_the_queue_s(store, client, queue_name):
    store.check_secret()
    store.check_secret()
    other = Store(client, queue_name, Signer("other", queue_name))
    with pytest.raises(SecretMismatch, match="NBSTREAMQ_SECRET"):
        other.check_secret()
    other.close()


def test_results_that_were_not_read_go_with_their_session(store, client):
    store.put_result("s", "one.0", b"1")
    store.put_result("s", "two.0", b"2")
    store.put_result("other", "three.0", b"3")
    store.drop_values("s", ["one.0"])
    assert client.hkeys(store.keys.results("s")) == [b"two.0"]
    assert store.get_value("one.0") is None

    store.forget_session("s")
    assert store.get_value("two.0") is None
    assert store.get_value("three.0") == b"3"
    assert not client.exists(store.keys.results("s"))
