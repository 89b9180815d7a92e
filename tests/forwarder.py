"""A process between clients and a server that holds back what passes, as a long road does.

    python -m tests.forwarder PATH DELAY

It carries bytes between a port, which it prints, and a server's socket. What it reads from its
standard input tells it what to do with them, and it answers each line.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[1]


class _Road:
    """What all connections go through."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.is_open, self.is_muted = True, False
        self.ends: set[_End] = set()

    def obey(self, order: str) -> None:
        if order == "cut":
            self.is_open = False
            for end in list(self.ends):
                end.transport.abort()
        elif order == "mute":
            self.is_muted = True
        elif order == "restore":
            self.is_open, self.is_muted = True, False
            for end in self.ends:
                end.pass_on()


class _End(asyncio.Protocol):
    """One end of a connection: what it receives goes to the other end after a while."""

    transport: asyncio.Transport

    def __init__(self, road: _Road) -> None:
        self._road = road
        self._held: deque[bytes] = deque()
        self.other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._road.ends.add(self)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._road.delay, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        self._held.append(data)
        self.pass_on()

    def pass_on(self) -> None:
        while self._held and self.other and not self._road.is_muted:
            self.other.transport.write(self._held.popleft())

    def connection_lost(self, _error: Exception | None) -> None:
        self._road.ends.discard(self)
        if self.other:
            self.other.transport.close()


class _Near(_End):
    """The end to which a client connects."""

    def __init__(self, road: _Road, path: str) -> None:
        super().__init__(road)
        self._path = path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._road.is_open:
            self._task = asyncio.create_task(self._connect())
        else:
            transport.close()

    async def _connect(self) -> None:
        far = _End(self._road)
        far.other = self
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: far, self._path)
        except OSError:
            self.transport.close()
        else:
            self.other = far
            self.pass_on()


async def _forward(path: str, delay: float) -> None:
    loop, road = asyncio.get_running_loop(), _Road(delay)
    server = await loop.create_server(lambda: _Near(road, path), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        road.obey(line.decode().strip())
        print("done", flush=True)


class Forwarder:
    """Starts the process; ends it at the end of a ``with`` block.

    Parameters
    ----------
    url
        Of a server on a unix socket.
    delay
        Seconds for which it holds back what passes, in each direction.
    """

    def __init__(self, url: str, delay: float) -> None:
        path = url.removeprefix("unix://").partition("?")[0]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forwarder", path, str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.url = f"redis://127.0.0.1:{self._read()}"

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def _order(self, what: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def cut(self) -> None:
        """End all connections, and let no new ones through."""
        self._order("cut")

    def mute(self) -> None:
        """Carry nothing; connections stay."""
        self._order("mute")

    def restore(self) -> None:
        """Let everything through, also what was held back."""
        self._order("restore")

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(_forward(sys.argv[1], float(sys.argv[2])))
