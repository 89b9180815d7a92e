"""`nbstreamq doctor`: what is wrong with a server or a queue."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from ..errors import NbstreamqError
from ..settings import Settings
from .parsing import Commands, add_command, add_json, add_queue, add_server
from .printing import advise, print_json
from .target import delete_queue, open_store, server

if TYPE_CHECKING:
    from ..secret import Address, Secret

#: Seconds that a worker may take to start and to run a call.
PATIENCE = 30.0
COLUMNS = {"what": lambda row: row["what"], "found": lambda row: row["found"]}


def add_doctor(commands: Commands) -> None:
    """Add the command to the parser."""
    doctor = add_command(
        commands,
        "doctor",
        "check a server, a queue, and that calls run; exit with 1 if there is a problem",
        "nbstreamq doctor redis://localhost:6379 --queue sims",
        _run,
    )
    add_server(doctor)
    add_queue(doctor)
    add_json(doctor)


def _run(options: argparse.Namespace) -> None:
    url, secret = server(options)
    found = list(_examine(options, url, secret))
    problems = [text for what, text in found if what == "problem"]
    if options.json:
        print_json([{"what": what, "found": text} for what, text in found])
    else:
        for what, text in found:
            print(f"{what:8} {text}")
        then = "`nbstreamq status` shows what waits and runs."
        advise("each problem says what to do; then run this again." if problems else then)
    if problems:
        sys.exit(1)


def _examine(
    options: argparse.Namespace, url: Address, secret: Secret
) -> Iterator[tuple[str, str]]:
    from ..client.status import examine, no_worker
    from ..launch.server import is_embedded

    with closing(open_store(url, secret, options.queue)) as store:
        yield from examine(store, url)
        if is_embedded(url, Settings.from_environment()):
            yield _call_here(url, secret)
        elif not store.workers():
            yield "problem", no_worker(options.queue, url)


def _call_here(url: Address, secret: Secret) -> tuple[str, str]:
    """Start a local worker, as a notebook would, and have it run a call."""
    from ..client.queue import TaskQueue

    name = f"doctor-{time.time_ns()}"
    began = time.monotonic()
    try:
        with TaskQueue(name, url, secret=secret, workers=1) as queue:
            queue.submit(abs, -1).result(timeout=PATIENCE)
    except (NbstreamqError, TimeoutError) as error:
        return "problem", f"a local worker can't run a call: {error}"
    delete_queue(url, secret, name)
    return "worker", f"one started here and ran a call in {time.monotonic() - began:.1f} s"
