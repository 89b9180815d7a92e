"""Calls that every worker makes, including workers that join later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..objects.pickling import dump
from ..wire.messages import Event, Options, Task
from ..wire.store import Store
from .error_notes import Payload
from .job import Job
from .sender import Command
from .session import Session
from .workers import accepts

#: Seconds to wait for local workers that are starting.
START_PATIENCE = 5.0


class SetUp:
    """A call that every worker makes, including workers that join later.

    Parameters
    ----------
    session
        Sends it, and gets the results of the workers there are.
    fn, args, kwargs
        The call.
    lane
        The lane that the job shows.
    """

    def __init__(
        self,
        session: Session,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        lane: str,
    ) -> None:
        self._session = session
        self._function = session.pickle_function(fn, durable=True)
        self._args = dump((args, kwargs), f"an argument of {self._function.name}()")
        self._table = session.new_table(fn, self._function.name, lane)
        self._table.growing, self._table.function = True, self._function
        #: To whom it was sent: again, if a reply is lost.
        self._sent: list[list[str]] = []

    def send(self, show: Callable[[str, Event], object] | None = None) -> Job[Any]:
        """Return the job of the call, which has an item for each worker there is.

        Parameters
        ----------
        show
            Gets what they print, see `JobTable.show`: as long as the session lives, also of those
            that join later.
        """
        session, table = self._session, self._table
        session.register(table)
        if show is not None:
            table.show = show
        session.set_up(table, Command(self._carry_out, self._fail, len(self._args)))
        session.wait_until(table, lambda: not table.growing, None)
        return Job(session, table)

    def _carry_out(self, store: Store) -> None:
        session, table = self._session, self._table
        patient_until = time.monotonic() + START_PATIENCE
        while True:
            workers, home = store.workers(), session.workers.homes[0]
            names = sorted(n for n, about in workers.items() if accepts(about, home))
            # Wait for local workers that are starting.
            if len(names) < session.workers.local.n_workers and time.monotonic() < patient_until:
                time.sleep(0.005)
                continue
            if names not in self._sent[-1:]:
                # Before they are sent: a worker may be done before we hear that they were.
                table.begin(Payload(0, len(names), "apply", self._args))
                self._sent.append(names)
            # Others get other messages: the same ones could be taken for copies.
            others = sorted(set(workers) - set(names))
            if store.everywhere(names, self._tasks(len(names)), others):
                break
        session.stop_growing(table)

    def _tasks(self, n: int) -> list[Task]:
        """Return a task for each of `n` workers, and one for workers that join later."""
        what = Task(
            job=self._table.job,
            n=0,
            fn=self._function.digest,
            name=self._function.name,
            call="apply",
            args=self._args,
            opts=Options().of_function(is_async=self._function.is_async).encode(),
            run=len(self._sent) - 1,
        )
        return [what.with_changes(n=i) for i in range(n + 1)]

    def _fail(self, error: BaseException) -> None:
        self._table.begin(Payload(0, 1, "apply", self._args))
        self._table.fail(error)
        self._session.stop_growing(self._table)
