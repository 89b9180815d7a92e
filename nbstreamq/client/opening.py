"""How a queue finds its server, its secret and its workers."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from ..arguments import MAX_WORKERS, check_count_or_auto, check_flag, check_secret, check_store
from ..current import host
from ..errors import ServerUnreachable
from ..home import here, own_queue
from ..launch.local import LocalWorkers
from ..launch.server import ensure_server, is_embedded
from ..objects.blobs import Place
from ..objects.places import Tell, UrlPlace, check_fsspec
from ..objects.segments import SessionFolder
from ..protocol.clients import Client, check_client, open_client, url_of
from ..protocol.signing import Signer
from ..protocol.store import Store
from ..protocol.trust import choose_secret
from ..protocol.urls import check_url
from ..secret import Address, Secret
from ..settings import Settings, n_cores
from .health import warn_of_risks
from .session import Session

__all__ = ["Opened", "open_session"]


class Opened(NamedTuple):
    """A session, its queue's name and server, whether that is embedded, and other queues there."""

    session: Session
    name: str
    url: Address
    embedded: bool
    open_other: Callable[[str], Store]


def open_session(
    name: str | None,
    url: Address | None,
    client: Client | None,
    workers: int | Literal["auto"],
    secret: Secret | None,
    *,
    insecure: bool,
    store: Address | None,
) -> Opened:
    """Return a new session of a queue; the arguments are those of `TaskQueue`."""
    workers = check_count_or_auto("workers", workers, most=MAX_WORKERS)
    insecure = check_flag("insecure", insecure)
    if secret is not None:
        secret = check_secret("secret", secret)
    if store is not None:
        store = check_store("store", store)
    settings = Settings.from_environment()
    if store is not None:
        settings = replace(settings, store=store)
    if settings.store is not None:
        check_fsspec("NBSTREAMQ_STORE" if store is None else "store", settings.store)
    address, worker, home = _address(url, client, settings), host(), here()
    if url is None and client is None and worker is not None:  # a task stays on its own server
        address, secret = worker.url, secret or worker.secret
        name = worker.queue if name is None else name
    embedded = address is None
    if name is None:
        name = own_queue() if embedded else "default"
    secret = choose_secret(settings, address, secret=secret, insecure=insecure)
    found = address or Address(ensure_server(settings))
    signer = Signer(secret, name)
    server = client or open_client(found)
    queue = Store(server, name, signer)
    try:
        queue.check_secret()
    except ServerUnreachable:
        if not embedded:
            raise
        ensure_server(settings)  # it ended just after it was found
        queue.check_secret()
    queue.renew()
    default = n_cores() if embedded else None
    session = home.calls + secrets.token_hex(4)
    opened = Session(
        queue,
        LocalWorkers(found, name, secret, home=home, session=session, settings=settings),
        default if workers == "auto" else workers,
        revive=functools.partial(ensure_server, settings) if embedded else None,
        session=session,
        home=home,
        server="" if embedded else "URL" if found.has_password() else str(found),
        place=_place(settings, found, session, signer),
    )
    if not embedded:
        warn_of_risks(opened)
    return Opened(
        opened, name, found, embedded, lambda other: Store(server, other, Signer(secret, other))
    )


def _address(url: Address | None, client: Client | None, settings: Settings) -> Address | None:
    """Return the URL of the server; None: the embedded one."""
    if client is not None:
        if url is not None:
            raise ValueError("Give TaskQueue a url or a client, not both.")
        check_client("client", client)
        return check_url("client", url_of(client))
    if url is not None:
        return check_url("url", url)
    return None if settings.url is None else check_url("NBSTREAMQ_URL", settings.url)


def _place(
    settings: Settings, url: Address, session: str, signer: Signer
) -> Callable[[Tell], Place] | None:
    """Return what opens the place of a session's large values; None: they go to the server."""
    if settings.store is not None:
        store = settings.store
        return lambda soon: UrlPlace(store, session, signer, soon)
    if is_embedded(url, settings):
        return lambda _: SessionFolder(session, settings)
    return None
