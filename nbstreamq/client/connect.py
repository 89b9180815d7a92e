"""Open a session: find the queue's server, its name and its secret, and connect."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..arguments import MAX_WORKERS, check_count_or_auto, check_flag, check_secret, check_store
from ..cores import n_cores
from ..errors import ServerUnreachable
from ..home import here, own_queue
from ..launch.launcher import Purpose
from ..launch.local import LocalWorkers
from ..launch.server import ensure_server, is_embedded
from ..objects.large_values import Tell, UrlBackend, ValueBackend, check_fsspec
from ..objects.mapped_files import SessionFolder
from ..secret import Address, Secret
from ..settings import Settings
from ..wire.addresses import Client, check_client, check_url, open_client, url_of
from ..wire.signing import Signer
from ..wire.store import Store
from ..wire.trust import choose_secret
from ..worker_context import WorkerContext
from .session import Session
from .status import warn_of_risks
from .workers import Workers

if TYPE_CHECKING:
    from ..launch.tunnel import Tunnel


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
    settings = Settings.from_environment()
    if store is not None:
        settings = replace(settings, store=check_store("store", store))
    if settings.store is not None:
        check_fsspec("NBSTREAMQ_STORE" if store is None else "store", settings.store)
    with ExitStack() as if_it_fails:
        server = _find_server(url, client, settings)
        if server.tunnel:
            if_it_fails.callback(server.tunnel.close)
        embedded = server.url is None
        if name is None:
            name = server.queue or (own_queue() if embedded else "default")
        secret = choose_secret(
            settings, server.url, secret=secret or server.secret, insecure=insecure
        )
        purpose = Purpose(
            url=server.url or Address(ensure_server(settings)),
            queue=name,
            secret=secret,
            session=here().calls + secrets.token_hex(4),
            settings=settings,
            tunnel=server.tunnel,
        )
        if workers == "auto":
            workers = n_cores() if embedded else 0
        client = client or open_client(purpose.url)
        session = _connect(client, purpose, workers, embedded=embedded)
        if_it_fails.pop_all()

    def open_other(name: str) -> Store:
        return Store(client, name, Signer(secret, name))

    return Opened(session, name, purpose.url, embedded, open_other)


class _Server(NamedTuple):
    """Where a queue is, and what is known of it there.

    Attributes
    ----------
    url
        None: it is on the embedded server.
    secret, queue
        The usual ones there, if there are any.
    tunnel
        What leads there, if anything.
    """

    url: Address | None
    secret: Secret | None = None
    queue: str | None = None
    tunnel: Tunnel | None = None


def _find_server(url: Address | None, client: Client | None, settings: Settings) -> _Server:
    """Return the server that is meant by the arguments of `TaskQueue`."""
    if client is not None:
        if url is not None:
            raise ValueError("Give TaskQueue a url or a client, not both.")
        check_client("client", client)
        return _Server(check_url("client", url_of(client)))
    if url is not None and isinstance(url.reveal(), str) and url.reveal().startswith("ssh://"):
        from ..launch.tunnel import Tunnel

        tunnel = Tunnel(url, settings)
        return _Server(tunnel.url, settings.secret or tunnel.secret, tunnel=tunnel)
    if url is not None:
        return _Server(check_url("url", url))
    if (worker := WorkerContext.current) is not None:  # a task stays on its own server
        return _Server(worker.url, worker.secret, worker.queue)
    return _Server(None if settings.url is None else check_url("NBSTREAMQ_URL", settings.url))


def _connect(client: Client, purpose: Purpose, n_workers: int, *, embedded: bool) -> Session:
    settings, url, home = purpose.settings, purpose.url, here()
    signer = Signer(purpose.secret, purpose.queue)
    queue = Store(client, purpose.queue, signer)
    try:
        queue.check_secret()
    except ServerUnreachable:
        if not embedded:
            raise
        ensure_server(settings)  # it ended just after it was found
        queue.check_secret()
    queue.renew()
    local = LocalWorkers(
        url, purpose.queue, purpose.secret, home=home, session=purpose.session, settings=settings
    )
    revive = functools.partial(ensure_server, settings) if embedded else None
    session = Session(
        queue,
        functools.partial(
            Workers,
            local,
            n_workers,
            home=home,
            server="" if embedded else "URL" if url.has_password() else str(url),
            purpose=purpose,
        ),
        revive=purpose.tunnel.start_server if purpose.tunnel else revive,
        home=home,
        place=_place(purpose, signer),
        purpose=purpose,
    )
    if not embedded:
        warn_of_risks(session)
    return session


def _place(purpose: Purpose, signer: Signer) -> Callable[[Tell], ValueBackend] | None:
    """Return what opens the place of a session's large values; None: they go to the server."""
    settings, session = purpose.settings, purpose.session
    if (url := settings.store) is not None:

        def at_url(soon: Tell) -> UrlBackend:
            backend = UrlBackend(url, session, signer, soon)
            backend.check()
            return backend

        return at_url
    if is_embedded(purpose.url, settings):
        return lambda _: SessionFolder(session, settings)
    return None
