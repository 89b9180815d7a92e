"""The rules in docs/security.md are enough for all that clients and workers do, and no more."""

import re
import signal
import warnings
from pathlib import Path

import pytest
import redis

from nbstreamq import ServerRefused, TaskQueue, WorkerLost
from nbstreamq.wire.store import TRIM_EVERY

ROOT = Path(__file__).parents[2]
SECRET = "old"
#: What redis-py asks by itself when it connects; it can do without.
NOT_OURS = {"client|setinfo"}


def rules():
    """The users in the document, as an ACL file has them."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```acl\n(.*?)^```$", text, re.M | re.S)
    return block.splitlines()


def commands_of(rule):
    return set(re.findall(r" \+(\S+)", rule))


class Guarded:
    """A server with just these users, and one for the test."""

    def __init__(self, start_server, folder):
        acl = folder / "users.acl"
        lines = [*rules(), "user default off", "user admin on >admin ~* &* +@all"]
        acl.write_text("\n".join(lines) + "\n")
        self.server = start_server("--aclfile", str(acl), "--appendonly", "yes")
        self.admin = redis.Redis(
            unix_socket_path=str(self.server.socket), username="admin", password="admin"
        )
        self.passwords = {line.split()[1]: line.split()[3][1:] for line in rules()}

    def url(self, user):
        return f"unix://{user}:{self.passwords[user]}@{self.server.socket}"

    def denied(self):
        """What was forbidden so far: user, and what he wanted."""
        found = {(e["username"], e["object"].lower()) for e in self.admin.acl_log()}
        return {(user, what) for user, what in found if what not in NOT_OURS}

    def used(self):
        """The commands that were carried out since the server started."""
        return {name.removeprefix("cmdstat_") for name in self.admin.info("commandstats")}


@pytest.fixture
def guarded(start_server, tmp_path):
    guarded = Guarded(start_server, tmp_path)
    yield guarded
    guarded.admin.close()


@pytest.fixture
def start_workers(guarded, start, queue_name, wait_until):
    """``start_workers(secret)``: two workers by command, that log in as the document says."""

    def start_workers(queue, secret=SECRET):
        known = {w.id for w in queue.workers()}
        command = ("-m", "nbstreamq", "worker", "-n", "2", "--queue", queue_name)
        env = {"NBSTREAMQ_URL": guarded.url("nbq-worker"), "NBSTREAMQ_SECRET": secret}
        process = start(*command, env=env)
        wait_until(
            lambda: len({w.id for w in queue.workers()} - known) == 2, describe="two workers"
        )
        return process

    return start_workers


@pytest.fixture
def queue(guarded, queue_name):
    with TaskQueue(queue_name, guarded.url("nbq-client"), workers=0, secret=SECRET) as queue:
        yield queue


def do_what_clients_do(queue, gate):
    """Everything that a TaskQueue offers."""
    for _ in range(TRIM_EVERY + 1):  # one after the other: each has an entry of its own
        assert queue.submit(abs, -1).result(20) == 1
    assert list(queue.map(abs, range(-1000, 0))) == list(range(1000, 0, -1))
    assert [f.result(20) for f in [queue.submit(abs, -i) for i in range(500)]] == list(range(500))
    assert len(queue.everywhere(abs, -1).result(20)) == 2
    assert queue.submit(len, queue.put([1, 2, 3])).result(20) == 3
    assert queue.options(delay=0.05).submit(abs, -2).result(20) == 2
    assert len(queue._session.ask(lambda store: store.living_workers(10))) == 2, "as `Units` asks"
    assert queue.submit(print, "printed").result(20) is None
    first = gate("first")

    def fail_once():
        if first.first():
            raise ValueError("once")
        return 3

    assert queue.options(retries=1, backoff=0.01).submit(fail_once).result(20) == 3
    slow = queue.map(lambda _: __import__("time").sleep(0.04), range(12), chunksize=12)
    assert slow.result(20) == [None] * 12, "the rest of a chunk goes back, in halves"
    running = gate("running")

    def hold():
        import time

        running.open()
        time.sleep(60)

    held = queue.submit(hold)
    running.wait()
    assert held.cancel()
    limited = queue.options(time_limit=0.1).submit(lambda: __import__("time").sleep(60))
    assert isinstance(limited.exception(20), TimeoutError)
    limit = queue.limit("api", concurrent=1)

    def wait_for_each_other(_):
        with limit:
            __import__("time").sleep(0.05)

    assert queue.map(wait_for_each_other, range(4), chunksize=1).result(20) == [None] * 4
    assert queue.limit("api", rate=10).rate == 10
    assert [about.limit for about in queue.status().limits] == ["api"]
    assert queue.status().trouble == ""

    job = queue.map(abs, range(-20, 0), name="kept")
    assert list(job) == list(range(20, 0, -1))
    assert [record.name for record in queue.jobs()] == ["kept"]
    assert list(queue.attach("kept")) == list(range(20, 0, -1))
    failing = queue.map(lambda x: 1 / x if not first.is_open() else x, [1, 0], name="failing")
    failing.wait(20)
    failing.retry_failed().wait(20)
    queue.map(lambda x: 1 / (x - x), range(120), chunksize=1).wait(20)
    assert len(queue.dead()) == 100, "more are not kept of one client"
    job.keep()
    job.delete()

    def nest():
        return sum(queue.map(abs, range(-100, 0), chunksize=1)), queue.status().trouble

    assert queue.submit(nest).result(20) == (5050, "")


def do_what_follows_from_a_death(queue, gate):
    cured = gate("cured")

    def poison():
        import os

        if not cured.is_open():
            os.kill(os.getpid(), signal.SIGKILL)
        return 5

    assert isinstance(queue.submit(poison).exception(30), WorkerLost)
    cured.open()
    assert queue.dead()[-1].retry().result(20) == 5


def forge(admin, queue, wait_until):
    """Have something refused wherever something can be."""
    session = queue._session
    keys = session._store.keys
    junk = {"sig": "x" * 16, "job": "s.1"}
    for key in (keys.lane("default"), keys.control, keys.setup, keys.events(session.id)):
        admin.xadd(key, junk)
    admin.hset(keys.workers, "nobody", "{")
    admin.zadd(keys.nodes, {b"\xff": 1})
    admin.zadd(keys.delayed("default"), {b"junk": 0})
    expected = {"task": 2, "control": 1, "event": 1, "worker": 1}
    wait_until(lambda: expected.items() <= queue.status().refused.items(), describe="refusals")


def run_doctor(start, url, queue_name):
    env = {"NBSTREAMQ_URL": url, "NBSTREAMQ_SECRET": "new"}
    return start("-m", "nbstreamq", "doctor", "--queue", queue_name, env=env).wait()[1]


@pytest.mark.timeout(120)
def test_the_rules_are_enough_and_no_more(
    guarded, queue, queue_name, start, start_workers, gate, wait_until
):
    node = start_workers(queue)
    do_what_clients_do(queue, gate)
    do_what_follows_from_a_death(queue, gate)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        forge(guarded.admin, queue, wait_until)
        # The next to come are told of the set-up; a machine dies without a word.
        other = start_workers(queue)
        nodes = queue._session._store.keys.nodes
        wait_until(
            lambda: len({*guarded.admin.zrange(nodes, 0, -1)} - {b"\xff"}) == 2,
            describe="its first sign of life",
        )
        for process in other.family():
            process.kill()
        other.wait()
        wait_until(lambda: len(queue.workers()) == 2, timeout=20, describe="the burial")
        url = guarded.url("nbq-client")
        with TaskQueue(queue_name, url, workers=0, secret="new,old") as later:
            node.wait()
            start_workers(later, "new,old")
            assert later.submit(abs, -6).result(20) == 6

    assert "server   " in run_doctor(start, guarded.url("nbq-client"), queue_name)
    assert guarded.denied() <= {("nbq-client", "config|get")}
    for rule in rules():
        assert commands_of(rule) <= guarded.used()


@pytest.mark.parametrize("user", ["nbq-client", "nbq-worker"])
@pytest.mark.parametrize(
    "command",
    [("FLUSHALL",), ("CONFIG", "SET", "dir", "/"), ("KEYS", "*"), ("GET", "other"), ("SHUTDOWN",)],
)
def test_nothing_else_is_allowed(guarded, user, command):
    with (
        redis.Redis.from_url(guarded.url(user)) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*command)


def test_a_client_takes_no_tasks(guarded):
    read = ("XREADGROUP", "GROUP", "workers", "w", "STREAMS", "nbq2:{q}:lane:default", ">")
    with (
        redis.Redis.from_url(guarded.url("nbq-client")) as client,
        pytest.raises(redis.exceptions.NoPermissionError),
    ):
        client.execute_command(*read)


@pytest.mark.parametrize("user", ["nbq-client", "nbq-worker"])
def test_a_rule_for_one_queue_allows_no_other(guarded, user):
    (rule,) = [line for line in rules() if f" {user} " in line]
    narrow = rule.replace("~nbq?:{*}:*", "~nbq?:{sims}:*").split()[2:]
    guarded.admin.execute_command("ACL", "SETUSER", user, "resetkeys", *narrow)
    with redis.Redis.from_url(guarded.url(user)) as client:
        assert client.hset("nbq2:{sims}:lanes", "low", 1) == 1
        for other in ("nbq2:{other}:lanes", "nbq2:{sims2}:lanes", "nbq2:{*}:lanes", "sims"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.hset(other, "low", 1)


def test_to_list_all_queues_a_client_must_be_allowed_to(guarded, queue):
    with pytest.raises(ServerRefused, match="scan"):
        queue.jobs(all=True)
    guarded.admin.execute_command("ACL", "SETUSER", "nbq-client", "+scan")
    assert queue.jobs(all=True) == []
