"""The server is another one all at once: a Sentinel's new master, a slot's new node."""

from __future__ import annotations

import secrets
import subprocess
import time

import pytest
import redis

from nbstreamq import DataLost
from nbstreamq.wire.keys import Keys
from tests.ports import free_port

#: Milliseconds after which a Sentinel takes a silent master for dead.
DOWN_MS = 500


def slow(x):
    time.sleep(0.01)
    return x


@pytest.fixture(autouse=True)
def strong_secret(monkeypatch):
    """Give a secret that is hard to guess: other machines might reach a Sentinel or a cluster."""
    monkeypatch.setenv("NBSTREAMQ_SECRET", secrets.token_hex(16))


@pytest.fixture
def sentinel(start_server, server_binary, short_folder, wait_until):
    """A master with a replica, watched by a Sentinel; yields the url, and the master."""
    ports = [free_port() for _ in range(3)]
    local = ("--bind", "127.0.0.1", "--appendonly", "yes")
    master = start_server("--port", str(ports[0]), *local)
    start_server("--port", str(ports[1]), *local, "--replicaof", f"127.0.0.1 {ports[0]}")
    config = short_folder() / "sentinel.conf"
    lines = [
        f"port {ports[2]}",
        f"sentinel monitor main 127.0.0.1 {ports[0]} 1",
        f"sentinel down-after-milliseconds main {DOWN_MS}",
        "sentinel failover-timeout main 5000",
    ]
    config.write_text("\n".join(lines) + "\n")
    with (config.parent / "log").open("wb") as log:
        watcher = subprocess.Popen([server_binary, str(config), "--sentinel"], stdout=log)
    try:
        with redis.Redis(port=ports[2]) as asked:

            def knows_the_replica():
                try:
                    return [r for r in asked.sentinel_slaves("main") if not r["is_disconnected"]]
                except redis.ConnectionError:
                    return []

            wait_until(knows_the_replica, 20, "a Sentinel that knows the replica")
        with redis.Redis(port=ports[1]) as replica:
            wait_until(
                lambda: replica.info("replication")["master_link_status"] == "up",
                describe="a replica that follows",
            )
        yield f"redis+sentinel://127.0.0.1:{ports[2]}/main", master
    finally:
        watcher.kill()
        watcher.wait()


@pytest.mark.crash
def test_a_sentinel_s_new_master(sentinel, new_queue, wait_until):
    url, master = sentinel
    queue = new_queue(url)
    job = queue.map(slow, range(400), chunksize=4)
    wait_until(lambda: job._table.n_over > 40, describe="some results")
    master.stop()
    # What the old master had not sent on is gone, and no one can know of it but by its absence.
    try:
        assert job.result(50) == list(range(400))
    except DataLost:
        assert all(job[i].result() == i for i in range(400) if i not in job.errors)
    assert queue.map(slow, range(20)).result(30) == list(range(20))


@pytest.fixture
def cluster(start_server, wait_until):
    """Three nodes; yields their clients, by port."""
    nodes = {}
    for _ in range(3):
        port = free_port()
        start_server("--port", str(port), "--bind", "127.0.0.1", "--cluster-enabled", "yes")
        nodes[port] = redis.Redis(port=port)
    first, *others = nodes
    for i, node in enumerate(nodes.values()):
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", i * 5461, min(16383, i * 5461 + 5460))
    nodes[list(nodes)[-1]].execute_command("CLUSTER", "ADDSLOTS", 16383)
    for port in others:
        nodes[first].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    wait_until(
        lambda: (
            all(n.cluster("info")["cluster_state"] == "ok" for n in nodes.values())
            and all(n.cluster("info")["cluster_known_nodes"] == "3" for n in nodes.values())
        ),
        20,
        "a cluster of three nodes",
    )
    yield nodes
    for node in nodes.values():
        node.close()


def move(nodes, slot):
    """Move a slot from the node that has it to another, key by key, as an administrator does."""
    ids = {port: node.execute_command("CLUSTER", "MYID").decode() for port, node in nodes.items()}
    owners = {port for port, node in nodes.items() if has_slot(node, ids[port], slot)}
    (source,) = owners
    target = next(port for port in nodes if port != source)
    nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    while keys := nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
        nodes[source].execute_command(
            "MIGRATE", "127.0.0.1", target, "", 0, 5000, "REPLACE", "KEYS", *keys
        )
    for port in (target, source, *nodes):
        nodes[port].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def has_slot(node, name, slot):
    lines = node.execute_command("CLUSTER", "NODES").decode().splitlines()
    (own,) = (line.split() for line in lines if line.startswith(name))
    ranges = [part.split("-") for part in own[8:] if not part.startswith("[")]
    return any(int(part[0]) <= slot <= int(part[-1]) for part in ranges)


@pytest.mark.crash
def test_a_slot_that_moves_to_another_node(cluster, new_queue, wait_until):
    queue = new_queue(f"redis+cluster://127.0.0.1:{next(iter(cluster))}")
    job = queue.map(slow, range(400), chunksize=4)
    wait_until(lambda: job._table.n_over > 40, describe="some results")
    move(cluster, redis.cluster.key_slot(Keys(queue.name).meta.encode()))
    assert job.result(50) == list(range(400))
    assert queue.submit(slow, 5).result(20) == 5
