"""A server that does not carry what is large, or lets nobody in any more: an error, and no hang."""

import contextlib
import warnings

import pytest

from nbstreamq.errors import NbstreamqError
from nbstreamq.wire.addresses import open_client

LIMITS = {
    "bulk": ("--proto-max-bulk-len", "1mb"),
    "query": ("--client-query-buffer-limit", "1mb"),
    "output": ("--client-output-buffer-limit", "normal 1mb 1mb 1"),
}
SIZE = 3 * 2**20
#: Seconds in which a call must have ended.
SOON = 30.0


def argument(queue):
    return queue.submit(len, bytes(SIZE)).result(SOON) == SIZE


def result(queue):
    return len(queue.submit(bytes, SIZE).result(SOON)) == SIZE


def many_results(queue):
    return [len(r) for r in queue.map(bytes, [2 * 10**5] * 20, chunksize=1)] == [2 * 10**5] * 20


def many_arguments(queue):
    futures = [queue.submit(len, bytes(2 * 10**5)) for _ in range(20)]
    return [f.result(SOON) for f in futures] == [2 * 10**5] * 20


def exception(queue):
    def fails():
        raise ValueError("x" * SIZE)

    error = queue.submit(fails).exception(SOON)
    return isinstance(error, NbstreamqError) or len(str(error)) >= SIZE


def named_inputs(queue):
    return queue.map(len, [bytes(SIZE)], name="in").result(SOON) == [SIZE]


def named_results(queue):
    return [len(r) for r in queue.map(bytes, [SIZE], name="out").result(SOON)] == [SIZE]


def set_up(queue):
    return queue.everywhere(len, bytes(SIZE)).result(SOON) == [SIZE] * 2


def put(queue):
    return queue.submit(len, queue.put(bytes(SIZE))).result(SOON) == SIZE


def function(queue):
    data = bytes(SIZE)
    return queue.submit(lambda: len(data)).result(SOON) == SIZE


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "call",
    [
        argument,
        result,
        many_results,
        many_arguments,
        exception,
        named_inputs,
        named_results,
        set_up,
        put,
        function,
    ],
)
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_too_large_fails_and_the_rest_goes_on(start_server, new_queue, limit, call):
    server = start_server(*LIMITS[limit])
    queue, other = new_queue(server.url), new_queue(server.url, workers=0)
    assert queue.submit(abs, -1).result(20) == 1
    with contextlib.suppress(NbstreamqError):
        assert call(queue)
    assert other.map(abs, range(-20, 0), chunksize=1).result(20) == [*range(20, 0, -1)]
    assert queue.submit(abs, -2).result(20) == 2


@pytest.mark.timeout(60)
def test_who_waits_is_told_that_no_more_clients_are_let_in(start_server, new_queue):
    server = start_server()
    queue = new_queue(server.url)
    assert queue.submit(abs, -1).result(20) == 1
    with warnings.catch_warnings(record=True) as said, open_client(server.url) as client:
        warnings.simplefilter("always")
        try:
            client.config_set("maxclients", 1)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(TimeoutError):
                queue.submit(abs, -1).result(8)
        finally:
            client.config_set("maxclients", 100)
    assert "max number of clients reached" in " ".join(str(one.message) for one in said)
    assert queue.submit(abs, -2).result(20) == 2
