"""Units that a process of another system owns: a worker of Dask, or an actor of Ray."""

from __future__ import annotations

import socket
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..home import PYTHON
from ..secret import Secret
from ..settings import handover
from ..wire.messages import VERSION
from ..wire.trust import is_local
from .launcher import Purpose, UnitReport, last_line
from .unit_process import UnitProcess


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process needs to start a unit. It can be pickled, and holds secrets: never store it.

    Attributes
    ----------
    unit
        Id of the unit.
    words
        Of its command, behind the interpreter.
    known
        What is written to its standard input, with the secrets.
    host
        Only there is the server; empty if it can be reached from other machines.
    versions
        Minor version of Python, and version of nbstreamq, that it must have.
    """

    unit: str
    words: tuple[str, ...]
    known: bytes
    host: str
    versions: tuple[str, str] = (PYTHON, VERSION)

    @classmethod
    def of(cls, unit: str, purpose: Purpose, words: Sequence[str]) -> Order:
        """Return the order for a unit of a queue, with the command `words`."""
        known: dict[str, Secret | None] = {
            "url": purpose.url,
            "secret": purpose.secret,
            "store": purpose.settings.store,
            "session": Secret(""),  # the lifeline is not the client's
        }
        host = socket.gethostname() if is_local(purpose.url) else ""
        return cls(unit=unit, words=tuple(words), known=handover(**known), host=host)

    def __repr__(self) -> str:
        return f"<Order {self.unit}>"

    def refusal(self) -> str:
        """Return in a line why this process can't carry it out; empty if it can."""
        here, (minor, version) = socket.gethostname(), self.versions
        if self.host and here != self.host:
            return (
                f"{here} can't reach the queue's server, which is on {self.host} only. Use"
                " TaskQueue(url=...) with a server that both can reach"
            )
        if (minor, version) != (PYTHON, VERSION):
            return (
                f"{here} has Python {PYTHON} and nbstreamq {VERSION}, and needs Python {minor} and"
                f" nbstreamq {version}"
            )
        return ""


def command(unit: str, purpose: Purpose, n_workers: int, drain: float, idle: float) -> list[str]:
    """Return the words behind the interpreter with which it becomes a unit."""
    words = purpose.worker_words(unit, n_workers, drain)
    return [*words, "--idle-timeout", f"{idle:g}", "--lifeline"]


class HeldUnits:
    """Starts units as processes, which end with this one."""

    def __init__(self) -> None:
        self._units: dict[str, UnitProcess] = {}
        self._ended: dict[str, UnitReport] = {}

    def start(self, orders: Sequence[Order]) -> str:
        """Start units; return in a line why not, or nothing."""
        for order in orders:
            if refusal := order.refusal():
                return refusal
        for order in orders:
            unit = self._units[order.unit] = UnitProcess([sys.executable, *order.words])
            unit.write(order.known)
        return ""

    def survey(self, units: Collection[str]) -> dict[str, UnitReport]:
        """Return what has become of those units that were started here."""
        for unit in set(units) & self._units.keys():
            if self._report(unit).state == "ended":
                self._ended[unit] = self._report(unit)
                self._units.pop(unit).close()
        here = set(units) & (self._units.keys() | self._ended.keys())
        return {unit: self._ended.get(unit) or self._report(unit) for unit in here}

    def _report(self, unit: str) -> UnitReport:
        code, tail = self._units[unit].process.poll(), self._units[unit].tail()
        if code is None:
            return UnitReport(state="running", log=tail)
        why = last_line(tail) or f"its process ended with {code}"
        return UnitReport(state="ended", why=why, log=tail, is_planned=code == 0)

    def stop(self, units: Collection[str], *, drain: bool) -> None:
        """End units: after their running calls, or at once."""
        for unit in units:
            if unit in self._units:
                self._units[unit].end(drain=drain)

    def close(self) -> None:
        """End all units after their running calls."""
        self.stop(list(self._units), drain=True)
