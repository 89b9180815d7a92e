"""What is known of a worker's end."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DeathCertificate
from .slots import Level, Stop

__all__ = ["Death", "cause_of", "tail"]


@dataclass(frozen=True)
class Death:
    """How a worker ended.

    Attributes
    ----------
    certificate
        What is told of it.
    levels
        What it ran, the outermost first; empty if that is not known.
    stopped
        Serial and number of the item that it was killed for, and why.
    is_planned
        Whether somebody asked for the end: then what ran is handed back, and not charged with it.
    """

    certificate: DeathCertificate
    levels: Sequence[Level] = ()
    stopped: tuple[int, int, Stop] = (0, 0, Stop.NONE)
    is_planned: bool = False


def cause_of(status: int) -> str:
    """Return the signal or exit code that a wait status says, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def tail(descriptor: int, size: int = 4000) -> str:
    """Return the end of a file."""
    end = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, max(0, end - size)).decode(errors="replace")
