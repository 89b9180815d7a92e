"""Functions, large values and the queue's secret on the server."""

import pytest

from nbstreamq.errors import SecretMismatch, SignatureError
from nbstreamq.protocol.keys import WEEK
from nbstreamq.protocol.signing import Signer
from nbstreamq.protocol.store import Store


@pytest.mark.parametrize("kind", ["function", "blob"])
def test_a_value_is_kept_for_a_week(store, client, kind):
    getattr(store, f"put_{kind}")("d1", bytes(range(256)))
    assert getattr(store, f"get_{kind}")("d1") == bytes(range(256))
    assert 0 < client.ttl(getattr(store.keys, kind)("d1")) <= WEEK


@pytest.mark.parametrize("kind", ["function", "blob"])
def test_a_value_that_is_not_there_is_none(store, kind):
    assert getattr(store, f"get_{kind}")("d1") is None


def test_a_large_value_comes_back(store):
    store.put_blob("big", b"x" * 30_000_000)
    assert store.get_blob("big") == b"x" * 30_000_000


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


def test_the_first_secret_is_the_queue_s(store, client, queue_name):
    store.check_secret()
    store.check_secret()
    other = Store(client, queue_name, Signer("other", queue_name))
    with pytest.raises(SecretMismatch, match="NBSTREAMQ_SECRET"):
        other.check_secret()
    other.close()
