"""What nobody of this queue signed is set aside and counted, wherever it is found."""

import pytest

from nbstreamq.errors import SignatureError, VersionMismatch
from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.keys import WEEK, old_meta
from nbstreamq.wire.messages import ControlMessage, Event
from nbstreamq.wire.signing import SIGNATURE_BYTES, Signer
from nbstreamq.wire.store import Store
from tests.wire.reading import read_events


@pytest.fixture
def dead(store, client):
    """``dead()``: the fields of each entry of the dead stream."""
    return lambda: [fields for _, fields in client.xrange(store.keys.dead)]


@pytest.fixture
def write(store, client):
    """``write(stream, flat)``: put fields into a stream as they are."""

    def write(stream, flat):
        client.execute_command("XADD", stream, "*", *flat)
        if stream != store.keys.lane("default"):
            client.expire(stream, 60)  # as it has if the queue itself wrote it

    return write


@pytest.fixture
def orders(store):
    """``orders()``: the orders that a new supervisor reads."""

    def orders():
        reader = store.clone()
        reader.await_control(b"0")
        try:
            return reader.controls(b"0")[1]
        finally:
            reader.close()

    return orders


def event(job="s.1", body=b"result", kind="finished"):
    return Event(kind=kind, job=job, n=0, worker="w", body=body)


def test_nothing_is_refused_at_first(store):
    assert store.refused() == {}


class TestTasks:
    def test_are_counted_and_kept_with_their_lane(self, store, take, client, dead):
        client.xadd(store.keys.lane("low"), {"hello": "world"})
        take()
        take()
        assert store.refused() == {"task": 1}
        (kept,) = dead()
        assert list(kept)[:2] == [b"refused", b"from"]
        assert (kept[b"from"], kept[b"hello"]) == (b"lane:low", b"world")

    def test_are_refused_once_by_two_that_find_it(self, store, client):
        client.xadd(store.keys.lane("low"), {"hello": "world"})
        other = store.clone()
        key = ("XREADGROUP", "GROUP", "workers", "w1", "STREAMS", store.keys.lane("low"), ">")
        store.wire.call(key)
        assert store.held(["low"], "w1") == other.held(["low"], "w1") == []
        other.close()
        assert store.refused() == {"task": 1}

    def test_counts_and_evidence_go_away_by_themselves(self, store, take, client):
        client.xadd(store.keys.lane("low"), {"hello": "world"})
        take()
        for key in (store.keys.dead, store.keys.refused):
            assert 0 < client.ttl(key) <= WEEK

    def test_spoilt_books_keep_nobody_from_refusing(self, store, submit, take, client):
        client.set(store.keys.dead, "no stream", ex=60)
        client.hset(store.keys.refused, "task", "no number")
        client.expire(store.keys.refused, 60)
        client.xadd(store.keys.lane("default"), {"hello": "world"})
        submit(1)
        assert [d.task.n for d in take()] == [1]
        assert store.refused() == {}

    @pytest.mark.parametrize("n_fields", [1, 50, 51, 5000])
    def test_of_any_size_are_refused(self, store, take, client, dead, n_fields):
        client.xadd(store.keys.lane("default"), {f"f{i}": i for i in range(n_fields)})
        assert take() == []
        assert len(dead()) == 1

    def test_of_the_set_up_are_none_for_a_lane_and_the_reverse(
        self, store, make_task, write, client
    ):
        store.join("w1", {})
        store.everywhere(["w1"], [make_task(0), make_task(1)])
        ((_, fields),) = client.xrange(store.keys.setup)
        write(store.keys.lane("default"), [part for pair in fields.items() for part in pair])
        write(store.keys.setup, store.encode_task(make_task(2)))
        assert store.take([], ["default"], "w1", 9) == []
        assert [t.n for t in store.join("w2", {})] == [1]
        assert store.refused() == {"task": 1, "setup": 1}
        assert [t.n for t in store.join("w3", {})] == [1]
        assert store.refused()["setup"] == 1


class TestDelayed:
    @pytest.mark.parametrize(
        "entry", [b"", b"\xc1", b"text", b"\x90", b"\x91\xa1x", b"\x92\x90\x90"]
    )
    def test_entries_that_are_no_tasks_hold_nothing_up(
        self, store, submit, take, client, dead, entry, wait_until
    ):
        submit(1, delay=0.001)
        client.zadd(store.keys.delayed("default"), {entry: 0})
        wait_until(lambda: store.promote(["default"]) is None, describe="the task to move")
        assert [d.task.n for d in take()] == [1]
        assert store.refused() == {"task": 1}
        assert dead()[0][b"from"] == b"delayed:default"
        assert dead()[0][b"value"] == entry


