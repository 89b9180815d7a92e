"""Calls that every worker makes, including workers that join later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..objects.functions import FunctionPickle
from ..objects.pickling import dump
from ..wire.messages import Event, Task
from ..wire.store import Store
from .channel import Command
from .error_notes import Payload
from .job import Job
from .session import Session, accepts
from .table import JobTable

#: Seconds to wait for local workers that are starting.
START_PATIENCE = 5.0


def everywhere(
    session: Session,
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    lane: str = "default",
    show: Callable[[str, Event], object] | None = None,
) -> Job[Any]:
    """Return the job of a call on every worker there is; those that join later make it, too.

    Parameters
    ----------
    show
        Gets what they print, see `JobTable.show`: as long as the session lives, also of those that
        join later.
    """
    function = session.pickle_function(fn, durable=True)
    data = dump((args, kwargs or {}), f"an argument of {function.name}()")
    table = session.new_table(fn, function.name, lane)
    table.growing, table.function = True, function
    session.register(table)
    if show is not None:
        table.show = show
    session.set_up(table, _command(session, table, function, data))
    session.wait_until(table, lambda: not table.growing, None)
    return Job(session, table)


def _command(session: Session, table: JobTable, function: FunctionPickle, args: bytes) -> Command:
    """Return the command that sends the call; the table gets an item for each worker there is."""

    sent: list[list[str]] = []  # to whom: again, if a reply is lost

    def carry_out(store: Store) -> None:
        patient_until = time.monotonic() + START_PATIENCE
        while True:
            workers, home = store.workers(), session.homes[0]
            names = sorted(n for n, about in workers.items() if accepts(about, home))
            # Wait for local workers that are starting.
            if len(names) < session.workers.n_workers and time.monotonic() < patient_until:
                time.sleep(0.005)
                continue
            if names not in sent[-1:]:
                # Before they are sent: a worker may be done before we hear that they were.
                table.begin(Payload(0, len(names), "apply", args))
                sent.append(names)
            # Others get other messages: the same ones could be taken for copies.
            others = sorted(set(workers) - set(names))
            tasks = _tasks(table.job, function, args, len(sent) - 1, len(names))
            if store.everywhere(names, tasks, others):
                break
        session.stop_growing(table)

    def fail(error: BaseException) -> None:
        table.begin(Payload(0, 1, "apply", args))
        table.fail(error)
        session.stop_growing(table)

    return Command(carry_out, fail, len(args))


def _tasks(job: str, function: FunctionPickle, args: bytes, run: int, n: int) -> list[Task]:
    """Return a task for each of `n` workers, and one for workers that join later."""
    what = Task(
        job=job, n=0, fn=function.digest, name=function.name, call="apply", args=args, run=run
    )
    return [what.with_changes(n=i) for i in range(n + 1)]
