"""`Workers`: the workers that a session has asked for, and why none of them runs its calls."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..home import PYTHON, Home, how_to_start
from ..launch.launcher import Purpose, find_launcher
from ..launch.local import LocalWorkers
from ..wire.keys import home_of, may_run
from ..wire.store import Store
from ..worker_context import WorkerContext
from .table import JobTable, Outstanding
from .units import Units

#: Seconds for which questions about the state of the queue wait for a server that is away.
LOOK_PATIENCE = 5.0


class Workers:
    """The workers that a session has asked for, in this kernel and in other places.

    Parameters
    ----------
    local
        Those of this kernel.
    n_workers
        How many local ones the first call starts; None: none.
    home
        Of this process.
    server
        Address for the command that starts workers; empty: the embedded server's.
    purpose
        What workers in other places need to get in.
    ask_within, warn
        `Session.ask_within` and `Session.warn`.

    Attributes
    ----------
    n_at_first
        How many local ones the next call has to `start`; None or 0: none.
    """

    def __init__(
        self,
        local: LocalWorkers,
        n_workers: int | None,
        *,
        home: Home,
        server: str,
        purpose: Purpose,
        ask_within: Callable[..., Any],
        warn: Callable[[str], object],
    ) -> None:
        self.local, self.n_at_first, self._home = local, n_workers, home
        self._server, self._purpose = server, purpose
        self._ask_within, self._warn = ask_within, warn
        #: By what `TaskQueue.run` got as their place.
        self._units: dict[str | int, Units] = {}

    # -- starting and counting -----------------------------------------------------------------

    def start(self) -> None:
        """Start the local workers that a queue starts by itself, if it has not yet."""
        n, self.n_at_first = self.n_at_first, None
        if n:
            try:
                self.local.scale(n)
            except BaseException:
                self.n_at_first = n  # the next call tries again
                raise

    def scale(self, n_workers: int, wear: tuple[int, int] | None = None) -> None:
        """Start or stop local workers until there are `n_workers`; `wear` as in `LocalWorkers`."""
        self.n_at_first = None
        self.local.scale(n_workers, wear)

    def scale_units(
        self, n_workers: int, on: Any, wear: tuple[int, int], options: dict[str, Any]
    ) -> Units:
        """Start or stop workers in another place until there are `n_workers`, and return them."""
        key = on if isinstance(on, str) else id(on)
        units = self._units.get(key)
        if units is None or options or any(wear):
            launcher = find_launcher(on, replace(self._purpose, wear=wear), options)
            if units is not None and units.n_workers:
                raise ValueError(
                    f"Workers on {on} run with other options: stop them first, by q.run(0, on=...)."
                )
            units = Units(launcher, self._purpose.settings.silence, self._ask_within, self._warn)
        units.scale(n_workers)
        self.n_at_first, self._units[key] = None, units
        return units

    def add_local(self) -> None:
        """Start one more local worker."""
        self.scale(1 + self.n_local())

    def n_local(self) -> int:
        """Return how many workers of this kernel there are, without those that stand in."""
        ours = [about for about in self._registered() if self._home.calls in about.get("homes", ())]
        return sum(not about.get("waits") for about in ours)

    def n_wanted(self) -> int:
        """Return how many workers this session has asked for, here and elsewhere."""
        return self.local.n_workers + sum(units.n_workers for units in self._places())

    def n_expected(self) -> int:
        """Return how many workers may run calls, with those that the first call starts."""
        # One whose task waits runs nothing else: another one stands in for it.
        home = self.homes[0]
        n_there = sum(accepts(d, home) and not d.get("waits") for d in self._registered())
        n_pending = sum(units.n_pending for units in self._places())
        return max(n_there, self.n_at_first or self.local.n_workers) + n_pending

    def awaited(self) -> list[str]:
        """Return a line for each other place whose workers are not all there yet."""
        places = [units for units in self._places() if units.n_pending and not units.trouble]
        return [units.obstacle() or units.summary() for units in places]

    def _registered(self) -> list[dict[str, Any]]:
        return list(self._ask_within(LOOK_PATIENCE, Store.workers).values())

    def _places(self) -> list[Units]:
        return list(self._units.values())  # in one step: another thread may add one

    # -- why none runs a call ------------------------------------------------------------------

    @property
    def homes(self) -> tuple[str, str]:
        """Tags of the calls, and of the named jobs, that are made now; see `Home`."""
        worker = WorkerContext.current
        if worker is None:
            return self._home.tags
        return worker.home(), (worker.homes[-1] if worker.homes else worker.home())

    def obstacle(self, registered: dict[str, dict[str, Any]], what: Outstanding) -> str:
        """Return why no worker runs what waits, and what to do; empty if one may.

        Parameters
        ----------
        registered
            Id -> description of the queue's workers.
        """
        home, lane = home_of(what.job), what.lane
        ours = [about for about in registered.values() if accepts(about, home)]
        if not ours and self.local.are_starting and home in self.homes:
            return ""
        units = [one for one in self._places() if one.n_pending or one.trouble]
        if not ours and units:
            return "; ".join(filter(None, map(Units.obstacle, units)))
        if not ours and isinstance(what, JobTable) and what.title:
            return self._none_left(what.title, what.job, what.about)
        if not ours:
            return self._none_for_us(registered)
        if not any(lane in about.get("lanes", ()) for about in ours):
            return f"no worker serves its lane {lane!r}. Start one: {self._command(lane=lane)}"
        return ""

    def _none_for_us(self, registered: dict[str, dict[str, Any]]) -> str:
        """Return what to do about a queue without workers that may run our calls."""
        queue, start = self._purpose.queue, f"{how_to_start(4)} here, or"
        found = {about.get("python", "") for about in registered.values() if not about.get("homes")}
        if found:
            return (
                f"queue {queue!r} has only workers of Python {', '.join(sorted(found))}, and this"
                f" is Python {PYTHON}: functions are sent as bytecode, which differs. Start workers"
                f" with Python {PYTHON}: {start}"
                f" `{self._command(python=f'python{PYTHON}')}` anywhere."
            )
        which = "no workers but those of other kernels" if registered else "no workers"
        return f"queue {queue!r} has {which}. Start some: {start} `{self._command()}` anywhere."

    def troubles(self, store: Store) -> list[str]:
        """Return which named jobs no worker can run, and why no more units are started."""
        workers = store.workers().values()
        records = (
            store.readable_record(job, name)
            for name, job in store.job_names().items()
            if not any(accepts(about, home_of(job)) for about in workers)
        )
        stranded = [
            self._none_left(record.name, record.id, record.about)
            for record in records
            if record is not None and record.n_ended < record.n_items
        ]
        return stranded + [units.trouble for units in self._places() if units.trouble]

    def _none_left(self, name: str, job: str, about: dict[str, Any]) -> str:
        folder = about["folder"]
        command = self._command(folder, about["python"])
        here = f"{how_to_start(4)} here, or " if home_of(job) in self.homes else ""
        return (
            f"job {name!r} waits: no worker with its folder, {folder}, and its Python is left."
            f" Start some: {here}`{command}`"
        )

    def _command(self, folder: str = "", python: str = "python", lane: str = "") -> str:
        """Return the command that starts workers for this queue."""
        words = [python, "-m", "nbstreamq", "worker", *filter(None, [self._server])]
        words += ["--queue", self._purpose.queue]
        words += ["--lane", lane] if lane else []
        return f"cd {shlex.quote(folder)} && {shlex.join(words)}" if folder else shlex.join(words)

    # -- the end -------------------------------------------------------------------------------

    def close(self, *, wait: bool) -> None:
        """Let go of them; `wait` as in `LocalWorkers.close`."""
        with ExitStack() as stack:  # all of them, even if one fails
            stack.callback(self.local.close, wait=wait)
            for units in self._places():
                stack.callback(units.close)

    def forget(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""
        self.local.forget()
        for units in self._places():
            units.forget()


def accepts(description: dict[str, Any], home: str) -> bool:
    """Return whether a worker runs tasks of `home`.

    Those of `nbstreamq worker` run all of their minor version of Python.
    """
    return may_run(tuple(description.get("homes", ())), home, description.get("python", PYTHON))
