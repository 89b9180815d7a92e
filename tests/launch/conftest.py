"""A server for other machines, which they reach by TLS; and a `uv` that does as it is told."""

import contextlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

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


_UV = """#!/bin/sh
case "$1" in
run)
  while [ "$1" != -- ]; do shift; done
  shift 2
  exec {python} "$@";;
venv)
  for folder; do :; done
  mkdir -p "$folder/bin"
  printf '#!/bin/sh\\nexport SYNCED="%s"\\nexec {python} "$@"\\n' "$folder" > "$folder/bin/python"
  chmod +x "$folder/bin/python";;
pip)
  echo install >> {folder}/installs
  while [ -e {folder}/hold ]; do sleep 0.02; done
  if [ -e {folder}/fail ]; then printf 'error:\\n  there is no tea==1.0\\n' >&2; exit 1; fi;;
esac
"""


class FakeUv:
    """A folder with a `uv`: files beside it hold its installs up, or make them fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "uv").write_text(_UV.format(python=sys.executable, folder=folder))
        (folder / "uv").chmod(0o755)

    @property
    def n_installs(self) -> int:
        """How many installs have begun."""
        log = self.folder / "installs"
        return len(log.read_text().split()) if log.exists() else 0

    def set(self, name: str, on: bool) -> None:
        """Have it hold its installs, or let them fail; or not."""
        if on:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink()


@pytest.fixture
def uv(tmp_path: Path) -> FakeUv:
    """A `uv` of this test; put its folder on PATH."""
    return FakeUv(tmp_path / "uv")
