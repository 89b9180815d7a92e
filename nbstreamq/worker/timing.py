"""How often a supervisor looks, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the supervisor looks, and how long it waits; all in seconds.

    Attributes
    ----------
    tick
        Between two looks at the workers' slots while something there has limits, is to be stopped,
        or was cancelled not long ago. Shorter keeps time limits better.
    rest
        Between two looks at other times. Shorter costs more while nothing happens; longer lets C
        code fill more of its output's file.
    heartbeat
        Between two signs of life.
    silence
        After which a machine that gave none is given up. Must be several heartbeats.
    grace
        Between the request to stop and the kill.
    drain
        That what runs gets after a request to end; then it is handed back. Longer loses less work.
    farewell
        That a worker gets to end when it has nothing in its hands any more: for the `atexit`
        handlers, and the files, of what it ran.
    hearing
        That one request for orders lasts. Longer costs nothing; it must stay below what firewalls
        allow a silent connection.
    visit
        That it waits for its first user.
    """

    tick: float = 0.05
    rest: float = 0.25
    heartbeat: float = 1.0
    silence: float = 4.0
    grace: float = 1.0
    drain: float = 30.0
    farewell: float = 5.0
    hearing: float = 30.0
    visit: float = 15.0
