"""A road between clients and a server that can be cut, in the ways in which networks cut it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest


class Proxy:
    """Carries bytes between TCP clients and a server on a unix socket.

    Parameters
    ----------
    url
        Of the server.
    """

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("unix://").partition("?")[0]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}"
        self._lock = threading.Lock()
        #: Both ends of each connection: the client's, the server's.
        self._roads: list[tuple[socket.socket, socket.socket]] = []
        self._abandoned: list[socket.socket] = []
        self._said: dict[socket.socket, set[bytes]] = {}
        self._muted: set[socket.socket] = set()
        #: Whether new connections are let through.
        self.is_open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """End all connections; new ones work. Return how many there were."""
        with self._lock:
            roads, self._roads = self._roads, []
        for road in roads:
            for end in road:
                _shut(end)
        return len(roads)

    def reset(self) -> None:
        """The same, but what is on its way is lost, and the clients meet an error, not an end."""
        at_once = struct.pack("ii", 1, 0)
        with self._lock:
            roads, self._roads = self._roads, []
        for client, server in roads:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                client.shutdown(socket.SHUT_RD)  # the thread that reads it closes it
            _shut(server)

    def abandon(self) -> None:
        """End the clients' ends only: the server goes on serving who is no longer there."""
        with self._lock:
            roads, self._roads = self._roads, []
        for client, server in roads:
            self._abandoned.append(server)
            _shut(client)

    def mute(self, word: bytes) -> int:
        """Let nothing pass any more where `word` was said before, without a word; how many."""
        with self._lock:
            muted = [
                r for r in self._roads if any(word in data for data in self._said.get(r[0], ()))
            ]
            self._muted |= {end for road in muted for end in road}
        return len(muted)

    def close(self) -> None:
        """Cut everything, for good."""
        _shut(self._listening)
        self.cut()
        for end in self._abandoned:
            _shut(end)

    def _accept(self) -> None:
        with self._listening, contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    if not self.is_open:
                        raise OSError("the road is closed")
                    server.connect(self._path)
                except OSError:  # it is down
                    client.close()
                    server.close()
                    continue
                with self._lock:
                    self._roads.append((client, server))
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._said.setdefault(source, set()).add(data[:200])
                if source in self._muted:
                    continue
                with contextlib.suppress(OSError):  # what nobody reads is thrown away
                    target.sendall(data)
        # Abandoned: the server must not hear that nobody listens any more.
        if target not in self._abandoned:
            _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # the thread that reads it closes it


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    """A road to the session's server."""
    proxy = Proxy(server_url)
    yield proxy
    proxy.close()
