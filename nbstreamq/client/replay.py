"""A call again, in this process: for a debugger, for instance."""

from __future__ import annotations

from typing import Any

from ..errors import NbstreamqError
from ..objects.payloads import load
from ..objects.references import resolving
from .ledger import Ledger
from .session import Session

__all__ = ["replay"]


def replay(session: Session, ledger: Ledger, item: int) -> Any:
    """Run an item of a job here, and return what it returns.

    Raises
    ------
    NbstreamqError
        Its arguments were dropped, because the items around it are done.
    """
    payload = ledger.payload(item)
    if payload is None:
        raise NbstreamqError(
            f"Task {ledger.job}-{item} can't be replayed: its arguments were dropped when the items"
            " around it were done. Call the function with them instead."
        )

    def fetch(digest: str) -> Any:
        return load(session.ask(lambda store: store.get_blob(digest)))

    with resolving(fetch):
        args, kwargs = payload.arguments(item)
    return ledger.fn(*args, **kwargs)
