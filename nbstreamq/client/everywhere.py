"""Calls that are for every worker."""

from __future__ import annotations

import time

from ..objects.functions import FunctionPickle
from ..protocol.messages import Task
from ..protocol.store import Store
from .ledger import Ledger
from .payload import Payload
from .sender import Order
from .session import Session

__all__ = ["everywhere"]

#: Seconds to wait for workers that are starting.
START_PATIENCE = 5.0


def everywhere(session: Session, ledger: Ledger, function: FunctionPickle, args: bytes) -> None:
    """Send a call, with pickled arguments, to every worker, and to those that join later.

    The ledger gets an item for each worker that there is then; until then it is growing.
    """
    ledger.growing = True

    def carry_out(store: Store) -> None:
        patient_until = time.monotonic() + START_PATIENCE
        while True:
            names = sorted(store.workers())
            # Before they are sent: a worker may be done before we hear that they were.
            ledger.begin(Payload(0, len(names), "apply", args))
            # Local ones that are starting are waited for.
            if len(names) < session.workers.n_workers and time.monotonic() < patient_until:
                time.sleep(0.005)
            elif store.everywhere(names, _tasks(ledger.job, function, args, len(names))):
                break
        session.stop_growing(ledger)

    def fail(error: BaseException) -> None:
        ledger.begin(Payload(0, 1, "apply", args))
        ledger.fail([0], error)
        session.stop_growing(ledger)

    session.send(Order(carry_out, fail, len(args)), alone=False)


def _tasks(job: str, function: FunctionPickle, args: bytes, n: int) -> list[Task]:
    """Return a task for each of `n` workers, and one for who joins later: nobody waits for that."""
    fn, name = function.digest, function.name
    return [Task(job=job, n=i, fn=fn, name=name, call="apply", args=args) for i in range(n + 1)]
