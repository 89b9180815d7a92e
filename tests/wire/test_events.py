"""events: what comes back to a client, each event once, in order."""

import threading
import time

import pytest

from nbstreamq.errors import SignatureError
from nbstreamq.wire.keys import DAY, WEEK
from nbstreamq.wire.messages import Event
from tests.wire.reading import read_events


def event(i):
    return Event(kind="output", job="s.1", n=0, worker="w", body=b"%d" % i)


def test_published_events_come_in_order_and_once(store):
    store.publish([event(0), event(1)], own=True)
    after, first = read_events(store, "s", b"0", 1)
    store.publish([event(2)], own=True)
    after, second = read_events(store, "s", after, 1)
    assert (first, second) == ([event(0), event(1)], [event(2)])
    assert read_events(store, "s", after, 0)[1] == []


def test_asking_again_after_a_lost_reply_gives_the_same(store):
    store.publish([event(0), event(1)], own=True)
    after, _ = read_events(store, "s", b"0", 0)
    store.publish([event(2)], own=True)
    _, lost = read_events(store, "s", after, 0)
    assert read_events(store, "s", after, 0)[1] == lost == [event(2)]


def test_what_was_read_is_dropped_from_the_server(store, client):
    after = b"0"
    for _ in range(10):
        store.publish([event(i) for i in range(50)], own=True)
        after, _ = read_events(store, "s", after, 0)
    # Not at once: it is trimmed when 100 entries were read, before the next are.
    assert client.xlen(store.keys.events("s")) <= 150


def test_a_long_stream_is_read_piece_by_piece(store):
    store.publish([event(i) for i in range(2500)], own=True)
    after, found = b"0", []
    while piece := (reply := read_events(store, "s", after, 0))[1]:
        after = reply[0]
        found += piece
    assert found == [event(i) for i in range(2500)]


def test_waiting_returns_an_event_that_comes_later(store):
    other = store.clone()
    later = threading.Timer(0.1, other.publish, ([event(0)],), {"own": True})
    later.start()
    assert read_events(store, "s", b"0", 10)[1] == [event(0)]
    later.join()
    other.close()


@pytest.mark.parametrize("block", [0, 0.0001, 0.05])
def test_waiting_in_vain_ends_in_time(store, block):
    began = time.monotonic()
    assert read_events(store, "s", b"0", block) == (b"0", [])
    assert time.monotonic() - began < 2


def test_a_forged_event_comes_as_an_error_among_the_others(store, client):
    store.publish([event(0)], own=True)
    client.xadd(store.keys.events("s"), {"event": b"evil pickle"})
    store.publish([event(1)], own=True)
    first, forged, second = read_events(store, "s", b"0", 0)[1]
    assert (first, second) == (event(0), event(1))
    assert isinstance(forged, SignatureError)


def test_publishing_nothing_is_allowed(store):
    store.publish([], own=True)


def test_published_events_go_away_by_themselves(store, client):
    store.publish([event(0)], own=True)
    assert WEEK - DAY < client.ttl(store.keys.events("s")) <= WEEK  # a laptop may sleep
