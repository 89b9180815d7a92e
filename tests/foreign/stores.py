"""Large values on S3 and in a shared folder; the S3 is a server of the test's own.

``make test-foreign`` runs this in an environment of its own, which has it.
"""

from __future__ import annotations

import logging
import os
import pickle

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from nbstreamq import NbstreamqError
from tests.real_workers import gate, new_queue

__all__ = ["gate", "new_queue"]

pytestmark = [
    # What these packages do is up to them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SECRET = "4d1f7c0a9b3e5d2846f0a1c7b8e9d3f2"


class Requests(logging.Handler):
    """The lines that the server has logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def server():
    """An S3 with one bucket, and this environment's credentials."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    server.stop()


@pytest.fixture
def s3(server):
    """The requests to it."""
    requests = Requests()
    logger = logging.getLogger("werkzeug")
    logger.setLevel(logging.INFO)
    logger.addHandler(requests)
    yield requests
    logger.removeHandler(requests)


@pytest.fixture
def bucket(server):
    """What lists the objects in the bucket."""

    def objects():
        fs = fsspec.filesystem("s3")
        fs.invalidate_cache()
        return fs.find("bucket")

    return objects


class TestS3:
    def test_a_value_is_fetched_once_for_each_machine(
        self, s3, bucket, new_queue, gate, wait_until
    ):
        queue = new_queue(workers=4, store="s3://bucket/values")
        array = np.random.default_rng(1).random(500_000)

        def pick(k):
            gate(f"worker {k}").open()
            for other in range(4):
                gate(f"worker {other}").wait()
            return float(array[k])

        job = queue.map(pick, range(4), chunksize=1)
        assert job.result(60) == [float(array[k]) for k in range(4)]
        (path,) = bucket()
        gets = [line for line in s3.lines if f"GET /{path}" in line]
        assert len(gets) == 1
        assert (queue.submit(np.negative, array).result(60) == -array).all()
        del job
        queue.shutdown()
        wait_until(lambda: not bucket(), 20, "an empty bucket")

    def test_what_somebody_else_wrote_is_refused(self, bucket, new_queue):
        queue = new_queue(workers=0, store="s3://bucket/values")
        future = queue.submit(pickle.dumps, "x" * 2**20)
        (path,) = bucket()
        fsspec.filesystem("s3").pipe_file(path, os.urandom(2**20))
        queue.run(1)
        assert "signature" in str(future.exception(60))
        queue.shutdown()

    def test_errors_show_no_credentials(self, server, new_queue):
        queue = new_queue(workers=1, store="s3://no-such-bucket/values")
        with pytest.raises(NbstreamqError, match="no-such-bucket") as caught:
            queue.submit(len, "x" * 2**20)
        assert SECRET not in str(caught.value)
        cause = caught.value.__cause__
        assert cause is not None
        assert cause.__traceback__ is None, "no frame shows credentials"


def test_a_corrupted_file_in_a_shared_folder_is_noticed(new_queue, tmp_path):
    queue = new_queue(workers=0, store=str(tmp_path))
    future = queue.submit(len, "x" * 2**20)
    (path,) = tmp_path.glob("*/*")
    with path.open("r+b") as file:
        file.seek(2**19)
        file.write(b"y")
    queue.run(1)
    assert "signature" in str(future.exception(60))
