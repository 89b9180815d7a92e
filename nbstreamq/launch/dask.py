"""Workers beside those of Dask: each unit is a process that a worker of Dask owns."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from typing import Any

from distributed import Client, Worker, WorkerPlugin

from ..errors import NbstreamqError
from .held_units import HeldUnits, Order, command
from .launcher import Launcher, Purpose, UnitReport, new_id

#: Seconds that Dask may take to answer.
TIMEOUT = 15.0


class UnitsPlugin(WorkerPlugin):  # type: ignore[misc]
    """Owns the units on a worker of Dask, and ends them with it. It holds no secrets."""

    def __init__(self, name: str) -> None:
        self.name = name

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - as Dask calls it
        self.held = HeldUnits()

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        self.held.close()


def _start(name: str, orders: dict[str, list[Order]], dask_worker: Worker) -> str:
    return _held(name, dask_worker).start(orders[dask_worker.address])


def _survey(name: str, units: list[str], dask_worker: Worker) -> dict[str, UnitReport]:
    return _held(name, dask_worker).survey(units)


def _stop(name: str, units: list[str], drain: bool, dask_worker: Worker) -> None:
    _held(name, dask_worker).stop(units, drain=drain)


def _held(name: str, dask_worker: Worker) -> HeldUnits:
    held: HeldUnits = dask_worker.plugins[name].held
    return held


class DaskLauncher(Launcher):
    """Starts units on the workers of a Dask cluster, where most threads are free of them.

    Parameters
    ----------
    on
        A client of Dask.
    workers_per_unit
        None: as many as the smallest worker of Dask has threads.
    idle_timeout
        Seconds without a call after which a unit ends, so that those of a killed kernel end.
    drain
        Seconds that running calls get when a unit is told to end.
    """

    def __init__(
        self,
        on: Client,
        purpose: Purpose,
        *,
        workers_per_unit: int | None = None,
        idle_timeout: float = 1200.0,
        drain: float = 30.0,
    ) -> None:
        super().__init__(on, purpose)
        if on.asynchronous:
            raise TypeError("on is an asynchronous client of Dask: it must be a plain one")
        self._name = f"nbstreamq-{purpose.session}"
        self.unit_size = workers_per_unit or min(on.nthreads().values(), default=1)
        self._idle_timeout, self._drain = idle_timeout, drain
        #: Unit -> address of the worker of Dask, and the unit's size.
        self._places: dict[str, tuple[str, int]] = {}
        self._is_registered = False

    def start(self, sizes: Sequence[int]) -> list[str]:
        if not self._is_registered:
            self.on.register_plugin(UnitsPlugin(self._name))
            self._is_registered = True
        units, orders = [new_id() for _ in sizes], dict[str, list[Order]]()
        for unit, size in zip(units, sizes, strict=True):
            place = self._freest()
            self._places[unit] = place, size
            orders.setdefault(place, []).append(
                Order.of(unit, self.purpose, self._command(unit, size))
            )
        answers = self._run(_start, orders, workers=list(orders))
        refusals = [str(answer) for answer in answers.values() if answer]
        if refusals:
            self.stop(units, drain=False)
            for unit in units:
                del self._places[unit]
            raise NbstreamqError(f"No workers start on Dask: {refusals[0]}.")
        return units

    def _freest(self) -> str:
        """Return the address of the worker of Dask with the fewest workers for each thread."""
        threads: dict[str, int] = self.on.nthreads()
        if not threads:
            raise NbstreamqError("Dask has no workers. Start some first: client.cluster.scale(4).")
        taken = dict.fromkeys(threads, 0)
        for place, size in self._places.values():
            if place in taken:
                taken[place] += size
        return min(threads, key=lambda place: taken[place] / max(1, threads[place]))

    def _command(self, unit: str, n_workers: int) -> list[str]:
        return command(unit, self.purpose, n_workers, self._drain, self._idle_timeout)

    def _run(self, ask: Any, *args: Any, workers: list[str]) -> dict[str, Any]:
        """Call a function on workers of Dask; return what each has answered, which may be an error.

        Raises
        ------
        NbstreamqError
            Dask does not answer.
        """
        run = self.on._run  # noqa: SLF001 - `run` has no time limit
        try:
            found: dict[str, Any] = self.on.sync(
                run, ask, self._name, *args, workers=workers, on_error="return",
                callback_timeout=TIMEOUT,
            )  # fmt: skip
        except Exception as error:
            raise NbstreamqError(f"Dask does not answer: {error!r}") from error
        return found

    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        try:
            living = set(self.on.nthreads())
            workers = list({self._places[unit][0] for unit in units} & living)
            answers = self._run(_survey, list(units), workers=workers) if workers else {}
        except Exception as error:  # noqa: BLE001 - Dask has many
            return dict.fromkeys(units, UnitReport(state="unknown", why=str(error)))
        known: dict[str, UnitReport] = {}
        for answer in answers.values():
            if isinstance(answer, dict):
                known |= answer
        gone = UnitReport(state="ended", why="its worker of Dask has left")
        missing = UnitReport(state="unknown", why="its worker of Dask does not answer")
        for unit in units:
            known.setdefault(unit, missing if self._places[unit][0] in living else gone)
        for unit, report in known.items():
            if report.state == "ended":
                self._places[unit] = "", 0
        return known

    def stop(self, units: Collection[str], *, drain: bool) -> None:
        workers = list({self._places[unit][0] for unit in units} & set(self.on.nthreads()))
        if workers:
            self._run(_stop, list(units), drain, workers=workers)

    def script(self, n_workers: int) -> str:
        words = shlex.join(self._command("UNIT", n_workers))
        return (
            "# On a worker of Dask, with its interpreter. The standard input has the server's"
            f" address and the secret.\npython {words}\n"
        )

    def close(self, *, is_fork: bool) -> None:
        """Let the units end after their running calls; without an answer they end when idle."""
        if not is_fork and self._is_registered and self.on.status == "running":
            self.on.unregister_worker_plugin(self._name)

    def __str__(self) -> str:
        return f"Dask at {self.on.scheduler.addr}" if self.on.scheduler else "Dask"
