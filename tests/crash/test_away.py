"""The server is away for a moment: whatever asks it waits, as plain calls do."""

import signal
import threading
import time
import warnings

import pytest

#: Seconds for which it is away.
AWAY = 0.7
MEGABYTES = 8


@pytest.fixture
def server(start_server):
    return start_server("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def away(server):
    """Stop the server, and start it again in a moment; returns at once."""
    started = []

    def leave():
        server.stop()
        started.append(threading.Timer(AWAY, server.start))
        started[-1].start()

    yield leave
    for timer in started:
        timer.join()


def submits(queue):
    return queue.submit(abs, -1).result(30) == 1


def submits_cached(queue):
    return queue.options(cache=True).submit(abs, -1).result(30) == 1


def maps_named(queue):
    return list(queue.map(abs, range(-3, 0), name="n")) == [3, 2, 1]


def attaches(queue):
    return list(queue.attach("before")) == [1]


def sends_large(queue):
    return queue.submit(len, bytes(2**20)).result(30) == 2**20


def puts(queue):
    return queue.submit(len, queue.put(bytes(2**20))).result(30) == 2**20


def sets_up(queue):
    return queue.everywhere(abs, -1).result(30) is not None


def looks(queue):
    return bool(queue.status().server and queue.jobs())


@pytest.mark.parametrize(
    "asks", [submits, submits_cached, maps_named, attaches, sends_large, puts, sets_up, looks]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_who_asks_meanwhile_waits(server, away, new_queue, asks):
    queue = new_queue(server.url)
    assert queue.map(abs, [-1], name="before").result(20) == [1]
    away()
    assert asks(queue)
    assert queue.submit(abs, -1).result(30) == 1  # its workers, too, have the server again


def test_who_waits_is_told_why_and_can_be_interrupted(server, new_queue, wait_until):
    queue = new_queue(server.url, workers=0)
    server.stop()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")

        def interrupt():
            wait_until(lambda: said, describe="the reason")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            queue.attach("nothing")
        thread.join()
    assert "can't be reached" in str(said[0].message)
    server.start()


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_large_results_survive_restarts(server, new_queue):
    queue = new_queue(server.url)
    assert queue.submit(abs, -1).result(20) == 1
    over = threading.Event()

    def restart():
        while not over.wait(AWAY):
            server.stop()
            time.sleep(AWAY)
            server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        futures = [queue.submit(bytes, MEGABYTES * 2**20 + i) for i in range(12)]
        sizes = [len(future.result(120)) for future in futures]
    finally:
        over.set()
        thread.join()
    assert sizes == [MEGABYTES * 2**20 + i for i in range(12)]
    assert queue.submit(abs, -1).result(60) == 1  # its workers, too, have the server again
