"""The lanes of a queue: what they hold, and which are in use."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from ..errors import ServerRefused
from . import scripts
from .connection import Command, Wire
from .keys import GROUP, LANES, MONTH, RARE, WEEK, Keys, base_lane, is_home_lane
from .replies import mapping

__all__ = ["Lanes"]


class Lanes:
    """The part of `Store` that knows lanes as such."""

    keys: Keys
    _wire: Wire
    #: The lanes that were submitted to through this connection.
    _told: set[str]

    def lanes(self, lanes: Iterable[str]) -> list[dict[str, Any]]:
        """Return for each of `lanes` its name, and its numbers of waiting and running entries.

        With those of its homes.
        """
        homes = self.home_lanes()
        found = []
        for lane in lanes:
            parts = [lane, *(home for home in homes if base_lane(home) == lane)]
            counts = [self._counts(part) for part in parts]
            found.append({"lane": lane, **{k: sum(c[k] for c in counts) for k in counts[0]}})
        return found

    def _counts(self, lane: str) -> dict[str, int]:
        running = sum(self._pending(self.keys.lane(lane))[:1])
        key = self.keys.lane(lane)
        n, delayed = self._wire.call(("XLEN", key), ("ZCARD", self.keys.delayed(lane)))
        # Not counted at the same moment: some may have been done in between.
        counts = {"waiting": max(0, n - running), "running": running, "delayed": delayed}
        return {**counts, "over": max(0, self._n_added(key) - n)}

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
        """Keep the queue, `lanes` and those of homes for another month; some is kept for ever."""
        keys = self.keys
        wanted = [keys.meta, keys.jobs, keys.setup, keys.lanes]
        for lane in (*lanes, *self.home_lanes()):
            wanted += keys.lane(lane), keys.delayed(lane)
        self._wire.call(*(("EXPIRE", key, MONTH, "XX") for key in wanted))

    def used_lanes(self) -> frozenset[str]:
        """Return those of `RARE` that somebody has submitted to, or that hold anything.

        Nobody is told of the latter, if the server forgot, or refused to note, the former. All of
        them, if it refuses to say. And the lanes of homes.
        """
        keys = self.keys
        lengths = (("XLEN", keys.lane(lane)) for lane in RARE)
        try:
            known, *held = self._wire.call(("HGETALL", keys.lanes), *lengths)
        except ServerRefused:
            return frozenset(RARE)
        used = {name.decode(errors="replace") for name in mapping(known)}
        rare = (lane for lane, n in zip(RARE, held, strict=True) if n or lane in used)
        return frozenset((*rare, *filter(is_home_lane, used)))

    def home_lanes(self) -> list[str]:
        """Return the lanes of homes that may hold anything; none if the server refuses to say."""
        try:
            known = mapping(self._wire.call(("HGETALL", self.keys.lanes))[0])
        except ServerRefused:
            return []
        return sorted(filter(is_home_lane, (name.decode(errors="replace") for name in known)))

    def use_lanes(self, lanes: Collection[str]) -> None:
        """Have supervisors know the lanes of homes, into which tasks were or will be put."""
        keys = self.keys
        tell = [("HSET", keys.lanes, lane, 1) for lane in lanes]
        # A retired one would be gone in a day, with what it holds.
        lasting = [("EXPIRE", keys.lane(lane), MONTH) for lane in lanes]
        if any(self._wire.call(*tell, *lasting)[: len(tell)]):
            self._wake_supervisors()

    def retire_lanes(self, lanes: Iterable[str]) -> None:
        """Forget those of `lanes`, which are homes', that hold nothing."""
        keys = self.keys
        retire = [scripts.retire(keys.lanes, keys.lane(n), keys.delayed(n), n) for n in lanes]
        if retire:
            self._wire.call(*retire)

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
            self._wake_supervisors()

    def _wake_supervisors(self) -> None:
        keys = self.keys
        wake = ("XADD", keys.control, "MAXLEN", "~", 1000, "*", "kind", "lane")
        lasting = ("EXPIRE", keys.control, WEEK), ("EXPIRE", keys.lanes, MONTH)
        self._wire.call(wake, *lasting)
