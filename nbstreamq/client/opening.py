"""How a queue finds its server, its secret and its workers."""

from __future__ import annotations

import functools
import uuid
from typing import Literal, NamedTuple

from ..launch.local import LocalWorkers
from ..launch.server import ensure_server
from ..protocol.clients import Client, open_client, url_of
from ..protocol.signing import Signer
from ..protocol.store import Store
from ..protocol.trust import choose_secret
from ..settings import Settings, n_cores
from .health import warn_of_risks
from .session import Session

__all__ = ["Opened", "open_session"]


class Opened(NamedTuple):
    """A session, the address of its server, and whether that is the embedded one."""

    session: Session
    url: str
    embedded: bool


def open_session(
    name: str,
    url: str | None,
    client: Client | None,
    workers: int | Literal["auto"],
    secret: str | None,
    *,
    insecure: bool,
) -> Opened:
    """Return a new session of a queue; the arguments are those of `TaskQueue`."""
    if client is not None and url is not None:
        raise ValueError("Give TaskQueue a url or a client, not both.")
    settings = Settings.from_environment()
    address = url_of(client) if client is not None else (url or settings.url)
    embedded = address is None
    secret = choose_secret(settings, address, secret=secret, insecure=insecure)
    found = address or ensure_server(settings)
    store = Store(client or open_client(found), name, Signer(secret, name))
    store.check_secret()
    default = n_cores() if embedded else None
    session = uuid.uuid4().hex[:12]
    opened = Session(
        store,
        LocalWorkers(found, name, secret, session, settings),
        default if workers == "auto" else workers,
        revive=functools.partial(ensure_server, settings) if embedded else None,
        session=session,
    )
    if not embedded:
        warn_of_risks(opened)
    return Opened(opened, found, embedded)
