"""The command line: `nbstreamq worker URL -n 4`, and commands for servers and queues."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..errors import NbstreamqError
from ..settings import LOG_FORMAT
from .doctor import add_doctor
from .parsing import Parser
from .queues import add_queues
from .secret import add_secret
from .worker import add_worker


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 on wrong arguments or variables, with 1 on an error."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(format=LOG_FORMAT)
    try:
        options.run(options)
    except (NbstreamqError, OSError) as error:
        sys.exit(f"nbstreamq: {error}")
    except ValueError as error:
        print(f"nbstreamq: {error}", file=sys.stderr)
        sys.exit(2)


def make_parser() -> Parser:
    """Return what reads the arguments of all commands."""
    parser = Parser(prog="nbstreamq", description="Run workers, check servers, manage queues.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_worker, add_doctor, add_queues, add_secret):
        add(commands)
    return parser
