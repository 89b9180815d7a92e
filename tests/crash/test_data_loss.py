"""The server is killed and comes back without its data: nobody waits for ever, and all is said."""

import asyncio
import threading
import time

import pytest

from nbstreamq import DataLost
from nbstreamq.client import session
from nbstreamq.wire.addresses import open_client


@pytest.fixture
def forgetful(start_server, new_queue):
    """A server that keeps nothing, and a queue on it."""
    server = start_server()
    return server, new_queue(server.url)


def restart(server):
    server.stop()
    server.start()


def double(i):
    time.sleep(0.005)
    return 2 * i


def test_under_load_every_call_ends_and_later_ones_work(forgetful, wait_until):
    server, queue = forgetful
    value = queue.put([1, 2, 3])
    assert queue.submit(sum, value).result(20) == 6
    job = queue.map(double, range(1000), chunksize=10)
    singles = [queue.submit(double, i) for i in range(20)]
    wait_until(lambda: sum(f.done() for f in job[:]) > 50, describe="some results")

    restart(server)

    job.wait(30)
    for i, future in enumerate(job[:]):
        assert future.done()
        error = future.exception(0)
        assert isinstance(error, DataLost) if error else future.result(0) == 2 * i
    assert job.errors
    assert "appendonly" in str(next(iter(job.errors.values())))
    for future in singles:
        assert isinstance(future.exception(20), DataLost) or future.result(0) is not None
    assert queue.map(double, range(30)).result(30) == [2 * i for i in range(30)]
    assert queue.submit(sum, queue.put([4, 5])).result(20) == 9


@pytest.mark.parametrize("how", ["result", "callback", "await"])
def test_whoever_waits_is_told(forgetful, gate, how):
    server, queue = forgetful
    begun, go = gate("begun"), gate("go")

    def work():
        begun.open()
        go.wait()

    future = queue.submit(work)
    begun.wait()
    restart(server)
    go.open()

    if how == "result":
        with pytest.raises(DataLost):
            future.result(20)
    elif how == "callback":
        told = threading.Event()
        future.add_done_callback(lambda _: told.set())
        assert told.wait(20)
        assert isinstance(future.exception(0), DataLost)
    else:

        async def wait():
            await asyncio.wait_for(future, 20)

        with pytest.raises(DataLost):
            asyncio.run(wait())


def test_an_old_snapshot_is_a_loss_too(forgetful, gate):
    """What Redis does by default: now and then it writes all it has to the disk."""
    server, queue = forgetful
    assert queue.submit(abs, -1).result(20) == 1
    with open_client(server.url) as client:
        client.save()
    go = gate()
    future = queue.submit(go.wait)

    restart(server)
    go.open()

    with pytest.raises(DataLost):
        future.result(20)


def test_data_that_vanish_from_a_running_server(forgetful, gate, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE", 0.3)
    server, queue = forgetful
    go = gate()
    future = queue.submit(go.wait)
    with open_client(server.url) as client:
        client.flushall()
    go.open()

    with pytest.raises(DataLost):
        future.result(20)
    assert queue.submit(abs, -1).result(20) == 1


def test_everywhere(forgetful, gate):
    server, queue = forgetful
    queue.submit(abs, -1).result(20)
    go = gate()
    job = queue.everywhere(go.wait)

    restart(server)
    go.open()

    job.wait(20)
    assert {type(error) for error in job.errors.values()} == {DataLost}


def test_that_a_session_was_idle_for_a_day_is_no_loss(forgetful, gate, monkeypatch):
    """Its number has expired, though it still waits for a long task."""
    monkeypatch.setattr(session, "PATIENCE", 0.1)
    server, queue = forgetful
    begun, go = gate("begun"), gate("go")
    future = queue.submit(lambda: begun.open() or go.wait() or "done")
    begun.wait()
    monkeypatch.setattr("nbstreamq.client.sender.REMEMBERED", 0.0)
    with open_client(server.url) as client:
        assert client.delete(*client.keys("*:session:*")) == 1

    with pytest.raises(TimeoutError):
        future.result(0.5)
    go.open()
    assert future.result(20) == "done"
