"""`nbstreamq secret`: a key that clients and workers share."""

from __future__ import annotations

import argparse

from .parsing import Commands, add_command


def add_secret(commands: Commands) -> None:
    """Add the command to the parser."""
    does = "print a new secret for clients and workers"
    add_command(commands, "secret", does, "nbstreamq secret", _print_secret)


def _print_secret(_options: argparse.Namespace) -> None:
    from ..wire.trust import new_secret

    print(new_secret())