class TestEvents:
    def test_are_counted_and_kept(self, store, write, dead):
        write(store.keys.events("s"), [b"event", b"evil pickle"])
        (error,) = read_events(store)[1]
        assert isinstance(error, SignatureError)
        assert store.refused() == {"event": 1}
        assert dead()[0][b"from"] == b"events:s"
        assert dead()[0][b"event"] == b"evil pickle"

    def test_are_refused_once_however_often_they_are_read(self, store, write):
        write(store.keys.events("s"), [b"event", b"evil pickle"])
        store.publish([event()], own=True)
        read_events(store)
        assert read_events(store)[1] == [event()]
        assert store.refused() == {"event": 1}

    def test_of_another_session_are_refused(self, store, client, write):
        store.publish([event("other.1")], own=True)
        ((_, fields),) = client.xrange(store.keys.events("other"))
        write(store.keys.events("s"), [b"event", fields[b"event"]])
        (error,) = read_events(store)[1]
        assert isinstance(error, SignatureError)
        assert "other.1" in str(error)

    @pytest.mark.parametrize("kind", [b"task", b"value", b"control"])
    def test_signed_as_another_kind_are_refused(self, store, write, queue_name, kind):
        signer = Signer("secret", queue_name)
        data = event().seal(signer)[SIGNATURE_BYTES:]
        write(store.keys.events("s"), [b"event", signer.seal(kind, b"", data)])
        assert isinstance(read_events(store)[1][0], SignatureError)


class TestNamedJobs:
    @pytest.fixture
    def job(self, store):
        assert store.open_job("j", "j:1", {"function": "f"}, instead_of="")
        return "j:1"

    def test_have_no_events_of_others(self, store, client, queue_name, job):
        for sealed in (b"evil pickle", event("j:2").seal(Signer("secret", queue_name))):
            client.xadd(store.keys.events(job), {"event": sealed})
        for _ in range(2):
            assert [e.kind for e in store.history(job, b"0")[1]] == ["opened"]
        assert store.refused() == {"event": 2}

    @pytest.mark.parametrize("change", [{"about": "x"}, {"n": "x"}, {"\xff": "x"}, {"1": "x"}])
    def test_whose_record_was_damaged_are_passed_over(self, store, client, job, change):
        client.hset(store.keys.job(job), mapping={"n": 1, "0": "1:digest", **change})
        client.hset(store.keys.jobs, b"\xff", b"\xff")
        assert store.has_open_jobs() is (change == {"\xff": "x"})


class TestOrders:
    def test_are_counted_and_the_others_obeyed(self, store, orders, write, queue_name):
        order = ControlMessage(kind="cancel", job="s.1", span=ONE)
        write(store.keys.control, order.encode(Signer("guess", queue_name)))
        store.cancel("s.2", ONE, ONE)
        assert [o.job for o in orders()] == ["s.2"]
        assert [o.job for o in orders()] == ["s.2"]
        assert store.refused() == {"control": 1}

    def test_that_are_mere_wake_ups_are_not_refused(self, store, orders, write, client):
        write(store.keys.control, ["kind", "due"])
        client.expire(store.keys.control, 60)
        assert orders() == []
        assert store.refused() == {}


class TestCopies:
    def test_of_events_are_refused_once_and_dropped(self, store, write, client):
        printed = event(kind="output")
        store.publish([printed], own=True)
        key = store.keys.events("s")
        ((_, fields),) = client.xrange(key)
        after, found = read_events(store)
        assert found == [printed]
        write(key, [b"event", fields[b"event"]])
        _, (error,) = read_events(store, after=after)
        assert isinstance(error, SignatureError)
        assert "dealt with before" in str(error)
        assert client.xlen(key) == 1
        assert store.refused() == {"replayed event": 1}

    def test_in_one_entry_are_refused(self, store, write, client):
        printed = event(kind="output")
        sealed = printed.seal(store._signer)
        write(store.keys.events("s"), [b"event", sealed, b"event", sealed])
        _, (first, second) = read_events(store)
        assert (first, type(second)) == (printed, SignatureError)

    def test_are_none_where_a_reply_was_lost_or_another_reads(self, store, dead):
        store.publish([event()], own=True)
        other = store.clone()
        assert read_events(store)[1] == read_events(store)[1] == read_events(other)[1] == [event()]
        other.close()
        assert dead() == []

    def test_of_what_was_said_twice_are_none(self, store, dead):
        store.publish([event(), event()], own=True)
        store.publish([event()], own=True)
        assert read_events(store)[1] == [event()] * 3
        assert dead() == []

    def test_of_orders_are_refused(self, store, orders, write, client):
        store.cancel("s.1", ONE, ONE)
        store.cancel("s.1", ONE, ONE)
        ((_, fields), _) = client.xrange(store.keys.control)
        write(store.keys.control, [part for pair in fields.items() for part in pair])
        assert [o.job for o in orders()] == ["s.1", "s.1"]
        assert store.refused() == {"replayed control": 1}

    def test_of_the_set_up_are_refused(self, store, make_task, client):
        assert store.everywhere([], [make_task(0)])
        ((_, fields),) = client.xrange(store.keys.setup)
        client.xadd(store.keys.setup, fields)
        newcomer = store.clone()
        for worker in ("w1", "w2"):
            assert [t.n for t in newcomer.join(worker, {})] == [0]
        newcomer.close()
        assert store.refused() == {"replayed setup": 1}


