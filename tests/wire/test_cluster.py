"""The same queue on a cluster, and behind a Sentinel."""

import subprocess

import pytest
import redis

from nbstreamq.wire.addresses import open_client, url_of
from nbstreamq.wire.item_ranges import parse_ranges
from nbstreamq.wire.keys import Keys
from nbstreamq.wire.settlement import Requeue, Settlement
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from tests.ports import free_port
from tests.wire.reading import read_events


@pytest.fixture(scope="module")
def cluster_url(start_module_server, wait_until):
    """A cluster of one node, with a password."""
    port = str(free_port())
    options = ("--port", port, "--bind", "127.0.0.1", "--cluster-enabled", "yes")
    server = start_module_server(*options, "--requirepass", "hush")
    with redis.Redis(unix_socket_path=str(server.socket), password="hush") as node:
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: node.cluster("info")["cluster_state"] == "ok", describe="the cluster")
    return f"redis+cluster://:hush@127.0.0.1:{port}"


def test_a_task_s_whole_life_on_a_cluster(cluster_url, make_task, finish, wait_until):
    with open_client(cluster_url) as client:
        store = Store(client, "q", Signer("secret", "q"))
        store.check_secret()
        store.ensure_lanes(["default", "low"])
        assert store.join("w1", {"lanes": ["default", "low"]}) == []
        assert store.everywhere(["w1"], [make_task(0), make_task(0)]) is True
        assert set(store.heartbeat("here", {"w1": {}})[1]) == {"here"}

        task = store.encode_task(make_task(1, span=parse_ranges("0:4")))
        store.submit("s", 1, [("default", 0.0, task, ""), ("low", 0.01, task, "")])
        wait_until(lambda: store.promote(["default", "low"]) is None, describe="the delayed task")
        held = store.take([], ["default", "low", "@w1"], "w1", 9)
        assert len(held) == 3

        later = Settlement(delivery=held[0], successors=[Requeue(task=held[0].task, delay=60)])
        assert store.settle([later, finish(held[1]), finish(held[2])]) == [True] * 3
        assert len(read_events(store, "s", b"0", 0)[1]) == 2
        store.cancel("s.1", parse_ranges("0:1"), parse_ranges("0:1"))
        store.await_control(b"0")
        wait_until(lambda: store.wire.wait(0), describe="the order")
        assert [order.kind for order in store.controls(b"0")[1]] == ["everywhere", "cancel"]
        store.put_function("d", b"f")
        assert store.get_function("d") == b"f"
        first, second = store.new_lease("w1", 1), store.new_lease("w1", 2)
        assert store.acquire("api", 1, None, "w1", [first, second]) == [(0, first)]
        store.release("api", "w1", [first])
        store.await_grants("w1", 1)
        assert store.grants() == [(0, second)]
        client.xadd(store.keys.lane("default"), {"no": "task"})
        assert store.take([], ["default", "low"], "w1", 1, block=1) == []
        assert store.forget_worker("w1", ["default", "low"]) is True
        store.close()


def test_the_url_of_a_cluster_s_client_reaches_it_again(cluster_url):
    with open_client(cluster_url) as client:
        assert url_of(client).reveal() == cluster_url


@pytest.mark.parametrize("name", ["q", "a/queue:with-signs", "ä"])
def test_all_keys_of_a_queue_are_in_one_slot(name):
    keys = Keys(name)
    some = [keys.meta, keys.lane("default"), keys.delayed("x"), keys.events("s"), keys.workers]
    assert len({redis.cluster.key_slot(key.encode()) for key in some}) == 1


def test_a_queue_behind_a_sentinel(start_server, server_binary, short_folder, make_task):
    master, port = str(free_port()), free_port()
    start_server("--port", master, "--bind", "127.0.0.1")
    config = short_folder() / "sentinel.conf"
    config.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {master} 1\n")
    with (config.parent / "log").open("wb") as log:
        sentinel = subprocess.Popen([server_binary, str(config), "--sentinel"], stdout=log)
    try:
        with open_client(f"redis+sentinel://127.0.0.1:{port}/main") as client:
            store = Store(client, "q", Signer("secret", "q"))
            store.ensure_lanes(["default"])
            store.submit("s", 1, [("default", 0.0, store.encode_task(make_task(7)), "")])
            assert [d.task.n for d in store.take([], ["default"], "w1", 9)] == [7]
            store.close()
            for known in client.connection_pool.sentinel_manager.sentinels:
                known.close()
    finally:
        sentinel.kill()
        sentinel.wait()
