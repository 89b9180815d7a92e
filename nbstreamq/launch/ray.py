"""Workers in a Ray cluster: each unit is a process that an actor owns."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Sequence
from typing import Any

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
except ImportError as error:
    raise ImportError(
        "on='ray' needs Ray, here and where the workers run: pip install 'nbstreamq[ray]'"
        f" ({error})"
    ) from None

from .held_units import HeldUnits, Order, command
from .launcher import Launcher, Purpose, UnitReport, new_id

#: Seconds that Ray may take to answer.
TIMEOUT = 15.0
#: Seconds in which units end at the end of the session, if they run nothing; between two looks.
STOP_TIMEOUT, POLL = 10.0, 0.1


class RayLauncher(Launcher):
    """Starts an actor for each unit. Ray decides where, and when there is room.

    Parameters
    ----------
    on
        ``ray``: the cluster of `ray.init`. It is called, if it has not been.
    workers_per_actor
        Small actors find room sooner.
    num_cpus
        What Ray reserves for each worker.
    resources
        What else Ray reserves for each actor, as in ``{"gpu_box": 1}``.
    idle_timeout
        Seconds without a call after which a unit ends.
    drain
        Seconds that running calls get when a unit is told to end.
    """

    def __init__(
        self,
        on: str,
        purpose: Purpose,
        *,
        workers_per_actor: int = 1,
        num_cpus: float = 1.0,
        resources: dict[str, float] | None = None,
        idle_timeout: float = 1200.0,
        drain: float = 30.0,
    ) -> None:
        super().__init__(on, purpose)
        self.unit_size = workers_per_actor
        self._num_cpus, self._resources = num_cpus, resources
        self._idle_timeout, self._drain = idle_timeout, drain
        #: Unit -> its actor, and the answer to its order, until it has ended.
        self._actors: dict[str, tuple[Any, Any]] = {}
        if not ray.is_initialized():
            ray.init(log_to_driver=False)

    def start(self, sizes: Sequence[int]) -> list[str]:
        actor_class = ray.remote(HeldUnits)
        units = [new_id() for _ in sizes]
        for unit, size in zip(units, sizes, strict=True):
            actor = actor_class.options(
                num_cpus=self._num_cpus * size, resources=self._resources
            ).remote()
            order = Order.of(unit, self.purpose, self._command(unit, size))
            # An argument of a call goes to the actor alone. One of its constructor would be kept.
            self._actors[unit] = actor, actor.start.remote([order])
        return units

    def _command(self, unit: str, n_workers: int) -> list[str]:
        return command(unit, self.purpose, n_workers, self._drain, self._idle_timeout)

    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        deadline = time.monotonic() + TIMEOUT
        asked = {}
        for unit in units:
            actor, started = self._actors.get(unit, (None, None))
            if actor is not None and ray.wait([started], timeout=0)[0]:
                asked[unit] = actor.survey.remote([unit])
        return {unit: self._report(unit, asked.get(unit), deadline) for unit in units}

    def _report(self, unit: str, asked: Any, deadline: float) -> UnitReport:
        actor, started = self._actors.get(unit, (None, None))
        if actor is None:
            return UnitReport(state="ended", why="it was stopped", is_planned=True)
        if asked is None:
            return UnitReport(state="pending", why="Ray has no room for its actor, or starts it")
        try:
            refusal: str = ray.get(started)
            left = max(0.0, deadline - time.monotonic())
            found: UnitReport = ray.get(asked, timeout=left).get(unit, UnitReport(state="ended"))
        except GetTimeoutError:
            return UnitReport(state="unknown", why="Ray does not answer")
        except RayError as error:
            refusal = f"its actor has died: {str(error).strip().splitlines()[0]}"
            found = UnitReport(state="ended")
        if refusal:
            found = UnitReport(state="ended", why=refusal)
        if found.state == "ended":
            self._end(unit)
        return found

    def _end(self, unit: str) -> None:
        """Give up the actor of a unit that has ended."""
        actor, _ = self._actors.pop(unit)
        ray.kill(actor)

    def stop(self, units: Collection[str], *, drain: bool) -> None:
        for unit in set(units) & self._actors.keys():
            actor, started = self._actors[unit]
            if ray.wait([started], timeout=0)[0]:
                actor.stop.remote([unit], drain=drain)
            else:
                self._end(unit)

    def script(self, n_workers: int) -> str:
        words = shlex.join(self._command("UNIT", n_workers))
        return (
            f"# In an actor of Ray with num_cpus={self._num_cpus * n_workers:g}, with its"
            " interpreter. The standard input has the\n# server's address and the secret.\n"
            f"python {words}\n"
        )

    def close(self, *, is_fork: bool) -> None:
        """End the units after their running calls; they have some seconds."""
        if is_fork or not ray.is_initialized():
            self._actors = {}
            return
        self.stop(list(self._actors), drain=True)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._actors and time.monotonic() < deadline:
            self.survey(list(self._actors))
            time.sleep(POLL)
        for unit in list(self._actors):
            self._end(unit)
