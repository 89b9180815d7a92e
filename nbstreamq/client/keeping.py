"""How long a named job is kept."""

from __future__ import annotations

from ..errors import NbstreamqError
from ..protocol.spans import EVERYTHING
from .ledger import Ledger
from .session import Session

__all__ = ["delete", "forget", "keep"]


def keep(session: Session, ledger: Ledger) -> None:
    """Have a job stay until it is deleted."""
    _check_named(ledger)
    session.ask(lambda store: store.keep_job(ledger.job))


def delete(session: Session, ledger: Ledger) -> None:
    """Forget a job here and on the server."""
    _check_named(ledger)
    session.cancel(ledger, range(len(ledger)))
    forget(session, ledger.title, ledger.job)


def forget(session: Session, name: str, job: str) -> None:
    """Delete the job with the id `job`, and its dead letters; what waits or runs is cancelled."""
    session.ask(lambda store: store.cancel(job, EVERYTHING, EVERYTHING))
    session.ask(lambda store: store.delete_job(name, job))
    session.ask(lambda store: store.forget_dead(*store.letters_of(job)))


def _check_named(ledger: Ledger) -> None:
    if not ledger.title:
        raise NbstreamqError(
            f"Job {ledger.job} has no name, so it is not kept. q.map(..., name='...') makes one"
            " that is."
        )
