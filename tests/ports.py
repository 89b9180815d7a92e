"""Ports for servers of tests."""

from __future__ import annotations

import socket


def free_port():
    """Return a port that is free now; a cluster's bus takes the one 10,000 above."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port
