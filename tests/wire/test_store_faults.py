"""What the Store does when the server is away, forgets, or says no."""

import os
import signal
import threading
import time

import pytest

from nbstreamq.errors import ServerRefused, ServerUnreachable
from nbstreamq.wire import scripts
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.connection import Wire
from nbstreamq.wire.item_ranges import parse_ranges
from nbstreamq.wire.keys import Keys
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store


@pytest.fixture
def own_store(start_server):
    """A store on a server that only this test uses, and which keeps its data; and that server."""
    server = start_server("--appendonly", "yes", "--appendfsync", "always")
    with open_client(server.url) as client:
        store = Store(client, "q", Signer("secret", "q"))
        store.ensure_lanes(["default"])
        yield store, server
        store.close()


def test_a_restarted_server_is_unreachable_once_and_has_lost_nothing(own_store, make_task):
    store, server = own_store
    batch = [("default", 0.0, store.encode_task(make_task(n)), "") for n in range(3)]
    store.submit("s", 1, batch)
    (held,) = store.take([], ["default"], "w1", 1)
    server.stop()
    server.start()
    with pytest.raises(ServerUnreachable):
        store.submit("s", 1, batch)
    store.submit("s", 1, batch)
    (found,) = store.held(["default"], "w1")
    assert (found.entry_id, found.task) == (held.entry_id, held.task)
    assert found.mark != held.mark, "it may have forgotten what was settled: that is no copy then"
    assert [d.task.n for d in store.take([], ["default"], "w1", 9)] == [1, 2]


def test_a_stopped_server_is_unreachable_until_it_is_back(own_store):
    store, server = own_store
    server.stop()
    for _ in range(3):
        with pytest.raises(ServerUnreachable, match=str(server.socket)):
            store.workers()
    server.start()
    assert store.workers() == {}


def test_a_server_that_ends_while_it_is_waited_for_is_unreachable(own_store):
    store, server = own_store
    stopping = threading.Timer(0.1, server.stop)
    stopping.start()
    with pytest.raises(ServerUnreachable):
        store.take([], ["default"], "w1", 1, block=30)
    stopping.join()


def test_a_supervisor_learns_that_the_server_is_gone(own_store, wait_until):
    store, server = own_store
    store.await_control(b"0")
    assert store.wire.wait(0) is False
    server.stop()
    wait_until(lambda: store.wire.wait(0), describe="the end of the connection")
    with pytest.raises(ServerUnreachable):
        store.controls(b"0")
    server.start()
    store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
    store.await_control(b"0")
    wait_until(lambda: store.wire.wait(0), describe="the order")
    assert len(store.controls(b"0")[1]) == 1


def test_a_supervisor_that_can_not_ask_says_so(own_store):
    store, server = own_store
    store.await_control(b"0")
    store.close()
    server.stop()
    with pytest.raises(ServerUnreachable):
        store.await_control(b"0")
    assert store.wire.wait(0) is True
    with pytest.raises(ServerUnreachable):
        store.controls(b"0")


def test_forgotten_scripts_are_loaded_again(store, client, submit, take, finish, bodies):
    submit(0)
    (held,) = take(count=1)
    client.script_flush()
    submit(1)
    client.script_flush()
    (delivery,) = store.take([finish(held)], ["default"], "w1", 9)
    assert delivery.task.n == 1
    assert bodies() == [b"result"], "a command of the same call must not run twice"


def test_what_succeeded_beside_a_forgotten_script_is_not_repeated(client, queue_name):
    keys = Keys(queue_name)
    wire = Wire(client, keys.meta, scripts.texts())
    client.script_flush()
    key = keys.session("s")
    promote = scripts.promote(keys, "x")
    replies = wire.call(("INCR", key), promote, ("INCR", key), ("EXPIRE", key, 60))
    assert replies == [1, -1, 2, 1]
    wire.close()


