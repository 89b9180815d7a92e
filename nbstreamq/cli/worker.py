"""`nbstreamq worker`: workers on this machine, for a queue on any server."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import MAX_WORKERS, check_lane, read_seconds, shown
from ..cores import n_cores
from ..secret import Address, Secret
from ..settings import Settings, conceal, receive
from .parsing import Commands, add_command, add_queue, add_server, argument
from .target import open_store, server

if TYPE_CHECKING:
    from ..wire.store import Store
    from ..worker.supervisor import Supervisor


def add_worker(commands: Commands) -> None:
    """Add the command to the parser."""
    worker = add_command(
        commands,
        "worker",
        "run workers on this machine until Ctrl-C, SIGTERM or SIGHUP",
        "nbstreamq worker redis://localhost:6379 --queue sims -n 4",
        _run_workers,
    )
    add_server(worker)
    add_queue(worker)
    worker.add_argument(
        "-n",
        type=argument(_number_of_workers),
        metavar="N",
        help="number of workers; default: one for each usable core",
    )
    worker.add_argument(
        "--lane",
        type=argument(functools.partial(check_lane, "--lane")),
        action="append",
        dest="lanes",
        metavar="LANE",
        help="serve this lane; repeat it for several, most urgent first; default: high, default"
        " and low",
    )
    worker.add_argument(
        "--drain",
        type=argument(functools.partial(read_seconds, "it")),
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM or SIGHUP, take no new calls and let the running ones finish for this"
        " long; then hand them to other workers. A second signal hands them over at once, Ctrl-C"
        " after 1 s; default: 30",
    )
    worker.add_argument("--control-socket", type=Path, help=argparse.SUPPRESS)
    worker.add_argument("--homes", nargs="+", default=(), help=argparse.SUPPRESS)


def _number_of_workers(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = -1
    if not 0 <= n <= MAX_WORKERS:
        raise ValueError(f"it is {shown(text)}: it must be an integer from 1 to {MAX_WORKERS:,}")
    return n


def _run_workers(options: argparse.Namespace) -> None:
    is_kernels = options.control_socket is not None  # a kernel started this, and scales it
    if options.n == 0 and not is_kernels:
        raise ValueError(f"-n is 0: it must be an integer from 1 to {MAX_WORKERS:,}")
    if is_kernels:  # q.logs() shows it
        logging.getLogger("nbstreamq").setLevel(logging.INFO)
    # This comes before anything that could run user code, or start a process that does.
    conceal(**(receive() if is_kernels else {}))
    url, secret = server(options)
    store = open_store(url, secret, options.queue)
    supervisor = _make_supervisor(options, store, url, secret)
    store.check_secret()
    if not is_kernels:
        n = supervisor.n_workers
        print(
            f"nbstreamq: queue {options.queue!r} on {url}: starting {n} worker{'s' * (n != 1)}."
            " Ctrl-C ends them.",
            flush=True,
        )
    gc.collect()
    supervisor.run()


def _make_supervisor(
    options: argparse.Namespace, store: Store, url: Address, secret: Secret
) -> Supervisor:
    # Slow imports come here, so that --help is quick, and before the fork, so that workers share
    # what they load.
    import cloudpickle  # noqa: F401

    from .. import public  # noqa: F401
    from ..launch.control_socket import ControlSocket
    from ..wire.keys import LANES, NESTED
    from ..worker.supervisor import Supervisor, SupervisorSettings

    settings = Settings.from_environment()
    socket = options.control_socket
    return Supervisor(
        store,
        url=url,
        secret=secret,
        n_workers=n_cores() if options.n is None else options.n,
        lanes=tuple(dict.fromkeys((*options.lanes, *NESTED))) if options.lanes else LANES,
        homes=options.homes,
        method=settings.start_method or ("fork" if sys.platform == "linux" else "spawn"),
        control_socket=ControlSocket(socket) if socket else None,
        settings=SupervisorSettings(
            heartbeat=settings.silence / 4, silence=settings.silence, drain=options.drain
        ),
    )
