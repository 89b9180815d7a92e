"""`Units`: workers in another place, which a launcher starts there."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import NbstreamqError
from ..launch.launcher import Launcher, UnitReport
from ..locks import Event
from ..wire.store import Store

logger = logging.getLogger(__name__)

#: Seconds between two looks at which workers there are.
LOOK = 1.0
#: Seconds in which a start that is under way may end when the session ends.
FAREWELL = 5.0
#: Seconds that a unit must live to count as good.
SHORT = 60.0
#: Units in a row that end sooner, after which no more are started: they would go on to fail.
FUSE = 3
#: Replacements for each unit that is wanted, within `BUDGET_SPAN` seconds. More forgives worse
#: machines; schedulers ban users who submit without end.
BUDGET, BUDGET_SPAN = 6, 3600.0
#: Most units that are shown, the newest; iteration yields all.
MAX_SHOWN = 30
#: Most units that have ended and are still listed.
MAX_ENDED = 20


@dataclass(frozen=True, kw_only=True)
class UnitStatus:
    """A unit at one moment: a supervisor with its workers in another place.

    Attributes
    ----------
    id
        Id of the unit.
    state
        ``pending``: it waits for a machine. ``running``: it has one. ``ending``: it was told to
        end, and finishes its calls. ``ended``. ``unknown``: the scheduler does not answer.
    n_workers, n_alive
        How many workers it is to have, and how many take part now.
    why
        Why it waits or has ended; may be empty.
    log
        The last lines that it has logged.
    """

    id: str
    state: Literal["pending", "running", "ending", "ended", "unknown"]
    n_workers: int
    n_alive: int = 0
    why: str = ""
    log: str = ""

    def __str__(self) -> str:
        why = f": {self.why}" if self.why else ""
        return f"unit {self.id}: {self.state}, {self.n_alive} of {self.n_workers} workers{why}"


@dataclass
class _Unit:
    id: str
    n_workers: int
    report: UnitReport = field(default_factory=lambda: UnitReport(state="pending"))
    n_alive: int = 0
    is_wanted: bool = True
    #: Since when it runs, by the monotonic clock; infinity: it has not been seen to run.
    since: float = float("inf")

    @property
    def is_over(self) -> bool:
        return self.report.state == "ended" and not self.n_alive

    def status(self) -> UnitStatus:
        known = self.report
        state: Any = "running" if self.n_alive else known.state
        if not self.is_wanted and not self.is_over:
            state = "ending"
        why = known.why if self.is_wanted and not self.n_alive else ""
        if state == "running" and not self.n_alive:
            why = why or "its workers have not joined yet"
        return UnitStatus(
            id=self.id,
            state=state,
            n_workers=self.n_workers,
            n_alive=self.n_alive,
            why=why,
            log=known.log,
        )


class Units:
    """Workers in another place, as `TaskQueue.run` with ``on`` returns them.

    It iterates over the state of each unit. Units that are lost are replaced, unless they keep
    failing.

    Parameters
    ----------
    launcher
        What starts the units.
    silence
        Seconds without a heartbeat after which a machine counts as lost.
    ask_within
        `Session.ask_within`.
    warn
        Says a text once.

    Examples
    --------
    >>> units = q.run(8, on="ssh://me@node3")  # doctest: +SKIP
    >>> units  # doctest: +SKIP
    8 of 8 workers on ssh://me@node3
      unit 5e0f3b9ac1d2: running, 8 of 8 workers
    """

    def __init__(
        self,
        launcher: Launcher,
        silence: float,
        ask_within: Callable[..., Any],
        warn: Callable[[str], object],
    ) -> None:
        self._launcher, self._silence, self._warn = launcher, silence, warn
        self._ask_within = ask_within
        self._lock = threading.RLock()
        #: With those that an earlier session has left.
        self._units = {unit: _Unit(unit, n) for unit, n in launcher.left_behind().items()}
        self._wanted = 0
        self._survey_due = 0.0
        self._closing = Event()
        self._thread: threading.Thread | None = None
        #: How many units in a row have ended soon; and when units were replaced.
        self._n_short = 0
        self._replaced = deque[float]()
        #: Why no more units are started; empty if nothing is wrong.
        self.trouble = ""

    # -- what there is -------------------------------------------------------------------------

    def __iter__(self) -> Iterator[UnitStatus]:
        return iter(self.status())

    def __len__(self) -> int:
        return len(self._units)

    def status(self) -> list[UnitStatus]:
        """Return the state of each unit now, the newest last."""
        if self._lock.acquire(blocking=False):  # else a thread looks, or starts some
            try:
                self._look()
            finally:
                self._lock.release()
        return [unit.status() for unit in list(self._units.values())]

    @property
    def place(self) -> str:
        """Where they are, as `TaskQueue.run` got it."""
        return str(self._launcher)

    @property
    def closed(self) -> bool:
        """Whether the session has ended: nothing more is learnt about them."""
        return self._closing.is_set()

    @property
    def n_workers(self) -> int:
        """How many workers are wanted."""
        return self._wanted

    @property
    def n_pending(self) -> int:
        """How many workers are expected and are not there yet."""
        return sum(max(0, unit.n_workers - unit.n_alive) for unit in self._current())

    def obstacle(self) -> str:
        """Return why workers are not there yet, in a line; empty if they should be soon."""
        if self.trouble:
            return self.trouble
        now = time.monotonic()
        late = [u for u in self._current() if not (u.n_alive or u.since < now < u.since + SHORT)]
        waiting = [unit for unit in map(_Unit.status, late) if unit.why]
        if not waiting:
            return ""
        n, whys = sum(unit.n_workers for unit in waiting), dict.fromkeys(u.why for u in waiting)
        return f"{n} workers on {self._launcher} are not there yet: {'; '.join(whys)}"

    def script(self) -> str:
        """Return what starts one of the units, with secrets hidden."""
        return self._launcher.script(self._sizes(max(1, self._wanted))[0])

    def summary(self) -> str:
        """Return in a line how many of the wanted workers are there."""
        n = sum(unit.n_alive for unit in self._current())
        return f"{n} of {self._wanted} workers on {self._launcher}"

    def __str__(self) -> str:
        found = self.status()
        lines = [self.summary(), *(f"  {unit}" for unit in found[-MAX_SHOWN:])]
        if len(found) > MAX_SHOWN:
            lines.append(f"  and {len(found) - MAX_SHOWN} older units")
        return "\n".join([*lines, f"  trouble: {self.trouble}"] if self.trouble else lines)

    __repr__ = __str__

    # -- starting and stopping -----------------------------------------------------------------

    def scale(self, nworkers: int) -> None:
        """Start or stop units until there are `nworkers` workers; running calls finish.

        Raises
        ------
        NbstreamqError
            The units are refused; the message says why. Those that run stay.
        """
        with self._lock:
            self._wanted, self._n_short, self.trouble = nworkers, 0, ""
            self._stop_surplus()
            try:
                self._start_missing()
            except NbstreamqError:
                self._wanted = sum(unit.n_workers for unit in self._current())
                raise
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._tend, name=f"nbstreamq-units-{self._launcher}", daemon=True
                )
                self._thread.start()

    def stop(self, *, drain: bool = True) -> None:
        """End all units.

        Parameters
        ----------
        drain
            Let running calls finish for a while. False: other workers start them again at once.
        """
        with self._lock:
            self._wanted = 0
            self._stop(self._current(), drain=drain)

    def close(self) -> None:
        """Let go of the units: the session ends."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(FAREWELL)  # it may wait for a machine that does not answer
        self._launcher.close(is_fork=False)

    def forget(self) -> None:
        """Let go of what belongs to the process that this one was forked from."""
        self._launcher.close(is_fork=True)
        self._units, self._lock, self._thread = {}, threading.RLock(), None

    def _current(self) -> list[_Unit]:
        units = list(self._units.values())  # in one step: another thread may add some
        return [unit for unit in units if unit.is_wanted and not unit.is_over]

    def _missing(self) -> int:
        return self._wanted - sum(unit.n_workers for unit in self._current())

    def _sizes(self, n_workers: int) -> list[int]:
        """Return how many workers each unit gets, if that many are needed."""
        most = self._launcher.unit_size or max(1, n_workers)
        whole, rest = divmod(n_workers, most)
        return [most] * whole + [rest] * (rest > 0)

    def _start_missing(self) -> None:
        sizes = self._sizes(max(0, self._missing()))
        if sizes:
            for unit, size in zip(self._launcher.start(sizes), sizes, strict=True):
                self._units[unit] = _Unit(unit, size)
            self._survey_due = 0.0

    def _stop_surplus(self) -> None:
        """Stop units until no more than wanted are left; those first that run nothing yet."""
        surplus = list[_Unit]()
        newest_first = self._current()[::-1]
        for unit in sorted(newest_first, key=lambda unit: unit.n_alive > 0):
            if self._missing() + sum(u.n_workers for u in surplus) < 0:
                surplus.append(unit)
        self._stop(surplus, drain=True)

    def _stop(self, units: list[_Unit], *, drain: bool) -> None:
        if units:
            self._launcher.stop([unit.id for unit in units], drain=drain)
        for unit in units:  # only now: if that fails, it can be tried again
            unit.is_wanted = False

    # -- looking after them --------------------------------------------------------------------

    def _tend(self) -> None:
        while not self._closing.wait(LOOK):
            try:
                self._look()
                with self._lock:
                    if self._missing() > 0 and not self.trouble:
                        self._replace()
            except Exception:  # nothing else looks after them
                logger.exception("Looking after the workers on %s failed", self._launcher)

    def _look(self) -> None:
        """Learn from the server who lives; and from the launcher what has become of the others."""
        try:
            workers = self._ask_within(0.0, Store.living_workers, self._silence).values()
        except NbstreamqError:  # nobody can be heard
            return
        alive = Counter(about.get("unit", "") for about in workers)
        with self._lock:
            for unit in self._units.values():
                unit.n_alive = alive[unit.id]
                if unit.n_alive:
                    unit.since = min(unit.since, time.monotonic())
            asked = [unit.id for unit in self._units.values() if not unit.is_over]
            if asked and time.monotonic() > self._survey_due and not self._closing.is_set():
                self._survey_due = time.monotonic() + self._launcher.look_every
                for unit_id, report in self._launcher.survey(asked).items():
                    self._take(self._units[unit_id], report)
            self._drop_ended()

    def _take(self, unit: _Unit, report: UnitReport) -> None:
        if report.state == "unknown" and unit.report.state != "pending":
            return  # what was known before says more
        unit.report = report
        if report.state == "running":
            unit.since = min(unit.since, time.monotonic())
        if unit.is_over and unit.is_wanted:
            lived = time.monotonic() - unit.since
            is_short = not report.is_planned and not lived >= SHORT
            self._n_short = self._n_short + 1 if is_short else 0
            if self._n_short >= FUSE:
                self._give_up(f"{FUSE} units in a row have ended within a minute", unit.status())

    def _drop_ended(self) -> None:
        ended = [unit.id for unit in self._units.values() if unit.is_over]
        for unit in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._units[unit]

    def _replace(self) -> None:
        """Start units in place of those that have ended, within the budget."""
        now = time.monotonic()
        while self._replaced and self._replaced[0] < now - BUDGET_SPAN:
            self._replaced.popleft()
        n_units = len(self._sizes(self._wanted))
        n_new = len(self._sizes(self._missing()))
        if len(self._replaced) + n_new > BUDGET * n_units:
            self._give_up(f"{len(self._replaced)} units were replaced within an hour", None)
            return
        self._replaced.extend(itertools.repeat(now, n_new))
        try:
            self._start_missing()
        except NbstreamqError as error:
            self._n_short += 1
            logger.warning("%s", error)
            if self._n_short >= FUSE:
                self._give_up(f"they failed {FUSE} times in a row. {error}", None)

    def _give_up(self, what: str, last: UnitStatus | None) -> None:
        end = (
            f" The last one: {last.why or last.state}. The end of its log:\n{last.log}"
            if last
            else ""
        )
        self.trouble = (
            f"no more workers are started on {self._launcher}: {what}. To try again:"
            f" q.run({self._wanted}, on={str(self._launcher)!r}).{end}"
        )
        self._warn(self.trouble)
