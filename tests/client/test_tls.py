"""A queue through TLS, with a certificate of our own making.

The session's server may have been built without it; so its end of TLS is here, before its socket.
"""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from urllib.parse import urlencode

import pytest
import redis

from nbstreamq import ServerUnreachable, TaskQueue


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for this machine that it has signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", names, "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True, timeout=50)
    return files


class Terminator:
    """Takes TLS off what comes, and hands it to a server's socket."""

    def __init__(self, path, certificate):
        self._path = path
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._ends = []
        #: What the server was sent, and how many were turned away.
        self.n_bytes = self.n_refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listening.close()
        for end in self._ends:
            end.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain):
        self._ends.append(plain)
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except (OSError, ssl.SSLError):
            self.n_refused += 1
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._path)
        self._ends += [client, server]
        back = threading.Thread(target=self._carry, args=(server, client), daemon=True)
        back.start()
        self._carry(client, server)
        for end in (server, client):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        back.join(5)
        client.close()
        server.close()

    def _carry(self, source, target):
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := source.recv(65536):
                if target.family == socket.AF_UNIX:
                    self.n_bytes += len(data)
                target.sendall(data)


@pytest.fixture
def terminator(server_url, certificate):
    terminator = Terminator(server_url.removeprefix("unix://"), certificate)
    yield terminator
    terminator.close()


@pytest.fixture
def url(terminator, certificate):
    """The server's address, and who has signed its certificate."""
    options = urlencode({"ssl_ca_certs": certificate[0]})
    return f"rediss://localhost:{terminator.port}/0?{options}"


def use(queue):
    """Have its workers do something, large and small."""
    assert queue.submit(abs, -1).result(20) == 1
    assert queue.map(abs, range(-500, 0)).result(20) == list(range(500, 0, -1))
    assert queue.submit(len, queue.put(b"x" * 2_000_000)).result(20) == 2_000_000
    assert len(queue.submit(bytes, 3_000_000).result(20)) == 3_000_000
    assert [f.result(20) for f in [queue.submit(abs, -i) for i in range(300)]] == list(range(300))


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_a_queue_and_its_workers_go_through_tls(url, queue_name, terminator, scheme):
    with TaskQueue(queue_name, url.replace("rediss", scheme), workers=1) as queue:
        use(queue)
        assert queue.status().trouble == ""
    assert terminator.n_bytes > 2_000_000
    assert terminator.n_refused == 0


def test_workers_of_a_client_with_tls_know_the_certificate_too(terminator, certificate, queue_name):
    with (
        redis.Redis(
            host="localhost", port=terminator.port, ssl=True, ssl_ca_certs=str(certificate[0])
        ) as client,
        TaskQueue(queue_name, client=client, workers=1) as queue,
    ):
        use(queue)


def test_a_certificate_that_nobody_known_has_signed_is_refused(terminator, queue_name):
    with pytest.raises(ServerUnreachable, match="certificate"):
        TaskQueue(queue_name, f"rediss://localhost:{terminator.port}/0", workers=0)
    assert terminator.n_bytes == 0


def test_a_certificate_for_another_machine_is_refused(url, terminator, queue_name):
    with pytest.raises(ServerUnreachable, match="certificate"):
        TaskQueue(queue_name, url.replace("localhost", "127.0.0.2"), workers=0)
    assert terminator.n_bytes == 0
