"""`nbstreamq dead`: messages that were refused, and calls that failed for good."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import NbstreamqError, SecretMismatch
from .parsing import Commands, add_command, add_json, add_queue, add_server
from .printing import advise, print_rows
from .target import open_queue, queue_names, server

COLUMNS = {
    "id": lambda row: row["id"],
    "queue": lambda row: row["queue"],
    "when": lambda row: f"{row['when']:%Y-%m-%d %H:%M}",
    "kind": lambda row: row["kind"],
    "function": lambda row: row["name"],
    "task": lambda row: row["task"],
    "why": lambda row: row["why"],
    "retry": lambda row: "yes" if row["can_retry"] else "no",
}
#: What `--json` has of an entry, and of it the table.
FIELDS = ("id", "when", "kind", "why", "lane", "task", "name", "job", "attempts", "can_retry")


def add_dead(commands: Commands) -> None:
    """Add the command to the parser."""
    dead = add_command(
        commands,
        "dead",
        "list what was refused or failed, or retry it",
        "nbstreamq dead list",
    )
    verbs = dead.add_subparsers(required=True, metavar="VERB")
    listing = add_command(
        verbs,
        "list",
        "list the refused messages and the failed calls of a week, newest last",
        "nbstreamq dead list --queue sims",
        _list,
    )
    add_json(listing)
    retry = add_command(
        verbs,
        "retry",
        "run the calls of an entry again; wait for them, unless they belong to a named job",
        "nbstreamq dead retry 1767225600000-0 --queue sims",
        _retry,
    )
    retry.add_argument("id", metavar="ID", help="id of the entry, as `dead list` shows it")
    add_queue(listing, default=None)
    add_queue(retry)
    for command in (listing, retry):
        add_server(command)


def _list(options: argparse.Namespace) -> None:
    rows = []
    for name in queue_names(*server(options), having="dead"):
        if options.queue in (None, name):
            rows += _rows(options, name)
    print_rows(
        options,
        rows,
        COLUMNS,
        empty="Nothing was refused, and nothing failed for good, within a week.",
        then="`nbstreamq dead retry ID --queue NAME` runs the calls of an entry again.",
    )


def _rows(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    try:
        with open_queue(options, name) as queue:
            return [
                {"queue": name, **{field: getattr(letter, field) for field in FIELDS}}
                for letter in queue.dead()
            ]
    except SecretMismatch:
        if options.queue:
            raise
        return []  # other people's queues may be on the same server


def _retry(options: argparse.Namespace) -> None:
    from ..wire.keys import is_named

    with open_queue(options, options.queue) as queue:
        letter = next((found for found in queue.dead() if found.id == options.id), None)
        if letter is None:
            raise NbstreamqError(
                f"queue {options.queue!r} has no entry {options.id}. See `nbstreamq dead list`."
            )
        again = letter.retry()
        if is_named(letter.job):
            name = letter.job.rpartition(":")[0]
            print(f"The calls run again, as part of job {name!r}.")
            advise(f"`nbstreamq jobs show {name}` shows how far they are.")
            return
        # They belong to this process now, and end with it.
        futures = again if isinstance(again, list) else [again]
        for future in futures:
            future.result()
    print(f"{len(futures):,} calls of {letter.name}() ran again, and succeeded.")
