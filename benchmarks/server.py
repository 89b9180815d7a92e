"""A server for the tools that need one: the same program as the embedded one, and as durable."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from nbstreamq.launch.server import find_binary
from nbstreamq.settings import Settings

__all__ = ["Server", "url"]

#: Where a queue's client and workers find it.
_PLACE = "NBSTREAMQ_BENCHMARK_SOCKET"
_OPTIONS = "--port 0 --appendonly yes --appendfsync everysec --maxmemory-policy noeviction"


class Server:
    """Starts at once, and answers when the constructor returns."""

    def __init__(self) -> None:
        binary = find_binary(Settings.from_environment())
        folder = Path(tempfile.mkdtemp(prefix="server-"))
        path = folder / "socket"
        command = [binary, "--unixsocket", path, "--dir", folder, *_OPTIONS.split(), "--save", ""]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=(folder / "log").open("wb")
        )
        while not path.exists():
            if self.process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.002)
        os.environ[_PLACE] = str(path)


def url(scheme: str = "unix") -> str:
    """Return the address of the server that this process or its parent started."""
    return f"{scheme}://{os.environ[_PLACE]}"
