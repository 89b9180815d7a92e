"""`nbstreamq queues`: list the queues of a server, or delete one."""

from __future__ import annotations

import argparse
import functools
from contextlib import closing

from ..arguments import check_queue_name
from ..errors import NbstreamqError
from ..sizes import plural
from .parsing import Commands, add_command, add_json, add_server, argument
from .printing import advise, print_rows
from .target import open_queues, open_store, server

COLUMNS = {
    "queue": lambda row: row["queue"],
    "waiting": lambda row: row["waiting"],
    "running": lambda row: row["running"],
    "workers": lambda row: row["workers"],
    "named jobs": lambda row: row["named_jobs"],
}


def add_queues(commands: Commands) -> None:
    """Add the command to the parser."""
    queues = add_command(
        commands, "queues", "list the queues on a server, or delete one", "nbstreamq queues list"
    )
    verbs = queues.add_subparsers(required=True, metavar="VERB")
    listing = add_command(
        verbs,
        "list",
        "list the queues: calls that wait or run, workers, named jobs",
        "nbstreamq queues list redis://localhost:6379",
        _list_queues,
    )
    listing.set_defaults(queue=None)
    add_json(listing)
    deletion = add_command(
        verbs,
        "delete",
        "delete a queue with all its calls, named jobs and results",
        "nbstreamq queues delete sims redis://localhost:6379",
        _delete_queue,
    )
    deletion.add_argument(
        "queue",
        type=argument(functools.partial(check_queue_name, "NAME")),
        metavar="NAME",
        help="name of the queue",
    )
    deletion.add_argument("--force", action="store_true", help="delete it even if it has workers")
    for command in (listing, deletion):
        add_server(command)


def _list_queues(options: argparse.Namespace) -> None:
    rows = []
    with open_queues(options) as stores:
        for store in stores:
            lanes = store.lanes(store.known_lanes())
            rows.append(
                {
                    "queue": store.keys.queue,
                    "waiting": sum(lane["waiting"] + lane["delayed"] for lane in lanes),
                    "running": sum(lane["running"] for lane in lanes),
                    "workers": len(store.workers()),
                    "named_jobs": len(store.job_names()),
                }
            )
    print_rows(
        options,
        rows,
        COLUMNS,
        empty="There are no queues on this server. The first TaskQueue makes one.",
        then="`nbstreamq status --queue NAME` shows the workers and lanes of one.",
    )


def _delete_queue(options: argparse.Namespace) -> None:
    with closing(open_store(*server(options), options.queue)) as store:
        if not options.force and (workers := store.workers()):
            hosts = ", ".join(sorted({str(d.get("host")) for d in workers.values()}))
            raise NbstreamqError(
                f"queue {options.queue!r} has {plural(len(workers), 'worker')} on {hosts}:"
                " stop them first, or add --force."
            )
        n_keys = store.delete_queue()
    if not n_keys:
        raise NbstreamqError(f"there is no queue {options.queue!r}. See `nbstreamq queues list`.")
    print(f"Deleted queue {options.queue!r}.")
    advise("`nbstreamq queues list` shows those that are left.")