class TestValues:
    @pytest.mark.parametrize("kind", ["function", "value"])
    def test_are_counted_and_kept(self, store, client, dead, kind):
        client.set(getattr(store.keys, kind)("d1"), b"evil pickle", ex=60)
        with pytest.raises(SignatureError):
            getattr(store, f"get_{kind}")("d1")
        assert store.refused() == {kind: 1}
        assert dead()[0][b"value"] == b"evil pickle"

    def test_large_ones_are_kept_in_part(self, store, client, dead):
        client.set(store.keys.value("d1"), b"x" * 10_000_000, ex=60)
        with pytest.raises(SignatureError):
            store.get_value("d1")
        assert len(dead()[0][b"value"]) == 2**16

    def test_a_value_is_no_function(self, store, client):
        store.put_value("d1", b"data")
        client.rename(store.keys.value("d1"), store.keys.function("d1"))
        with pytest.raises(SignatureError):
            store.get_function("d1")

    def test_of_another_queue_are_refused(self, store, client, queue_name):
        other = Store(client, queue_name + "-2", Signer("secret", queue_name + "-2"))
        other.put_function("d1", b"data")
        client.rename(other.keys.function("d1"), store.keys.function("d1"))
        other.close()
        with pytest.raises(SignatureError):
            store.get_function("d1")


class TestDescriptions:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"\xff",
            b"{",
            b"7",
            b"[" * 100_000,
            b'{"lanes": 7}',
            b'{"lanes": [7]}',
            b'{"lanes": ["\\ud800"]}',
            b'{"pid": "7"}',
            b'{"supervisor": 99999999999999999999}',
            b'{"supervisor": -1}',
        ],
    )
    def test_that_are_none_are_dropped(self, store, client, text):
        store.join("w1", {"host": "here", "pid": 7, "lanes": ["default"]})
        client.hset(store.keys.workers, "w2", text)
        assert list(store.workers()) == ["w1"]
        assert store.refused() == {"worker": 1}
        assert client.hlen(store.keys.workers) == 1

    def test_names_that_are_none_are_dropped(self, store, client):
        store.join("w1", {})
        client.hset(store.keys.workers, b"\xff", b"{}")
        assert list(store.workers()) == ["w1"]

    def test_silent_nodes_without_a_name_are_dropped(self, store, client):
        client.zadd(store.keys.nodes, {b"\xff": 1, b"gone": 1})
        assert set(store.heartbeat("here", {})[1]) == {"gone", "here"}
        assert client.zscore(store.keys.nodes, b"\xff") is None


@pytest.mark.parametrize("text", [b"all", b"\xff", b"5:1", b"0:x", b"0:5,2:9"])
def test_what_is_no_span_cancels_nothing(store, submit, take, client, text):
    client.hset(store.keys.cancelled, mapping={"s": text, "s.1": text, "#": 1})
    client.expire(store.keys.cancelled, 60)
    submit(0)
    (delivery,) = take()
    assert delivery.cancelled == ()


@pytest.mark.parametrize("text", [b"", b"x", b"\xff"])
def test_what_is_no_number_of_a_batch_keeps_nobody_from_submitting(store, submit, client, text):
    client.set(store.keys.session("s"), text, ex=60)
    submit(*range(3))
    assert store.lanes(["default"])[0]["waiting"] == 3


class TestDataOfAnEarlierVersion:
    def test_is_refused_and_says_what_to_do(self, store, client, queue_name):
        client.delete(store.keys.meta)
        client.hset(old_meta(queue_name), "secret", "x")
        client.expire(old_meta(queue_name), 60)
        with pytest.raises(VersionMismatch, match=f"nbstreamq queues delete {queue_name}"):
            store.check_secret()
        assert store.delete_queue() > 0
        store.check_secret()

    def test_beside_ours_is_left_alone(self, store, client, queue_name):
        store.check_secret()
        client.hset(old_meta(queue_name), "secret", "x")
        client.expire(old_meta(queue_name), 60)
        store.check_secret()