def test_a_refused_command_says_why_and_the_connection_goes_on(store, client):
    client.set(store.keys.lane("default"), "no stream")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        store.take([], ["default"], "w1", 1)
    client.delete(store.keys.lane("default"))
    store.ensure_lanes(["default"])
    assert store.take([], ["default"], "w1", 1) == []


def test_a_missing_password_is_refused_and_names_the_server(start_server):
    server = start_server("--requirepass", "hush")
    with (
        open_client(server.url) as client,
        pytest.raises(ServerRefused, match=str(server.socket)) as refusal,
    ):
        Store(client, "q", Signer("secret", "q")).check_secret()
    assert "Check user and password" in str(refusal.value)


def test_a_wrong_password_is_refused_and_not_told(start_server):
    server = start_server("--requirepass", "hush")
    url = server.url.replace("unix://", "unix://:guess@")
    with (
        open_client(url) as client,
        pytest.raises(ServerRefused, match=str(server.socket)) as refusal,
    ):
        Store(client, "q", Signer("secret", "q")).check_secret()
    assert "guess" not in str(refusal.value)
    assert "***" in str(refusal.value)


def test_the_right_password_is_let_in(start_server):
    server = start_server("--requirepass", "hush")
    with open_client(server.url.replace("unix://", "unix://:hush@")) as client:
        store = Store(client, "q", Signer("secret", "q"))
        store.check_secret()
        store.close()


def test_a_user_without_rights_is_refused(start_server):
    server = start_server()
    with open_client(server.url) as admin:
        admin.acl_setuser("reader", enabled=True, passwords="+hush", categories=["+connection"])
    with (
        open_client(server.url.replace("unix://", "unix://reader:hush@")) as client,
        pytest.raises(ServerRefused, match=r"NOPERM|permission"),
    ):
        Store(client, "q", Signer("secret", "q")).check_secret()


def test_a_full_server_is_refused_and_works_again(own_store, make_task):
    store, server = own_store
    batch = [("default", 0.0, store.encode_task(make_task(0)), "")]
    with open_client(server.url) as admin:
        admin.config_set("maxmemory", "1")
        with pytest.raises(ServerRefused, match="maxmemory"):
            store.submit("s", 1, batch)
        admin.config_set("maxmemory", "0")
    store.submit("s", 1, batch)
    assert len(store.take([], ["default"], "w1", 9)) == 1


def test_a_server_that_does_not_reply_is_unreachable_in_time(client, queue_name):
    wire = Wire(client, Keys(queue_name).meta, [])
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="timed out"):
        wire.call(("BLPOP", Keys(queue_name).meta, 0), timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 2
    assert wire.call(("EXISTS", Keys(queue_name).meta)) == [0]
    wire.close()


def test_who_waits_sleeps_while_other_processes_are_busy(client, queue_name, monkeypatch):
    yields = []

    def slow_yield():  # Another process keeps the processor.
        yields.append(time.sleep(0.001))

    wire = Wire(client, Keys(queue_name).meta, [])
    wire.call(("PING",))
    monkeypatch.setattr(os, "sched_yield", slow_yield)
    monkeypatch.setattr(Wire, "_calm_until", 0.0)
    # When the first yield takes long, I expect none for a while, and replies all the same
    assert not wire.spin(0.01)
    n = len(yields)
    assert n
    assert not wire.spin(0.01)
    assert wire.call(("PING",), spin=0.01) == [b"PONG"]
    assert len(yields) == n
    wire.close()


def test_an_interrupted_call_does_not_mix_up_replies(store, submit, take):
    main = threading.main_thread().ident
    interrupt = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        store.take([], ["default"], "w1", 1, block=30)
    interrupt.join()
    submit(0)
    assert [d.task.n for d in take()] == [0]


def test_a_closed_store_opens_again(store, submit, take):
    submit(0)
    store.close()
    store.close()
    assert [d.task.n for d in take()] == [0]


def test_connections_do_not_pile_up(store, client):
    n_before = len(client.client_list())
    for _ in range(20):
        clone = store.clone()
        clone.workers()
        clone.close()
    assert len(client.client_list()) <= n_before + 2
