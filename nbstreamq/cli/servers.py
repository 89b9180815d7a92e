"""`nbstreamq server`: start, stop and look at this user's servers.

They are the embedded server, and servers for other machines, one for each port.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..settings import Settings
from ..sizes import in_units, read_size
from .parsing import Commands, add_command, add_json, argument, host_and_port
from .printing import advise, print_json

if TYPE_CHECKING:
    from ..launch.listening import Limits

#: Least bytes of a limit: an empty server takes a few millions.
_LEAST = 16 * 2**20


def add_servers(commands: Commands) -> None:
    """Add the command to the parser."""
    does = "start or stop the embedded server, or one for other machines; see if it runs"
    verbs = add_command(commands, "server", does, "nbstreamq server start").add_subparsers(
        required=True, metavar="VERB"
    )
    example = "nbstreamq server start --listen 0.0.0.0:6390 --memory 8GB"
    start = add_command(verbs, "start", "start it, unless it runs", example, _start)
    for limit, what in (("--memory", "memory"), ("--disk", "disk")):
        start.add_argument(
            limit,
            type=argument(functools.partial(read_size, "it")),
            metavar="SIZE",
            help=f"limit of {what}, such as 8GB: when it is reached, calls are refused",
        )
    for file, what in (("--cert", "the certificate"), ("--key", "its key")):
        start.add_argument(
            file, type=Path, help=f"file of {what} for TLS; default: one is made, with openssl"
        )
    does = "have it save its data, and stop it"
    stop = add_command(verbs, "stop", does, "nbstreamq server stop", _stop)
    does = "say whether it runs, and where its data are; exit with 1 if it does not"
    status = add_command(verbs, "status", does, "nbstreamq server status", _print_status)
    add_json(status)
    for verb in (start, stop, status):
        verb.add_argument(
            "--listen",
            type=argument(host_and_port),
            metavar="HOST:PORT",
            help="the server for other machines on this port, with TLS and a password",
        )


def _settings(options: argparse.Namespace) -> Settings:
    from ..launch.listening import settings_for

    settings = Settings.from_environment()
    return settings_for(settings, options.listen[1]) if options.listen else settings


def _name(options: argparse.Namespace) -> str:
    return f"The server on port {options.listen[1]}" if options.listen else "The embedded server"


def _start_command(options: argparse.Namespace) -> str:
    place = f" --listen {options.listen[0]}:{options.listen[1]}" if options.listen else ""
    return f"nbstreamq server start{place}"


def _limits(options: argparse.Namespace) -> Limits:
    from ..launch.listening import Limits

    limits = Limits(memory=options.memory or 0, disk=options.disk or 0)
    if 0 < limits.usable_memory < _LEAST or 0 in (options.memory, options.disk):
        raise ValueError(
            f"the limits leave {in_units(limits.usable_memory)} of memory: it needs 17 MB at least,"
            " and four times as much disk"
        )
    return limits


def _start(options: argparse.Namespace) -> None:
    limits = _limits(options)
    if (options.cert is None) != (options.key is None):
        raise ValueError("--cert and --key: give both, or none of them")
    if options.listen:
        _start_listening(options, limits)
    else:
        _start_embedded(options, limits)


def _start_embedded(options: argparse.Namespace, limits: Limits) -> None:
    from ..errors import ServerStartFailed
    from ..launch.listening import write_config
    from ..launch.server import ensure_server, is_running

    if options.cert:
        raise ValueError("--cert: only a server with --listen has TLS")
    settings = Settings.from_environment()
    if limits.usable_memory:
        if is_running(settings):
            raise ServerStartFailed(
                "The embedded server runs already, and takes limits when it starts. Stop it first:"
                " `nbstreamq server stop`."
            )
        write_config(settings, [], limits)
    print(f"The embedded server runs at {ensure_server(settings)}.")
    print(f"It stops by itself {settings.server_idle:.0f} s after its last client.")
    if limits.usable_memory:
        print(f"From now on, it uses {_in_words(limits)}.")
    advise("TaskQueue() uses it without a URL; `nbstreamq status` shows what it holds.")


def _in_words(limits: Limits) -> str:
    memory = f"at most {in_units(limits.usable_memory)} of memory"
    return f"{memory} and {in_units(limits.disk)} of disk" if limits.disk else memory


def _start_listening(options: argparse.Namespace, limits: Limits) -> None:
    from ..launch.listening import Listening, start_listening

    settings = _settings(options)
    host, port = options.listen
    certificate = (options.cert, options.key) if options.cert else None
    where = Listening(host=host, port=port, certificate=certificate)
    file = start_listening(settings, where, limits)
    print(f"A server listens on {host}:{port}, with TLS and a password, until you stop it.")
    used = _in_words(limits) if limits.usable_memory else "memory and disk without a limit"
    print(f"It uses {used}. Names in its certificate: {', '.join(where.names)}.")
    print(f"Its URL, password and secret are in {file}, which only you can read.")
    advise(
        f"copy that file to each machine (`scp {file} node5:`), and there:\n"
        "  . ./connect.env && nbstreamq worker -n 4\n"
        "In the shell of your notebook or script, the same without the second half."
    )


def _stop(options: argparse.Namespace) -> None:
    from ..launch.server import stop_server

    if not stop_server(_settings(options)):
        print(f"{_name(options)} does not run.")
        return
    print(f"{_name(options)} has saved its data and stopped.")
    advise(f"`{_start_command(options)}` starts it with its data.")


def _print_status(options: argparse.Namespace) -> None:
    from ..launch.listening import connect_file
    from ..launch.server import embedded_url, is_running

    settings = _settings(options)
    runs, url = is_running(settings), embedded_url(settings)
    if options.json:
        print_json({"running": runs, "url": url, "data": str(settings.data_dir)})
    else:
        print(f"{_name(options)} {'runs' if runs else 'does not run'}: {url}")
        print(f"Its data are in {settings.data_dir}.")
        if options.listen and runs:
            print(f"What clients need is in {connect_file(settings)}.")
        start = f"`{_start_command(options)}` starts it."
        advise("`nbstreamq status` shows queues." if runs else start)
    if not runs:
        sys.exit(1)
