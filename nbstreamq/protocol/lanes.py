"""The lanes of a queue: what they hold, and which are in use."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import ServerRefused
from .connection import Command, Wire
from .keys import GROUP, LANES, MONTH, RARE, WEEK, Keys
from .replies import mapping

__all__ = ["Lanes"]


class Lanes:
    """The part of `Store` that knows lanes as such."""

    keys: Keys
    _wire: Wire
    #: The lanes that were submitted to through this connection.
    _told: set[str]

    def lanes(self, lanes: Iterable[str]) -> list[dict[str, Any]]:
        """Return for each of `lanes` its name, and its numbers of waiting and running entries."""
        found = []
        for lane in lanes:
            running = sum(self._pending(self.keys.lane(lane))[:1])
            key = self.keys.lane(lane)
            n, delayed = self._wire.call(("XLEN", key), ("ZCARD", self.keys.delayed(lane)))
            # Not counted at the same moment: some may have been done in between.
            waiting = max(0, n - running)
            counts = {"waiting": waiting, "running": running, "delayed": delayed}
            found.append({"lane": lane, **counts, "over": max(0, self._n_added(key) - n)})
        return found

    def _n_added(self, key: str) -> int:
        """Return how many entries were ever added to a stream; 0 if it is not there."""
        try:
            about = mapping(self._wire.call(("XINFO", "STREAM", key))[0])
        except ServerRefused as error:
            if "no such key" in str(error):
                return 0
            raise
        return int(about[b"entries-added"])

    def _pending(self, key: str, *which: Any) -> Any:
        """Return what XPENDING says of a lane; nothing if it is not there."""
        try:
            return self._wire.call(("XPENDING", key, GROUP, *which))[0]
        except ServerRefused as error:
            if "NOGROUP" in str(error):
                return []
            raise

    def ensure_lanes(self, lanes: Iterable[str]) -> None:
        """Create the lanes, and their consumer group, that do not exist."""
        for lane in lanes:
            key = self.keys.lane(lane)
            try:
                self._wire.call(("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM"))
                self._wire.call(("EXPIRE", key, MONTH))
            except ServerRefused as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def renew(self, lanes: Iterable[str] = LANES) -> None:
        """Keep the queue, and `lanes`, for another month; what is kept for ever stays so."""
        keys = self.keys
        wanted = [keys.meta, keys.jobs, keys.setup, keys.lanes]
        for lane in lanes:
            wanted += keys.lane(lane), keys.delayed(lane)
        self._wire.call(*(("EXPIRE", key, MONTH, "XX") for key in wanted))

    def used_lanes(self) -> frozenset[str]:
        """Return those of `RARE` that somebody has submitted to, or that hold anything.

        Nobody is told of the latter, if the server forgot, or refused to note, the former. All of
        them, if it refuses to say.
        """
        keys = self.keys
        lengths = (("XLEN", keys.lane(lane)) for lane in RARE)
        try:
            known, *held = self._wire.call(("HGETALL", keys.lanes), *lengths)
        except ServerRefused:
            return frozenset(RARE)
        used = {name.decode(errors="replace") for name in mapping(known)}
        return frozenset(lane for lane, n in zip(RARE, held, strict=True) if n or lane in used)

    def _submit(self, lanes: Iterable[str], *commands: Command, **options: Any) -> list[Any]:
        """Send commands that put tasks into `lanes`; supervisors hear of a lane's first use."""
        replies = self._wire.call(*commands, **options)
        if new := set(lanes) - self._told:
            self._told |= new
            with suppress(ServerRefused):  # that harms little: see `used_lanes`
                self._wire.call(*(("EXPIRE", self.keys.lane(lane), MONTH) for lane in new))
                self._tell(new & set(RARE))
        return replies

    def _tell(self, lanes: set[str]) -> None:
        keys = self.keys
        if lanes and any(self._wire.call(*(("HSET", keys.lanes, lane, 1) for lane in lanes))):
            wake = ("XADD", keys.control, "MAXLEN", "~", 1000, "*", "kind", "lane")
            lasting = ("EXPIRE", keys.control, WEEK), ("EXPIRE", keys.lanes, MONTH)
            self._wire.call(wake, *lasting)
