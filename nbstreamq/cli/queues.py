"""`nbstreamq queues`: list the queues of a server, or delete one."""

from __future__ import annotations

import argparse
import functools
from contextlib import closing

from ..arguments import check_queue_name, shown
from ..errors import NbstreamqError
from .parsing import Commands, add_command, add_server, argument
from .target import open_store, server


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
    url, secret = server(options)
    with closing(open_store(url, secret, "default")) as store:
        names = store.queue_names()
    for name in names:
        with closing(open_store(url, secret, name)) as store:
            lanes = store.lanes(store.known_lanes())
            counts = {
                "waiting": sum(lane["waiting"] + lane["delayed"] for lane in lanes),
                "running": sum(lane["running"] for lane in lanes),
                "workers": len(store.workers()),
                "named jobs": len(store.job_names()),
            }
        print(f"{shown(name):30}", *(f"{n} {what}" for what, n in counts.items()), sep="  ")
    if not names:
        print("There are no queues on this server.")


def _delete_queue(options: argparse.Namespace) -> None:
    with closing(open_store(*server(options), options.queue)) as store:
        if not options.force and (workers := store.workers()):
            hosts = ", ".join(sorted({str(d.get("host")) for d in workers.values()}))
            raise NbstreamqError(
                f"queue {options.queue!r} has {len(workers)} workers on {hosts}: stop them first,"
                " or add --force."
            )
        n_keys = store.delete_queue()
    if not n_keys:
        raise NbstreamqError(f"there is no queue {options.queue!r}. See `nbstreamq queues list`.")
    print(f"Deleted queue {options.queue!r}.")
