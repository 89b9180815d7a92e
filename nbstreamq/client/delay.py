"""Why a call may wait for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..errors import NbstreamqError, ServerUnreachable
from ..launch.local import LocalWorkers
from ..protocol.keys import home_of
from ..protocol.store import Store
from ..tracebacks import warn
from .ledger import Ledger
from .named_ledger import NamedLedger

__all__ = ["Warner", "accepts", "explain", "stranded", "survey"]


class _Session(Protocol):
    workers: LocalWorkers
    trouble: ServerUnreachable | None

    @property
    def homes(self) -> tuple[str, str]: ...
    def worker_command(self, folder: str = "", python: str = "python", lane: str = "") -> str: ...
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
    if session.trouble:  # another connection may do, where no more of them are let in
        return {}, str(session.trouble)
    try:
        session.check_memory()
        # With another secret, neither this client nor its workers can do anything here.
        session.ask(lambda store: store.check_secret(write=False), patience=0.0)
        workers, queue = session.ask(
            lambda store: (store.workers(), store.keys.queue), patience=0.0
        )
    except NbstreamqError as error:
        return {}, str(error)
    reason = session.workers.trouble or _reason(session, workers, queue, ledger) or ledger.delay()
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


def _reason(
    session: _Session, workers: dict[str, dict[str, Any]], queue: str, ledger: Ledger
) -> str:
    """Return why nobody runs what waits of `ledger`, and what to do; empty if somebody may.

    Parameters
    ----------
    workers
        Id -> description of the registered workers of `queue`.
    """
    home, lane = home_of(ledger.job), ledger.lane
    ours = [about for about in workers.values() if accepts(about, home)]
    if not ours and isinstance(ledger, NamedLedger):
        return _no_worker_left(session, ledger.title, ledger.job, ledger.about)
    if not ours:
        what = "no workers but those of other kernels" if workers else "no workers"
        return (
            f"queue {queue!r} has {what}. Start some: q.run(4) here, or"
            f" `{session.worker_command()}` anywhere."
        )
    if not any(lane in about.get("lanes", ()) for about in ours):
        command = session.worker_command(lane=lane)
        return f"no worker serves its lane {lane!r}. Start one: {command}"
    return ""


def accepts(description: dict[str, Any], home: str) -> bool:
    """Return whether a worker runs tasks of `home`: those of `nbstreamq worker` run all."""
    homes = description.get("homes", ())
    return not homes or home in homes


def stranded(session: _Session, store: Store) -> list[str]:
    """Return, for each named job that waits for workers there are none of, how to start some."""
    workers = store.workers().values()
    records = (
        store.readable_record(job, name)
        for name, job in store.job_names().items()
        if not any(accepts(about, home_of(job)) for about in workers)
    )
    return [
        _no_worker_left(session, record.name, record.id, record.about)
        for record in records
        if record is not None and record.n_ended < record.n_items
    ]


def _no_worker_left(session: _Session, name: str, job: str, about: dict[str, Any]) -> str:
    folder = about["folder"]
    command = session.worker_command(folder, about["python"])
    here = "q.run(4) here, or " if home_of(job) in session.homes else ""
    return (
        f"job {name!r} waits: no worker with its folder, {folder}, and its Python is left. Start"
        f" some: {here}`{command}`"
    )


class Warner:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warn(text)
