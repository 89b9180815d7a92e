"""Why a call may wait for ever."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import NbstreamqError
from ..launch.local import LocalWorkers
from ..protocol.store import Store
from .ledger import Ledger

__all__ = ["Warner", "explain", "survey"]


class _Session(Protocol):
    workers: LocalWorkers

    def warn(self, text: str) -> None: ...
    def ask(self, question: Callable[[Store], Any], *, patience: float | None = None) -> Any: ...
    def check_memory(self) -> None: ...


def explain(session: _Session, ledger: Ledger) -> None:
    """Warn, once for each reason, if there is a reason why nothing happens."""
    # Workers that are started again have not joined yet.
    if not session.workers.is_restarting and (reason := survey(session, ledger)[1]):
        session.warn(f"waiting for {ledger.name}: {reason}")


def survey(session: _Session, ledger: Ledger) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the workers there are, and why none may run the calls; empty if one may."""
    try:
        session.check_memory()
        workers, queue = session.ask(
            lambda store: (store.workers(), store.keys.queue), patience=0.0
        )
    except NbstreamqError as error:
        return {}, str(error)
    reason = session.workers.trouble or _reason(workers, queue, ledger.lane) or ledger.delay()
    return workers, reason or _vanished(session, ledger)


def _has_tasks(store: Store) -> bool:
    own = [f"@{worker}" for worker in store.workers()]
    return store.has_tasks([*store.known_lanes(), *own])


def _vanished(session: _Session, ledger: Ledger) -> str:
    """Say that nothing of a job is on the server any more, though some of it has no result.

    At the second look only: a result may be on its way.
    """
    try:
        is_there = session.ask(_has_tasks, patience=0.0)
    except NbstreamqError:
        return ""
    before, ledger.n_when_empty = ledger.n_when_empty, -1 if is_there else ledger.n_over
    if is_there or before != ledger.n_over or ledger.growing or ledger.is_over:
        return ""
    name, n_left = ledger.title or ledger.name, len(ledger) - ledger.n_over
    remedy = (
        f"q.map(..., name={name!r}, replace=True) runs it again"
        if ledger.title
        else "cancel() them, and submit them again"
    )
    return (
        f"{n_left:,} calls of {name} have no result, and nothing waits or runs on the server: their"
        f" messages were deleted there. They will never run; {remedy}."
    )


def _reason(workers: dict[str, dict[str, Any]], queue: str, lane: str) -> str:
    """Return why nobody runs what waits in `lane`, and what to do; empty if somebody may.

    Parameters
    ----------
    workers
        Id -> description of the registered workers of `queue`.
    """
    if not workers:
        return (
            f"queue {queue!r} has no workers. Start some: q.run(4) here, or"
            " `python -m nbstreamq worker URL` anywhere."
        )
    if not any(lane in description.get("lanes", ()) for description in workers.values()):
        return (
            f"no worker serves its lane {lane!r}. Start one:"
            f" python -m nbstreamq worker URL --lane {lane}"
        )
    return ""


class Warner:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=3)
