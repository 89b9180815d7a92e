"""`nbstreamq worker`: workers on this machine, for a queue on any server."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import (
    MAX_RETRIES,
    MAX_WORKERS,
    check_lane,
    check_unit,
    read_bytes,
    read_seconds,
    shown,
)
from ..cores import n_cores
from ..launch.lifeline import Lifeline, check_forwarded, sweep_sockets
from ..secret import Address, Secret
from ..settings import Settings, conceal, receive
from .parsing import Commands, Parser, add_command, add_queue, add_server, argument
from .target import open_store, server

if TYPE_CHECKING:
    from ..wire.store import Store
    from ..worker.devices import Devices
    from ..worker.supervisor import Supervisor

logger = logging.getLogger(__name__)


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
    _add_life(worker)
    worker.add_argument(
        "--device",
        metavar="gpu=IDS",
        help="let each worker see one GPU only: gpu=auto for those that there are, or gpu=0,1."
        " Workers beyond that see none; default: all see all",
    )
    worker.add_argument(
        "--per-device",
        type=argument(functools.partial(_number_from_one, most=MAX_WORKERS)),
        default=1,
        metavar="N",
        help="how many workers share one GPU; default: 1",
    )
    worker.add_argument("--control-socket", type=Path, help=argparse.SUPPRESS)
    worker.add_argument("--homes", nargs="+", default=(), help=argparse.SUPPRESS)


def _add_life(worker: Parser) -> None:
    """Add the options that say how long workers live, and how they end."""
    worker.add_argument(
        "--drain",
        type=argument(functools.partial(read_seconds, "it")),
        default=30.0,
        metavar="TIME",
        help="after SIGTERM or SIGHUP, take no new calls and let the running ones finish for this"
        " long, such as 25 or 5m; then hand them to other workers. A second signal hands them over"
        " at once, Ctrl-C after 1 s; default: 30",
    )
    worker.add_argument(
        "--lifetime",
        type=argument(functools.partial(read_seconds, "it", least=0.1)),
        default=math.inf,
        metavar="TIME",
        help="after this long, such as 55m, take no new calls, drain and end; default: never",
    )
    worker.add_argument(
        "--idle-timeout",
        type=argument(functools.partial(read_seconds, "it", least=0.1)),
        default=math.inf,
        metavar="TIME",
        help="end when nothing has run for this long; default: never",
    )
    worker.add_argument(
        "--max-tasks-per-worker",
        type=argument(_number_from_one),
        default=0,
        metavar="N",
        help="replace a worker after so many calls; default: never",
    )
    worker.add_argument(
        "--max-memory",
        type=argument(functools.partial(read_bytes, "it", least=32 * 2**20)),
        default=0,
        metavar="BYTES",
        help="replace a worker that uses more after a call, such as 4G; default: never",
    )
    worker.add_argument(
        "--unit",
        type=argument(functools.partial(check_unit, "--unit")),
        metavar="ID",
        help="what q.workers() shows as the unit of these workers, such as the id of a batch job",
    )
    worker.add_argument("--secrets-on-stdin", action="store_true", help=argparse.SUPPRESS)
    worker.add_argument("--lifeline", action="store_true", help=argparse.SUPPRESS)


def _number_from_one(text: str, most: int = MAX_RETRIES) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= most):
        raise ValueError(f"it is {shown(text)}: it must be an integer from 1 to {most:,}")
    return int(text)


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
    logging.getLogger("nbstreamq").setLevel(logging.INFO)
    # This comes before anything that could run user code, or start a process that does.
    lifeline = Lifeline() if options.lifeline else None  # first, since it is the standard input
    known = receive() if is_kernels or options.secrets_on_stdin else {}
    if lifeline is not None:
        lifeline.session = known.pop("session").reveal()
    forwarded = known.pop("socket", Secret("")).reveal()
    if forwarded:
        check_forwarded(forwarded)
        sweep_sockets()
    conceal(**known)
    url, secret = server(options)
    store = open_store(url, secret, options.queue)
    supervisor = _make_supervisor(options, store, url, secret, lifeline)
    store.check_secret()
    if not is_kernels:
        _log_banner(options, supervisor.n_workers, url)
    gc.collect()
    process = os.getpid()
    try:
        supervisor.run()
    finally:
        if forwarded and os.getpid() == process:  # not in a worker, which is a fork
            Path(forwarded).unlink(missing_ok=True)  # ssh leaves it behind


def _devices(options: argparse.Namespace) -> Devices:
    from ..worker.devices import Devices, read_devices

    if options.device is None:
        return Devices()
    try:
        return Devices(read_devices(options.device), options.per_device)
    except ValueError as error:
        raise ValueError(f"--device is {shown(options.device)}: {error}") from None


def _log_banner(options: argparse.Namespace, n_workers: int, url: Address) -> None:
    """Say what runs here, for whom, and for how long."""
    from ..wire.messages import VERSION

    times = {"drain": options.drain, "lifetime": options.lifetime, "idle": options.idle_timeout}
    known = [f"{what} {seconds:g} s" for what, seconds in times.items() if seconds < math.inf]
    logger.info(
        "nbstreamq %s, Python %d.%d: starting %d worker%s for queue %r on %s; process %d on %s; %s."
        " Ctrl-C ends them.",
        VERSION,
        *sys.version_info[:2],
        n_workers,
        "s" * (n_workers != 1),
        options.queue,
        url,
        os.getpid(),
        os.uname().nodename,
        ", ".join([f"unit {options.unit}", *known] if options.unit else known),
    )


def _make_supervisor(
    options: argparse.Namespace,
    store: Store,
    url: Address,
    secret: Secret,
    lifeline: Lifeline | None,
) -> Supervisor:
    # Slow imports come here, so that --help is quick, and before the fork, so that workers share
    # what they load.
    import cloudpickle  # noqa: F401

    from .. import public  # noqa: F401
    from ..launch.control_socket import ControlSocket
    from ..wire.keys import LANES, NESTED
    from ..worker.supervisor import Supervisor, SupervisorSettings

    settings = Settings.from_environment()
    path = options.control_socket
    return Supervisor(
        store,
        url=url,
        secret=secret,
        n_workers=n_cores() if options.n is None else options.n,
        lanes=tuple(dict.fromkeys((*options.lanes, *NESTED))) if options.lanes else LANES,
        homes=options.homes,
        method=settings.start_method or ("fork" if sys.platform == "linux" else "spawn"),
        control_socket=ControlSocket(path) if path else None,
        unit=options.unit or "",
        devices=_devices(options),
        wear=(options.max_tasks_per_worker, options.max_memory),
        lifeline=lifeline,
        settings=SupervisorSettings(
            heartbeat=settings.silence / 4,
            silence=settings.silence,
            drain=options.drain,
            lifetime=options.lifetime,
            idle_timeout=options.idle_timeout,
        ),
    )
