"""Which server, queues and job a command is about."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import JobNotFound, NbstreamqError
from ..secret import Address, Secret
from ..settings import Settings

if TYPE_CHECKING:
    from ..client.job import Job
    from ..client.queue import TaskQueue
    from ..wire.store import Store


def server(options: argparse.Namespace) -> tuple[Address, Secret]:
    """Return the server that the arguments or the environment name, and the secret for it."""
    from ..launch.server import ensure_server
    from ..wire.addresses import check_url
    from ..wire.trust import choose_secret

    settings = Settings.from_environment()
    address = options.url
    if address is None and settings.url is not None:
        address = check_url("NBSTREAMQ_URL", settings.url)
    secret = choose_secret(settings, address, insecure=options.insecure)
    return address or Address(ensure_server(settings)), secret


def open_store(url: Address, secret: Secret, queue: str) -> Store:
    """Return the queue of that name on the server at `url`."""
    from ..wire.addresses import open_client
    from ..wire.signing import Signer
    from ..wire.store import Store

    return Store(open_client(url), queue, Signer(secret, queue))


@contextmanager
def open_queues(options: argparse.Namespace) -> Iterator[list[Store]]:
    """Open the queue that the options name, or all queues of the server, to look at them."""
    url, secret = server(options)
    names = [options.queue] if options.queue else queue_names(url, secret)
    stores = [open_store(url, secret, name) for name in names]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def queue_names(url: Address, secret: Secret, *, having: str = "meta") -> list[str]:
    """Return the names of the queues of a server that have a key of this kind: all."""
    with closing(open_store(url, secret, "default")) as store:
        return store.queue_names(having)


def delete_queue(url: Address, secret: Secret, name: str) -> bool:
    """Delete all that the server has of a queue; return whether there was anything."""
    with closing(open_store(url, secret, name)) as store:
        return bool(store.delete_queue())


@contextmanager
def open_queue(options: argparse.Namespace, name: str) -> Iterator[TaskQueue]:
    """Open a queue as a client, to change something; what it leaves open is not waited for."""
    from ..client.queue import TaskQueue

    url, secret = server(options)
    queue = TaskQueue(name, url, secret=secret, workers=0)
    try:
        yield queue
    finally:
        queue.shutdown(wait=False)


@contextmanager
def open_job(options: argparse.Namespace) -> Iterator[tuple[TaskQueue, Job[Any]]]:
    """Open the named job that the options name, and the one queue that has it."""
    with open_queues(options) as stores:
        found = [store.keys.queue for store in stores if options.name in store.job_names()]
    if not found:
        where = f" on queue {options.queue!r}" if options.queue else ""
        raise JobNotFound(f"there is no job {options.name!r}{where}. See `nbstreamq jobs list`.")
    if len(found) > 1:
        raise NbstreamqError(
            f"queues {', '.join(map(repr, found))} have a job {options.name!r}: add --queue."
        )
    with open_queue(options, found[0]) as queue:
        yield queue, queue.attach(options.name)
