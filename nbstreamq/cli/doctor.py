"""`nbstreamq doctor`: what is wrong with a server or a queue."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from .parsing import Commands, add_command, add_queue, add_server
from .target import open_store, server


def add_doctor(commands: Commands) -> None:
    """Add the command to the parser."""
    doctor = add_command(
        commands,
        "doctor",
        "check a server and a queue; exit with 1 if there is a problem",
        "nbstreamq doctor redis://localhost:6379 --queue sims",
        _examine,
    )
    add_server(doctor)
    add_queue(doctor)


def _examine(options: argparse.Namespace) -> None:
    from ..client.status import examine

    url, secret = server(options)
    n_problems = 0
    with closing(open_store(url, secret, options.queue)) as store:
        for what, text in examine(store, url):
            print(f"{what:8} {text}")
            n_problems += what == "problem"
    if n_problems:
        sys.exit(1)
