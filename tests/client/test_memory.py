"""What the server keeps of a queue does not grow with the number of calls that are over."""

import contextlib
import gc

import pytest

from nbstreamq.wire.addresses import open_client

#: Calls of each kind.
N_CALLS = 20_000


def kept(client, queue_name):
    """Return key -> how many elements it holds, without what all keys of the queue begin with."""
    sizes = {b"stream": client.xlen, b"hash": client.hlen, b"zset": client.zcard}
    found = {}
    for key in client.scan_iter(f"*{{{queue_name}}}*", count=1000):
        count = sizes.get(client.type(key))
        found[key.decode().rpartition("}:")[2]] = count(key) if count else 1
    return found


@pytest.fixture
def admin(server_url):
    with open_client(server_url) as client:
        yield client


@pytest.mark.timeout(180)
def test_nothing_grows_with_the_number_of_calls(make_queue, admin, queue_name, wait_until):
    queue = make_queue()
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    assert queue.map(abs, range(10)).result(20) == list(range(10))
    before = kept(admin, queue_name)

    assert len(queue.map(abs, range(N_CALLS)).result(60)) == N_CALLS
    for first in range(0, N_CALLS, 5000):
        for future in [queue.submit(abs, i) for i in range(first, first + 5000)]:
            future.result(60)
    for _ in range(20):
        queue.map(abs, range(1000), chunksize=10).cancel()
    assert queue.submit(abs, -1).result(20) == 1

    def grown():
        now = kept(admin, queue_name)
        # Read, and trimmed now and then; control is bounded, and cancelled, too: see below.
        may = {"events": 300, "control": 1100, "cancelled": 21}
        return {
            key: (n, before.get(key))
            for key, n in now.items()
            if n > before.get(key, 0) + may.get(key.partition(":")[0], 0)
        }

    with contextlib.suppress(pytest.fail.Exception):  # what is left is told below
        wait_until(lambda: not grown(), 40)
    assert grown() == {}


def test_what_sessions_leave_goes_when_they_end(
    make_queue, admin, queue_name, store, monkeypatch, wait_until
):
    monkeypatch.setattr("nbstreamq.wire.store.TRUST", 0.0)
    other = make_queue()
    other.run(2)
    assert other.submit(abs, -1).result(20) == 1
    wait_until(lambda: len(other.workers()) == 2, describe="both workers")
    before = kept(admin, queue_name)

    for _ in range(5):
        queue = make_queue(workers=0)
        queue.map(abs, range(100)).result(20)
        queue.map(abs, range(1000), chunksize=1).cancel()
        job = queue.map(abs, range(10), name="j")
        job.result(20)
        job.delete()
        queue.shutdown()
    del job
    gc.collect()

    def grown():
        store.forget_cancellations()  # as supervisors do, every minute
        now = kept(admin, queue_name)
        now.pop("control", None)  # bounded, and forgotten after a week
        now.pop("cancelled", None)
        return {key: (n, before.get(key, 0)) for key, n in now.items() if n > before.get(key, 0)}

    with contextlib.suppress(pytest.fail.Exception):  # what is left is told below
        wait_until(lambda: not grown(), 20)
    assert grown() == {}
    wait_until(lambda: store.forget_cancellations() or admin.hlen(store.keys.cancelled) <= 1, 20)
