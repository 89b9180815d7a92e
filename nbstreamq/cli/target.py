"""Which server and queue a command is about."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..secret import Address, Secret
from ..settings import Settings

if TYPE_CHECKING:
    from ..wire.store import Store


def server(options: argparse.Namespace) -> tuple[Address, Secret]:
    """Return the server that the arguments or the environment name, and the secret for it."""
    from ..launch.server import ensure_server
    from ..wire.connection import check_url
    from ..wire.trust import choose_secret

    settings = Settings.from_environment()
    address = options.url
    if address is None and settings.url is not None:
        address = check_url("NBSTREAMQ_URL", settings.url)
    secret = choose_secret(settings, address, insecure=options.insecure)
    return address or Address(ensure_server(settings)), secret


def open_store(url: Address, secret: Secret, queue: str) -> Store:
    """Return the queue of that name on the server at `url`."""
    from ..wire.connection import open_client
    from ..wire.signing import Signer
    from ..wire.store import Store

    return Store(open_client(url), queue, Signer(secret, queue))
