"""The command line: `worker URL -n 4`, `doctor URL`, `queues list`, `secret`."""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from .arguments import MAX_SECONDS, MAX_WORKERS, check_lane, check_queue_name, shown
from .errors import NbstreamqError
from .secret import Address, Secret
from .settings import Settings, conceal, n_cores, receive

if TYPE_CHECKING:
    from .wire.store import Store


T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 2 on wrong arguments or variables, with 1 on an error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s")
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
    parser = _Parser(prog="nbstreamq", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    worker = commands.add_parser(
        "worker",
        help="run workers on this machine until Ctrl-C",
        description="Run workers on this machine until Ctrl-C, SIGTERM or SIGHUP.",
    )
    doctor = commands.add_parser("doctor", help="look at a server and a queue; exit 1 if ill")
    for command in (worker, doctor):
        _add_server(command)
        command.add_argument(
            "--queue",
            type=_argument(functools.partial(check_queue_name, "--queue")),
            default="default",
            metavar="NAME",
            help="default: 'default'",
        )
    doctor.set_defaults(run=_examine)
    worker.add_argument(
        "-n",
        type=_argument(_number_of_workers),
        metavar="N",
        help="number of workers; default: one for each core that may be used",
    )
    worker.add_argument(
        "--lane",
        type=_argument(functools.partial(check_lane, "--lane")),
        action="append",
        dest="lanes",
        metavar="LANE",
        help="serve this lane; may be repeated, most urgent first; default: all but the tags",
    )
    worker.add_argument(
        "--drain",
        type=_argument(_seconds),
        default=30.0,
        metavar="SECONDS",
        help="how long calls may go on after SIGTERM or SIGHUP, while no others are taken; then"
        " they are handed back, and run elsewhere as if nothing had been; a second signal hands"
        " them back at once, Ctrl-C after 1 s; default: 30",
    )
    worker.add_argument("--control-socket", type=Path, help=argparse.SUPPRESS)
    worker.add_argument("--homes", nargs="+", default=(), help=argparse.SUPPRESS)
    worker.set_defaults(run=_run_workers)
    _add_queues(commands)
    secret = commands.add_parser("secret", help="print a new secret, to be set everywhere")
    secret.set_defaults(run=_print_secret)
    return parser


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "url",
        nargs="?",
        type=_argument(_url),
        metavar="URL",
        help="server; the default is $NBSTREAMQ_URL, else the embedded server",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="sign with this machine's key file, though other machines can reach the server",
    )


def _add_queues(commands: argparse._SubParsersAction[_Parser]) -> None:
    queues = commands.add_parser("queues", help="list the queues on a server, or delete one")
    verbs = queues.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="print each queue: what waits, runs, and is kept")
    listing.set_defaults(run=_list_queues, queue="default")
    deletion = verbs.add_parser(
        "delete", help="delete a queue with all its calls, named jobs and results"
    )
    deletion.add_argument(
        "queue", type=_argument(functools.partial(check_queue_name, "NAME")), metavar="NAME"
    )
    deletion.add_argument(
        "--force", action="store_true", help="delete it also while it has workers"
    )
    deletion.set_defaults(run=_delete_queue)
    for command in (listing, deletion):
        _add_server(command)


def _argument(check: Callable[[str], T]) -> Callable[[str], T]:
    """Return `check` for argparse, which says of a ValueError only that there was one."""

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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:  # nan is not
        raise ValueError(
            f"it is {shown(text)}: it must be a number of seconds from 0 to {MAX_SECONDS:,}"
        )
    return seconds


def _url(text: str) -> Address:
    from .wire.connection import check_url

    return check_url("URL", Address(text))


def _print_secret(_options: argparse.Namespace) -> None:
    from .wire.trust import new_secret

    print(new_secret())


