"""Warnings about the server, and the findings of ``nbstreamq doctor``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..current import host
from ..errors import NbstreamqError
from ..protocol.health import ServerFacts
from ..protocol.store import Store
from ..secret import Address
from .session import Session
from .status import QueueStatus, queue_status

__all__ = ["examine", "warn_of_risks"]

#: Seconds by which clocks may differ: what is due is due by the server's, times are shown by ours.
SKEW = 5.0


def warn_of_risks(session: Session) -> None:
    """Warn of what endangers tasks on the server; inside a task, nobody would read it."""
    if host() is None:
        with suppress(NbstreamqError):
            facts: ServerFacts = session.ask(Store.server_facts, patience=0.0)
            for problem in facts.problems():
                session.warn(problem)


def examine(store: Store, url: Address) -> Iterator[tuple[str, str]]:
    """Yield what is found out about a queue and its server, line by line.

    Yields
    ------
    tuple
        What it is about, and what was found; or ``"problem"``, and what is wrong.

    Raises
    ------
    ServerError
        The server can't be reached, or refuses what clients must be allowed to do.
    SecretMismatch
        The queue was made with another secret.
    """
    store.check_secret(write=False)
    facts = store.server_facts()
    yield "server", f"{facts.product} {facts.version or '(it does not tell)'}, {url}"
    yield "ping", f"{store.ping() * 1000:.2f} ms"
    skew = store.clock_skew()
    yield "clock", f"{skew:+.3f} s beside ours"
    status = queue_status(store, str(url), 0, "")
    yield "queue", _summary(status)
    for worker in status.workers:
        yield "worker", f"{worker.id}: {worker.state}, Python {worker.python}, on {worker.host}"
    for problem in _problems(status, skew):
        yield "problem", problem


def _summary(status: QueueStatus) -> str:
    waiting = sum(v.waiting + v.delayed for v in status.lanes)
    running = sum(v.running for v in status.lanes)
    return (
        f"{status.queue!r}: {len(status.workers)} workers, {waiting:,} messages waiting,"
        f" {running:,} running"
    )


def _problems(status: QueueStatus, skew: float) -> Iterator[str]:
    yield from status.warnings
    if status.refusals:
        yield status.refusals
    if abs(skew) > SKEW:
        yield (
            f"the server's clock and this machine's differ by {abs(skew):.0f} s: delays and times"
            " will look wrong. Have both set by NTP."
        )
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    others: Any = sorted({w.python for w in status.workers} - {ours, ""})
    if others:
        yield (
            f"workers run Python {', '.join(others)}, this is Python {ours}: functions sent from"
            " here can't run there."
        )
