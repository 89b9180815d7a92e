"""Whether those still exist who wanted a call: a session, until it ends, or a named job.

What waits of one that is gone is not run, however late a worker comes for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from .connection import Wire
from .keys import Keys, owner_key, session_of
from .replies import mapping

__all__ = ["Owners"]

#: Seconds for which one that was there is taken to be there still: until then, what is written in
#: `cancelled` says what of it shall not run. Longer keeps that longer; shorter asks more often.
TRUST = 30.0
#: Most that are remembered.
MOST_KNOWN = 10_000


class Owners:
    """Asks the server who is still there, now and then.

    Parameters
    ----------
    wire, keys
        Of a `Store`.
    """

    def __init__(self, wire: Wire, keys: Keys) -> None:
        self._wire = wire
        self._keys = keys
        self._seen: dict[str, float] = {}
        self._gone: set[str] = set()
        self._tidied = time.monotonic()

    def gone(self, jobs: Iterable[str]) -> set[str]:
        """Return the owners of `jobs` that are there no more."""
        owners = {session_of(job) for job in jobs}
        since = time.monotonic() - TRUST
        doubtful = [owner for owner in owners if self._seen.get(owner, since) <= since]
        return self.missing(doubtful) if doubtful else set()

    def tidy(self) -> None:
        """Forget, now and then, what was cancelled of owners that are gone for long enough."""
        if time.monotonic() < self._tidied + 2 * TRUST:
            return
        # All of them: rules for users of the server need not allow HKEYS.
        names = mapping(self._wire.call(("HGETALL", self._keys.cancelled))[0])
        jobs = {name.decode(errors="replace"): name for name in names if name != b"#"}
        missing = self.missing([*{session_of(job) for job in jobs}])
        old = [name for job, name in jobs.items() if session_of(job) in missing & self._gone]
        if old:
            self._wire.call(("HDEL", self._keys.cancelled, *old))
        self._gone, self._tidied = missing, time.monotonic()

    def missing(self, owners: list[str]) -> set[str]:
        """Return those of `owners` that are there no more; asks the server."""
        if not owners:
            return set()
        there = self._wire.call(*(("EXISTS", owner_key(self._keys, o)) for o in owners))
        if len(self._seen) > MOST_KNOWN:
            self._seen.clear()
        now = time.monotonic()
        self._seen.update((o, now) for o, known in zip(owners, there, strict=True) if known)
        return {owner for owner, known in zip(owners, there, strict=True) if not known}
