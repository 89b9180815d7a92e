"""How commands are declared, and how their arguments are read."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import NoReturn, TypeAlias, TypeVar

from ..arguments import check_queue_name
from ..secret import Address

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and `message`."""
        self.exit(2, f"{self.prog}: {message}. See `{self.prog} --help`.\n")


#: The commands of a parser, to which more can be added.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - only a type


def add_command(
    commands: Commands,
    name: str,
    does: str,
    example: str,
    run: Callable[[argparse.Namespace], None] | None = None,
) -> Parser:
    """Add a command, which `run` executes; without it, the command has subcommands."""
    command = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        command.set_defaults(run=run)
    return command


def add_server(command: Parser) -> None:
    """Add the arguments that say which server a command uses; see `target.server`."""
    command.add_argument(
        "url",
        nargs="?",
        type=argument(_url),
        metavar="URL",
        help="address of the server; default: $NBSTREAMQ_URL, else the embedded server",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="sign with this machine's key file even though other machines can reach the server",
    )


def add_queue(command: Parser, *, default: str | None = "default") -> None:
    """Add the option that says which queue a command uses; without a default, all of them."""
    command.add_argument(
        "--queue",
        type=argument(functools.partial(check_queue_name, "--queue")),
        default=default,
        metavar="NAME",
        help=f"name of the queue; default: {repr(default) if default else 'all queues'}",
    )


def add_json(command: Parser) -> None:
    """Add the option that has a command print JSON."""
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")


def argument(check: Callable[[str], T]) -> Callable[[str], T]:
    """Adapt `check` to argparse, which hides the text of a ValueError."""

    def read(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None

    return read


def host_and_port(text: str) -> tuple[str, int]:
    """Return what ``HOST:PORT`` says; an IPv6 address may be in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"it is {text!r}: it must be HOST:PORT, such as localhost:9464")
    return host.strip("[]"), int(port)


def _url(text: str) -> Address:
    from ..wire.addresses import check_url

    return check_url("URL", Address(text))
