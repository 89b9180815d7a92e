"""A call again, in this process: for a debugger, for instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import FunctionMissing, NbstreamqError
from ..objects import seeds
from ..objects.functions import load_function
from ..objects.payloads import load
from ..objects.references import resolving
from .ledger import Ledger
from .session import Session

__all__ = ["replay", "stored_function"]


def stored_function(session: Session, digest: str, what: str) -> Callable[..., Any]:
    """Return what fetches a function from the server and calls it here, whenever it is called.

    Parameters
    ----------
    what
        The function in words, for the error when the server does not hold it any more.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        data = session.ask(lambda store: store.get_function(digest))
        if data is None:
            raise FunctionMissing(f"The server no longer holds the function {what}.")
        return load_function(data)(*args, **kwargs)

    return call


def replay(ledger: Ledger, item: int) -> Any:
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

    with resolving(lambda _digest, data, _handles: load(data)):
        args, kwargs = payload.arguments(item)
    if ledger.options.seed is None:
        return ledger.fn(*args, **kwargs)
    with seeds.apart():
        seeds.begin(ledger.options.seed, item)
        return ledger.fn(*args, **kwargs)
