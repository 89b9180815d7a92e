"""`nbstreamq server`: start, stop and look at the embedded server."""

from __future__ import annotations

import argparse
import sys

from ..settings import Settings
from .parsing import Commands, add_command, add_json
from .printing import advise, print_json


def add_servers(commands: Commands) -> None:
    """Add the command to the parser."""
    does = "start or stop the embedded server of this user, or see if it runs"
    verbs = add_command(commands, "server", does, "nbstreamq server start").add_subparsers(
        required=True, metavar="VERB"
    )
    add_command(verbs, "start", "start it, unless it runs", "nbstreamq server start", _start)
    does = "have it save its data, and stop it"
    add_command(verbs, "stop", does, "nbstreamq server stop", _stop)
    does = "say whether it runs, and where its data are; exit with 1 if it does not"
    add_json(add_command(verbs, "status", does, "nbstreamq server status", _print_status))


def _start(_options: argparse.Namespace) -> None:
    from ..launch.server import ensure_server

    settings = Settings.from_environment()
    url = ensure_server(settings)
    print(f"The embedded server runs at {url}.")
    print(f"It stops by itself {settings.server_idle:.0f} s after its last client.")
    advise("TaskQueue() uses it without a URL; `nbstreamq status` shows what it holds.")


def _stop(_options: argparse.Namespace) -> None:
    from ..launch.server import stop_server

    if not stop_server(Settings.from_environment()):
        print("The embedded server does not run.")
        return
    print("The embedded server has saved its data and stopped.")
    advise("`nbstreamq server start`, or the next TaskQueue(), starts it with its data.")


def _print_status(options: argparse.Namespace) -> None:
    from ..launch.server import embedded_url, is_running

    settings = Settings.from_environment()
    runs = is_running(settings)
    if options.json:
        about = {"running": runs, "url": embedded_url(settings), "data": str(settings.data_dir)}
        print_json(about)
    else:
        print(f"The embedded server {'runs' if runs else 'does not run'}: {embedded_url(settings)}")
        print(f"Its data are in {settings.data_dir}.")
        advise("`nbstreamq status` shows its queues." if runs else "`nbstreamq server start`.")
    if not runs:
        sys.exit(1)
