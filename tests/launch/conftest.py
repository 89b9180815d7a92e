"""A server for other machines, which they reach by TLS."""

import contextlib
import re
import shutil
from dataclasses import replace

import pytest

from nbstreamq.launch.listening import Listening, settings_for
from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings
from tests.ports import free_port

_REDIS = shutil.which("redis-server")


@pytest.fixture
def listening(short_folder):
    """Settings of a server that is stopped at the end, and where it listens."""
    if not _REDIS or not shutil.which("openssl"):
        pytest.skip("needs Redis and openssl")
    folder, port = short_folder(), free_port()
    given = replace(Settings.from_environment(), secret=None, server_binary=_REDIS)
    given = replace(given, runtime_dir=folder / "run", data_dir=folder / "data")
    settings = settings_for(given, port)
    yield settings, Listening(host="127.0.0.1", port=port)
    stop_server(settings)


@pytest.fixture
def read_file():
    """``read_file(file)``: the URL and the secret in a file for clients."""
    return lambda file: re.findall(r"^export NBSTREAMQ_\w+='(.*)'$", file.read_text(), re.M)


@pytest.fixture
def hidden_socket():
    """``hidden_socket(settings)``: meanwhile nobody finds the server's unix socket."""

    @contextlib.contextmanager
    def hidden(settings):
        (socket,) = settings.runtime_dir.glob("*.sock")
        socket.rename(aside := socket.with_name("aside"))
        try:
            yield
        finally:
            aside.rename(socket)

    return hidden
