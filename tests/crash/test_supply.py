"""What the server has lost is sent again by the client that knows it, and nobody notices."""

import pytest

from nbstreamq.errors import ValueMissing
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.keys import Keys

LARGE = 2**20


@pytest.fixture
def admin(server_url, queue_name):
    """Deletes keys of the test's queue by pattern."""
    with open_client(server_url) as client:

        def delete(pattern):
            found = list(
                client.scan_iter(Keys(queue_name).meta.removesuffix("meta") + pattern, count=1000)
            )
            assert found
            client.delete(*found)

        yield delete


def once(queue):
    return queue.submit(triple, 2).result(10) == 6


def burst(queue):
    return [f.result(10) for f in [queue.submit(triple, i) for i in range(8)]] == [
        3 * i for i in range(8)
    ]


def mapped(queue):
    return queue.map(triple, range(100), chunksize=5).result(10) == [3 * i for i in range(100)]


def named(queue):
    return queue.map(triple, range(9), name="n", replace=True).result(10) == [*range(0, 27, 3)]


def triple(x):
    return 3 * x


@pytest.mark.parametrize("calls", [once, burst, mapped, named])
def test_a_function_that_was_deleted(queue, admin, calls):
    assert calls(queue)
    admin("fn:*")
    queue.run(0)  # workers keep the functions that they know
    queue.run(2)
    assert calls(queue)


@pytest.mark.parametrize("calls", [once, burst, mapped, named])
def test_a_server_that_was_emptied_while_nothing_ran(start_server, new_queue, calls):
    server = start_server()
    queue = new_queue(server.url)
    assert calls(queue)
    with open_client(server.url) as client:
        client.flushdb()
    for _ in range(3):
        assert calls(queue)


def test_a_set_up_for_those_that_join_later(queue, admin):
    def set_up():
        import builtins

        builtins.was_set_up = True

    def was_set_up():
        import builtins

        return hasattr(builtins, "was_set_up")

    queue.everywhere(set_up).result(20)
    admin("fn:*")
    queue.run(0)
    queue.run(1)
    assert queue.submit(was_set_up).result(20)


def test_a_large_value_is_sent_again_when_it_is_used_again(queue, admin):
    data = bytes(LARGE)
    assert queue.submit(len, data).result(10) == LARGE
    held = queue.submit(len, data)
    assert held.result(10) == LARGE
    admin("value:*")
    queue.run(0)
    queue.run(1)
    first = queue.submit(len, data).exception(20)
    assert first is None or isinstance(first, ValueMissing)
    assert queue.submit(len, data).result(10) == LARGE


def test_messages_that_were_deleted_are_missed(new_queue, server_url, queue_name):
    queue = new_queue(workers=0)
    job = queue.map(abs, range(-3, 0), name="lost")
    with open_client(server_url) as client:
        client.xtrim(Keys(queue_name).lane("default"), maxlen=0)
    queue.run(1)
    words = "their messages were deleted"
    with pytest.warns(RuntimeWarning, match=words), pytest.raises(TimeoutError):
        job.result(10)
    assert queue.map(abs, range(-3, 0), name="lost", replace=True).result(10) == [3, 2, 1]
