"""The command line: `nbstreamq worker URL -n 4`, and commands for servers and queues."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .arguments import MAX_WORKERS, check_lane, check_queue_name, read_seconds, shown
from .cores import n_cores
from .errors import NbstreamqError
from .secret import Address, Secret
from .settings import LOG_FORMAT, Settings, conceal, receive

if TYPE_CHECKING:
    from .wire.store import Store
    from .worker.supervisor import Supervisor

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 on wrong arguments or variables, with 1 on an error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format=LOG_FORMAT)
    try:
        options.run(options)
    except (NbstreamqError, OSError) as error:
        sys.exit(f"nbstreamq: {error}")
    except ValueError as error:
        print(f"nbstreamq: {error}", file=sys.stderr)
        sys.exit(2)


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See `{self.prog} --help`.\n")


def _parser() -> _Parser:
    parser = _Parser(prog="nbstreamq", description="Run workers, check servers, manage queues.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_worker(commands)
    _add_doctor(commands)
    _add_queues(commands)
    secret = _add_command(
        commands, "secret", "print a new secret for clients and workers", "nbstreamq secret"
    )
    secret.set_defaults(run=_print_secret)
    return parser


def _add_worker(commands: argparse._SubParsersAction[_Parser]) -> None:
    worker = _add_command(
        commands,
        "worker",
        "run workers on this machine until Ctrl-C, SIGTERM or SIGHUP",
        "nbstreamq worker redis://localhost:6379 --queue sims -n 4",
    )
    _add_server(worker)
    _add_queue(worker)
    worker.add_argument(
        "-n",
        type=_argument(_number_of_workers),
        metavar="N",
        help="number of workers; default: one for each usable core",
    )
    worker.add_argument(
        "--lane",
        type=_argument(functools.partial(check_lane, "--lane")),
        action="append",
        dest="lanes",
        metavar="LANE",
        help="serve this lane; repeat it for several, most urgent first; default: high, default"
        " and low",
    )
    worker.add_argument(
        "--drain",
        type=_argument(functools.partial(read_seconds, "it")),
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM or SIGHUP, take no new calls and let the running ones finish for this"
        " long; then hand them to other workers. A second signal hands them over at once, Ctrl-C"
        " after 1 s; default: 30",
    )
    worker.add_argument("--control-socket", type=Path, help=argparse.SUPPRESS)
    worker.add_argument("--homes", nargs="+", default=(), help=argparse.SUPPRESS)
    worker.set_defaults(run=_run_workers)


def _add_doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    doctor = _add_command(
        commands,
        "doctor",
        "check a server and a queue; exit with 1 if there is a problem",
        "nbstreamq doctor redis://localhost:6379 --queue sims",
    )
    _add_server(doctor)
    _add_queue(doctor)
    doctor.set_defaults(run=_examine)


def _add_queues(commands: argparse._SubParsersAction[_Parser]) -> None:
    queues = _add_command(
        commands, "queues", "list the queues on a server, or delete one", "nbstreamq queues list"
    )
    verbs = queues.add_subparsers(required=True, metavar="VERB")
    listing = _add_command(
        verbs,
        "list",
        "list the queues: calls that wait or run, workers, named jobs",
        "nbstreamq queues list redis://localhost:6379",
    )
    listing.set_defaults(run=_list_queues)
    deletion = _add_command(
        verbs,
        "delete",
        "delete a queue with all its calls, named jobs and results",
        "nbstreamq queues delete sims redis://localhost:6379",
    )
    deletion.add_argument(
        "queue",
        type=_argument(functools.partial(check_queue_name, "NAME")),
        metavar="NAME",
        help="name of the queue",
    )
    deletion.add_argument("--force", action="store_true", help="delete it even if it has workers")
    deletion.set_defaults(run=_delete_queue)
    for command in (listing, deletion):
        _add_server(command)


def _add_command(
    commands: argparse._SubParsersAction[_Parser], name: str, does: str, example: str
) -> _Parser:
    return commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_server(command: _Parser) -> None:
    command.add_argument(
        "url",
        nargs="?",
        type=_argument(_url),
        metavar="URL",
        help="address of the server; default: $NBSTREAMQ_URL, else the embedded server",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="sign with this machine's key file even though other machines can reach the server",
    )


def _add_queue(command: _Parser) -> None:
    command.add_argument(
        "--queue",
        type=_argument(functools.partial(check_queue_name, "--queue")),
        default="default",
        metavar="NAME",
        help="name of the queue; default: 'default'",
    )


# -- values of arguments ------------------------------------------------------------------------


def _argument(check: Callable[[str], T]) -> Callable[[str], T]:
    """Adapt `check` to argparse, which hides the text of a ValueError."""

    def read(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None

    return read


def _number_of_workers(text: str) -> int:
    try:
        n = int(text)
    except ValueError:
        n = -1
    if not 0 <= n <= MAX_WORKERS:
        raise ValueError(f"it is {shown(text)}: it must be an integer from 1 to {MAX_WORKERS:,}")
    return n


def _url(text: str) -> Address:
    from .wire.connection import check_url

    return check_url("URL", Address(text))


# -- commands -----------------------------------------------------------------------------------


def _print_secret(_options: argparse.Namespace) -> None:
    from .wire.trust import new_secret

    print(new_secret())


def _list_queues(options: argparse.Namespace) -> None:
    url, secret = _server(options)
    with closing(_store(url, secret, "default")) as store:
        names = store.queue_names()
    for name in names:
        with closing(_store(url, secret, name)) as store:
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
    with closing(_store(*_server(options), options.queue)) as store:
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


def _examine(options: argparse.Namespace) -> None:
    from .client.status import examine

    url, secret = _server(options)
    n_problems = 0
    with closing(_store(url, secret, options.queue)) as store:
        for what, text in examine(store, url):
            print(f"{what:8} {text}")
            n_problems += what == "problem"
    if n_problems:
        sys.exit(1)


def _run_workers(options: argparse.Namespace) -> None:
    is_kernels = options.control_socket is not None  # a kernel started this, and scales it
    if options.n == 0 and not is_kernels:
        raise ValueError(f"-n is 0: it must be an integer from 1 to {MAX_WORKERS:,}")
    if is_kernels:  # q.logs() shows it
        logging.getLogger("nbstreamq").setLevel(logging.INFO)
    # This comes before anything that could run user code, or start a process that does.
    conceal(**(receive() if is_kernels else {}))
    url, secret = _server(options)
    store = _store(url, secret, options.queue)
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

    from .client import queue  # noqa: F401
    from .launch.control_socket import ControlSocket
    from .wire.keys import LANES, NESTED
    from .worker.supervisor import Supervisor, SupervisorSettings

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


# -- servers and queues -------------------------------------------------------------------------


def _server(options: argparse.Namespace) -> tuple[Address, Secret]:
    """Return the server that the arguments or the environment name, and the secret for it."""
    from .launch.server import ensure_server
    from .wire.connection import check_url
    from .wire.trust import choose_secret

    settings = Settings.from_environment()
    address = options.url
    if address is None and settings.url is not None:
        address = check_url("NBSTREAMQ_URL", settings.url)
    secret = choose_secret(settings, address, insecure=options.insecure)
    return address or Address(ensure_server(settings)), secret


def _store(url: Address, secret: Secret, queue: str) -> Store:
    from .wire.connection import open_client
    from .wire.signing import Signer
    from .wire.store import Store

    return Store(open_client(url), queue, Signer(secret, queue))
