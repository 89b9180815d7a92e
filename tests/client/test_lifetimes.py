"""Each key of a queue expires when the table in keys.py says."""

import fnmatch
import re

import pytest

from nbstreamq.wire import keys as module
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.keys import DAY, PREFIX, is_named

ROWS = dict(re.findall(r"^``(\S+?)``.*?  (\d+) days?  ", module.__doc__, re.M))


def documented_days(key):
    """Return the days of the longest pattern in the table that fits `key`."""
    name = key.partition("}:")[2]
    kind = "<job>" if is_named(name.partition(":")[2]) else "<session>"
    patterns = {
        re.sub(r"<\w+>", "*", row): days
        for row, days in ROWS.items()
        if not row.startswith(("events:", "letters:")) or row.endswith(kind)
    }
    return int(patterns[max((p for p in patterns if fnmatch.fnmatch(name, p)), key=len)])


@pytest.fixture
def keys_of_queue(server_url, queue_name):
    with open_client(server_url) as client:
        yield lambda: {
            key.decode(): client.ttl(key)
            for key in client.scan_iter(f"{PREFIX}:{{{queue_name}}}:*", count=1000)
        }


def test_each_key_lives_as_long_as_documented(queue, tmp_path, keys_of_queue, gate, wait_until):
    queue.everywhere(abs, -1).result(20)
    queue.map(abs, range(10), name="kept").result(20)
    queue.submit(abs, -1).result(20)
    queue.submit(bytes, 2**20).result(20)
    with pytest.raises(ZeroDivisionError):
        queue.options(retries=1, backoff=0.01).submit(lambda: 1 / 0).result(20)
    later = queue.options(delay=3600).submit(abs, -1)
    held = queue.options(lane="high").submit(gate.hold)
    wait_until(lambda: gate.n_reached == 1)
    waiting = [queue.submit(gate.hold) for _ in range(3)]
    assert waiting[-1].cancel()

    found = keys_of_queue()
    expected = {key: documented_days(key) * DAY for key in found}

    wrong = {key: found[key] for key in found if not 0.99 * expected[key] < found[key]}
    assert {key: ttl for key, ttl in found.items() if ttl > expected[key]} == {}
    assert wrong == {}
    kinds = {key.partition("}:")[2].partition(":")[0] for key in found}
    assert kinds >= {"lane", "delayed", "lanes", "meta", "setup", "fn", "events", "jobs", "job"}
    assert kinds >= {"session", "cancelled", "control", "nodes", "workers", "dead", "letters"}
    gate.open()
    assert later.cancel()
    held.result(20)


def test_a_kept_job_keeps_its_queue(make_queue, queue_name, keys_of_queue):
    queue = make_queue()
    queue.map(abs, range(3), name="kept").keep()
    make_queue().run(1)  # another client renews what the queue needs, and leaves this alone
    found = {key.partition("}:")[2]: ttl for key, ttl in keys_of_queue().items()}

    assert found["meta"] == found["jobs"] == -1

    queue.attach("kept").delete()  # the leak check sees that all keys expire now
