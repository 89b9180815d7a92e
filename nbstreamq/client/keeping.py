"""How long a named job is kept."""

from __future__ import annotations

from ..errors import JobNotFound, NbstreamqError
from ..protocol.spans import EVERYTHING
from .ledger import Ledger
from .session import Session

__all__ = ["delete", "forget", "keep"]


def keep(session: Session, ledger: Ledger) -> None:
    """Have a job stay until it is deleted."""
    _check_kept(session, ledger)
    session.ask(lambda store: store.keep_job(ledger.job))


def delete(session: Session, ledger: Ledger) -> None:
    """Forget a job here and on the server."""
    _check_kept(session, ledger)
    # First of all: it makes room, where the server has none to note what is cancelled.
    session.ask(lambda store: store.delete_job(ledger.title, ledger.job))
    session.cancel(ledger, range(len(ledger)))
    forget(session, ledger.job)


def forget(session: Session, job: str) -> None:
    """Let nothing run any more of a job that is deleted, and drop its dead letters."""
    session.ask(lambda store: store.cancel(job, EVERYTHING, EVERYTHING))
    session.ask(lambda store: store.forget_dead(*store.letters_of(job)))
    if ledger := session.ledger(job):
        session.cancel(ledger, range(len(ledger)))
        session.stop_growing(ledger)


def _check_kept(session: Session, ledger: Ledger) -> None:
    if not ledger.title:
        raise NbstreamqError(
            f"Job {ledger.job} has no name, so it is not kept. q.map(..., name='...') makes one"
            " that is."
        )
    if session.ask(lambda store: store.job_record(ledger.job)) is None:
        raise JobNotFound(
            f"Job {ledger.title!r} is not there any more: it was deleted or replaced, or has"
            " expired. q.jobs() lists those there are."
        )
