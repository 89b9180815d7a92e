"""`nbstreamq status` and `nbstreamq top`: what queues hold, and what their workers do."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from ..arguments import read_seconds
from ..errors import NbstreamqError
from ..sizes import in_units
from .parsing import Commands, add_command, add_json, add_queue, add_server, argument
from .printing import advise, console, print_json, table
from .target import open_queues, open_store, server

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..client.status import QueueStatus
    from ..wire.records import ServerFacts
    from ..wire.store import Store

LANES = {
    "queue": lambda row: row[0],
    "lane": lambda row: row[1].lane,
    "waiting": lambda row: row[1].waiting,
    "running": lambda row: row[1].running,
    "delayed": lambda row: row[1].delayed,
    "settled": lambda row: row[1].over,
}
LIMITS = {
    "queue": lambda row: row[0],
    "limit": lambda row: row[1].limit,
    "concurrent": lambda row: "-" if row[1].concurrent is None else row[1].concurrent,
    "rate": lambda row: "-" if row[1].rate is None else f"{row[1].rate:.3g}/s",
    "running": lambda row: row[1].running,
    "waiting": lambda row: row[1].waiting,
}
WORKERS = {
    "queue": lambda row: row[0],
    "worker": lambda row: row[1].id,
    "host": lambda row: row[1].host,
    "state": lambda row: row[1].activity,
    "cpu": lambda row: f"{row[1].cpu:.0%}",
    "memory": lambda row: in_units(row[1].memory_bytes) if row[1].memory_bytes else "-",
    "python": lambda row: row[1].python,
    "lanes": lambda row: ", ".join(lane for lane in row[1].lanes if not lane.startswith("nested")),
}


def add_status(commands: Commands) -> None:
    """Add the command to the parser."""
    status = add_command(
        commands,
        "status",
        "show the server, what waits and runs, the workers and what is wrong",
        "nbstreamq status redis://localhost:6379 --queue sims",
        _print_status,
    )
    add_json(status)
    top = add_command(
        commands,
        "top",
        "show the same live, until Ctrl-C",
        "nbstreamq top redis://localhost:6379",
        _watch,
    )
    top.add_argument(
        "--interval",
        type=argument(functools.partial(read_seconds, "--interval", least=0.1)),
        default=1.0,
        metavar="SECONDS",
        help="seconds between two looks; default: 1",
    )
    for command in (status, top):
        add_server(command)
        add_queue(command, default=None)


def _print_status(options: argparse.Namespace) -> None:
    with open_queues(options) as stores:
        found = _look(stores)
        if options.json:
            print_json({"server": _server(options), "queues": found})
            return
        out = console()
        out.print(_picture(_server(options), found))
    if not found:
        advise("`nbstreamq demo` runs some calls; `from nbstreamq import TaskQueue` is the way in.")
    elif not any(status.workers for status in found):
        advise("`nbstreamq worker --queue NAME` starts workers; a notebook starts its own.")
    else:
        advise("`nbstreamq jobs list` shows named jobs, `nbstreamq top` this page live.")


def _watch(options: argparse.Namespace) -> None:
    if not sys.stdout.isatty():
        raise NbstreamqError(
            "top draws on a terminal, and this is none. `nbstreamq status` prints the same once,"
            " `nbstreamq metrics` for programs."
        )
    from rich.live import Live

    with suppress(KeyboardInterrupt), Live(console=console(), screen=True) as live:
        while True:
            with open_queues(options) as stores:
                live.update(_picture(_server(options), _look(stores)), refresh=True)
            time.sleep(options.interval)


def _look(stores: Sequence[Store]) -> list[QueueStatus]:
    from ..client.status import queue_status

    return [queue_status(store, "", 0, "") for store in stores]


def _server(options: argparse.Namespace) -> ServerFacts:
    url, secret = server(options)
    with closing(open_store(url, secret, "default")) as store:
        return store.server_facts()


def _picture(facts: ServerFacts, found: Sequence[QueueStatus]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    limit = in_units(facts.limit_bytes) if facts.limit_bytes else "no limit"
    used = in_units(facts.used_bytes) if facts.used_bytes is not None else "?"
    head = f"{facts.product} {facts.version or ''}: {used} of memory used, {limit}"
    lanes = [
        (status.queue, lane)
        for status in found
        for lane in status.lanes
        if lane.lane == "default" or lane.waiting or lane.running or lane.delayed
    ]
    limits = [(status.queue, limit) for status in found for limit in status.limits]
    workers = [(status.queue, worker) for status in found for worker in status.workers]
    problems = facts.problems()
    problems += [
        f"queue {status.queue!r}: {text}"
        for status in found
        for text in (*status.warnings, status.refusals)
        if text and text not in problems
    ]
    parts: list[RenderableType] = [Text(head)]
    parts += [Text(), table(lanes, LANES)] if lanes else [Text("There are no queues here yet.")]
    parts += [Text(), table(limits, LIMITS)] if limits else []
    parts += [Text(), table(workers, WORKERS)] if workers else []
    parts += [Text(f"warning: {text}", style="bold red") for text in problems]
    return Group(*parts)
