"""A server that other machines can reach: nothing is sent to it before a secret is given."""

import socket

import pytest
import redis

from nbstreamq import SecretMissing, TaskQueue, cli

SECRET = "0123456789abcdef" * 4


@pytest.fixture
def without_secret(monkeypatch, tmp_path):
    """An environment with a key file at most."""
    monkeypatch.delenv("NBSTREAMQ_SECRET")
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def listening():
    """A port of this machine that would notice a connection; and its address for others."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        yield server, f"redis://0.0.0.0:{server.getsockname()[1]}/0"


def test_a_queue_by_url_is_refused_and_nothing_is_sent(without_secret, listening):
    server, url = listening
    with pytest.raises(SecretMissing, match="nbstreamq secret"):
        TaskQueue("x", url)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_a_queue_by_the_environment_s_url_is_refused(without_secret, listening, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_URL", listening[1])
    with pytest.raises(SecretMissing):
        TaskQueue("x")


def test_a_queue_by_client_is_refused_and_nothing_is_sent(without_secret, listening):
    server, url = listening
    with redis.Redis.from_url(url) as client, pytest.raises(SecretMissing):
        TaskQueue("x", client=client)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_workers_are_refused_and_nothing_is_sent(without_secret, listening):
    server, url = listening
    with pytest.raises(SystemExit, match="nbstreamq secret"):
        cli.main(["worker", url, "-n", "1"])
    with pytest.raises(BlockingIOError):
        server.accept()


def test_workers_may_be_insecure(without_secret, listening):
    server, url = listening
    server.close()
    with pytest.raises(SystemExit, match="can't be reached"):
        cli.main(["worker", url, "-n", "1", "--insecure"])


@pytest.fixture
def networked(start_server):
    """The url of a server that listens at all addresses of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_server("--port", str(port), "--bind", "0.0.0.0")
    return f"redis://0.0.0.0:{port}/0"


@pytest.mark.parametrize("how", [{"insecure": True}, {"secret": SECRET}])
def test_a_queue_that_is_insecure_or_has_a_secret_works(without_secret, networked, queue_name, how):
    with TaskQueue(queue_name, networked, workers=1, **how) as queue:
        assert queue.submit(abs, -1).result(20) == 1
