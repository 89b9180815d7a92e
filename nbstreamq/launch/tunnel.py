"""A server on a machine that ssh leads to: `TaskQueue(url="ssh://login")`.

The machine runs the same server that is embedded elsewhere, on its unix socket. `ssh -L` leads to
it from a socket here. The server goes on when the connection ends, as long as workers use it, and
its data stay on that machine's disk.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import tempfile
import threading
import time
from typing import IO
from urllib.parse import quote, unquote, urlsplit

from ..errors import ServerUnreachable
from ..locks import Event
from ..secret import Address, Secret
from ..settings import Settings, environment_without_secrets, make_private
from .control_socket import is_open
from .launcher import Setting, last_line
from .ssh import OPTIONS, explain, host_in

#: Seconds in which the machine must have started the server, and in which the socket must be there.
TIMEOUT = 40.0
#: Seconds between two looks at whether the socket is there.
POLL = 0.02
#: Seconds between two attempts to connect again.
RETRY = 5.0
#: Seconds in which an attempt that is under way may end when the queue is closed.
FAREWELL = 2.0
#: Starts the server, and prints its address and the machine's key.
_START = """exec "$path" -c "
from nbstreamq.launch.server import ensure_server
from nbstreamq.settings import Settings
from nbstreamq.wire.signing import load_secret
settings = Settings.from_environment()
print(ensure_server(settings), load_secret(settings).reveal())
"
"""


class Tunnel:
    """A connection to a server on another machine, opened again whenever it is lost.

    Parameters
    ----------
    url
        ``ssh://me@login``.
    settings
        Where the socket is.

    Attributes
    ----------
    command
        What runs a shell's command on that machine, once the command is appended.
    target
        Path of the server's socket there.
    url
        Of the server, from here.
    secret
        The key of that machine, which signs what belongs to its server.

    Raises
    ------
    ServerUnreachable
        ssh does not get there, or the server does not start there; the message says why.
    """

    def __init__(self, url: Address, settings: Settings) -> None:
        self._on = str(url)
        host = host_in("url", url.reveal())
        make_private(settings.runtime_dir, "NBSTREAMQ_RUNTIME_DIR")
        for old in settings.runtime_dir.glob("tunnel-*.sock"):
            if not is_open(old):  # its process was killed
                old.unlink(missing_ok=True)
        self._path = settings.runtime_dir.absolute() / f"tunnel-{secrets.token_hex(4)}.sock"
        self.url = Address(f"unix://{quote(str(self._path))}")
        self.command = ["ssh", *OPTIONS.split(), "--", f"ssh://{host}"]
        self._closing = Event()
        self.target = self.start_server()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as this
        self._process = self._connect()
        self._thread = threading.Thread(
            target=self._keep, name=f"nbstreamq-{self._on}", daemon=True
        )
        self._thread.start()

    def start_server(self) -> str:
        """Start the server there unless it runs, and return the path of its socket."""
        script = f"{Setting().find_python()}\n{_START}"
        try:
            done = subprocess.run(  # noqa: S603 - ours
                [*self.command, "exec sh -s"],
                input=script.encode(),
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
                env=environment_without_secrets(),
            )
        except subprocess.TimeoutExpired:
            raise self._unreachable(f"it has not answered for {TIMEOUT:g} s") from None
        if done.returncode:
            raise self._unreachable(explain(done.stderr.decode(errors="replace"), self._on))
        address, _, key = last_line(done.stdout.decode()).partition(" ")
        self.secret = Secret(key)
        return unquote(urlsplit(address).path)

    def _connect(self) -> subprocess.Popen[bytes]:
        self._path.unlink(missing_ok=True)
        process = subprocess.Popen(  # noqa: S603 - ours
            [
                *self.command[:-2],
                "-L",
                f"{self._path}:{self.target}",
                *self.command[-2:],
                "exec cat",  # it ends with this process, which holds its input
            ],
            env=environment_without_secrets(),
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,  # Ctrl-C in this terminal must not reach it
        )
        deadline = time.monotonic() + TIMEOUT
        while not self._path.is_socket():
            if process.poll() is not None or time.monotonic() > deadline:
                _end(process)
                raise self._unreachable(explain(_read(self._output), self._on))
            time.sleep(POLL)
        return process

    def _keep(self) -> None:
        """Connect again each time the connection is lost: at once, then after pauses."""
        while not self._closing.is_set():
            self._process.wait()
            _end(self._process)
            pause = 0.0
            while not self._closing.wait(pause):
                pause = RETRY
                with contextlib.suppress(ServerUnreachable):  # the laptop may be in a train
                    self.target = self.start_server()
                    self._process = self._connect()
                    break

    def _unreachable(self, why: str) -> ServerUnreachable:
        return ServerUnreachable(f"The server on {self._on} can't be reached: {why}")

    def close(self) -> None:
        """End the connection; the server and its workers go on."""
        self._closing.set()
        self._process.kill()
        self._thread.join(FAREWELL)  # it may wait for a machine that does not answer
        _end(self._process)
        self._output.close()
        self._path.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()


def _read(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")
