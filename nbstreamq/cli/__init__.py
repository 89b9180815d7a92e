"""The command line: `nbstreamq worker URL -n 4`, and commands for servers and queues."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import NbstreamqError
from ..settings import LOG_FORMAT
from .completion import add_completion
from .dead import add_dead
from .demo import add_demo
from .doctor import add_doctor
from .jobs import add_jobs
from .metrics import add_metrics
from .parsing import Commands, Parser
from .queues import add_queues
from .secret import add_secret
from .servers import add_servers
from .status import add_status
from .worker import add_worker


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 on wrong arguments or variables, with 1 on an error.

    With 130 after Ctrl-C, as shells expect it.
    """
    options = make_parser().parse_args(arguments)
    logging.basicConfig(format=LOG_FORMAT)
    try:
        options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would flush again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (NbstreamqError, OSError) as error:
        sys.exit(f"nbstreamq: {error}")
    except ValueError as error:
        print(f"nbstreamq: {error}", file=sys.stderr)
        sys.exit(2)


def make_parser() -> Parser:
    """Return what reads the arguments of all commands."""
    parser = Parser(
        prog="nbstreamq",
        description="Run workers, look at queues and jobs, manage servers.",
        epilog="Begin with `nbstreamq demo`. `nbstreamq COMMAND --help` shows an example.",
    )
    parser.add_argument("--version", action=_Version, help="print the version, and that of Python")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    add_completion(commands, make_parser)
    return parser


class _Version(argparse.Action):
    """Prints the version, which takes a slow import."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import platform

        from ..wire.messages import VERSION

        print(f"nbstreamq {VERSION}, Python {platform.python_version()}")
        parser.exit()


_COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_worker,
    add_servers,
    add_status,
    add_jobs,
    add_dead,
    add_queues,
    add_doctor,
    add_metrics,
    add_secret,
    add_demo,
)
