"""The order that sends a call to every worker."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..objects.functions import FunctionPickle
from ..protocol.messages import Task
from ..protocol.store import Store
from .ledger import Ledger
from .payload import Payload
from .sender import Order

__all__ = ["everywhere_order"]

#: Seconds to wait for workers that are starting.
START_PATIENCE = 5.0


def everywhere_order(
    ledger: Ledger,
    function: FunctionPickle,
    args: bytes,
    n_expected: Callable[[], int],
    end: Callable[[], None],
) -> Order:
    """Return the order that calls `function` once on every worker, and on those that join later.

    Parameters
    ----------
    ledger
        Gets an item for each worker that there is.
    args
        The pickled arguments.
    n_expected
        Returns how many local workers there shall be: those that are starting are waited for.
    end
        Called when the ledger has all its items.
    """

    def carry_out(store: Store) -> None:
        patient_until = time.monotonic() + START_PATIENCE
        while True:
            names = sorted(store.workers())
            # Before they are sent: a worker may be done before we hear that they were.
            ledger.begin(Payload(0, len(names), "apply", args))
            if len(names) < n_expected() and time.monotonic() < patient_until:
                time.sleep(0.005)
            elif store.everywhere(names, _tasks(ledger.job, function, args, len(names))):
                break
        end()

    def fail(error: BaseException) -> None:
        ledger.begin(Payload(0, 1, "apply", args))
        ledger.fail([0], error)
        end()

    return Order(carry_out, fail, len(args))


def _tasks(job: str, function: FunctionPickle, args: bytes, n: int) -> list[Task]:
    """Return a task for each of `n` workers, and one for who joins later: nobody waits for that."""
    fn, name = function.digest, function.name
    return [Task(job=job, n=i, fn=fn, name=name, call="apply", args=args) for i in range(n + 1)]