def _list_queues(options: argparse.Namespace) -> None:
    _, _, store = _open(options)
    names = store.queue_names()
    for name in names:
        _, _, queue = _open(argparse.Namespace(**{**vars(options), "queue": name}))
        lanes = queue.lanes(queue.known_lanes())
        counts = {
            "waiting": sum(lane["waiting"] + lane["delayed"] for lane in lanes),
            "running": sum(lane["running"] for lane in lanes),
            "workers": len(queue.workers()),
            "named jobs": len(queue.job_names()),
        }
        print(f"{shown(name):30}", *(f"{n} {what}" for what, n in counts.items()), sep="  ")
        queue.close()
    if not names:
        print("There is no queue on this server.")
    store.close()


def _delete_queue(options: argparse.Namespace) -> None:
    _, _, store = _open(options)
    if not options.force and (workers := store.workers()):
        hosts = ", ".join(sorted({str(d.get("host")) for d in workers.values()}))
        raise NbstreamqError(
            f"queue {options.queue!r} has {len(workers)} workers on {hosts}: stop them first, or"
            " add --force."
        )
    n_keys = store.delete_queue()
    store.close()
    if not n_keys:
        raise NbstreamqError(f"there is no queue {options.queue!r}. See `nbstreamq queues list`.")
    print(f"Deleted queue {options.queue!r}.")


def _examine(options: argparse.Namespace) -> None:
    from .client.status import examine

    url, _, store = _open(options)
    n_problems = 0
    for what, text in examine(store, url):
        print(f"{what:8} {text}")
        n_problems += what == "problem"
    store.close()
    if n_problems:
        sys.exit(1)


def _open(options: argparse.Namespace) -> tuple[Address, Secret, Store]:
    """Return the url, the secret and the queue that the arguments and the environment name."""
    from .launch.server import ensure_server
    from .wire.connection import check_url, open_client
    from .wire.signing import Signer
    from .wire.store import Store
    from .wire.trust import choose_secret

    settings = Settings.from_environment()
    address = options.url
    if address is None and settings.url is not None:
        address = check_url("NBSTREAMQ_URL", settings.url)
    secret = choose_secret(settings, address, insecure=options.insecure)
    url = address or Address(ensure_server(settings))
    return url, secret, Store(open_client(url), options.queue, Signer(secret, options.queue))


def _run_workers(options: argparse.Namespace) -> None:
    if (
        options.n == 0 and not options.control_socket
    ):  # a kernel tells its supervisor how many it wants
        raise ValueError(f"-n is 0: it must be an integer from 1 to {MAX_WORKERS:,}")
    # Heavy imports come here: --help is quick; and before the fork: workers are warm.
    import cloudpickle  # noqa: F401

    from .client import queue  # noqa: F401
    from .wire.keys import LANES, NESTED
    from .worker.control_socket import ControlSocket
    from .worker.supervisor import Supervisor, SupervisorSettings

    # Before anything that could run user code, or start a process that does.
    conceal(**(receive() if options.control_socket else {}))
    url, secret, store = _open(options)
    settings = Settings.from_environment()
    lanes = tuple(dict.fromkeys((*options.lanes, *NESTED))) if options.lanes else LANES
    supervisor = Supervisor(
        store,
        url=url,
        secret=secret,
        n_workers=n_cores() if options.n is None else options.n,
        lanes=lanes,
        homes=options.homes,
        method=settings.start_method or ("fork" if sys.platform == "linux" else "spawn"),
        control_socket=ControlSocket(options.control_socket) if options.control_socket else None,
        settings=SupervisorSettings(
            heartbeat=settings.silence / 4, silence=settings.silence, drain=options.drain
        ),
    )
    store.check_secret()
    if not options.control_socket:
        n = supervisor.n_workers
        print(
            f"nbstreamq: queue {options.queue!r} on {url}: starting {n} worker{'s' * (n != 1)}."
            " Ctrl-C ends them.",
            flush=True,
        )
    gc.collect()
    supervisor.run()
