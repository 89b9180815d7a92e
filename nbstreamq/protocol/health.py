"""How the server is set up, and what of it endangers the tasks on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ..errors import ServerRefused
from .connection import Wire
from .keys import Keys
from .unsigned import count, printable

__all__ = ["Health", "ServerFacts"]

#: Part of the allowed memory above which it is said that it runs out.
NEARLY_FULL = 0.8
#: Exchanges of which the quickest counts, as the time that the network takes.
N_PINGS = 5
#: The oldest versions that have all commands that are used.
_OLDEST = {"Redis": 7, "Valkey": 8}


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server says of itself; None where it does not tell.

    Attributes
    ----------
    product, version
        ``Redis`` or ``Valkey``.
    used_bytes, limit_bytes
        Memory in use, and how much of it is allowed; 0: no limit.
    policy
        What it does when that is used up.
    saves
        Whether it writes its data to a disk.
    """

    product: str = "Redis"
    version: str | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None
    policy: str | None = None
    saves: bool | None = None

    def problems(self) -> list[str]:
        """Return what endangers tasks, in words, and what to do about it."""
        found = []
        major = (self.version or "").partition(".")[0]
        if 0 < count(major) < _OLDEST[self.product]:
            found.append(
                f"{self.product} {self.version} is too old: nbstreamq needs Redis 7.0 or Valkey 8.0"
                " at least."
            )
        if self.limit_bytes and self.policy not in (None, "noeviction"):
            found.append(
                f"the server drops data when its memory is full: maxmemory-policy is {self.policy}."
                " Tasks and results would be lost without a word; set it to noeviction."
            )
        if self.saves is False:
            found.append(
                "the server saves nothing to disk: when it ends, all tasks and results are lost."
                " Set `appendonly yes` in its configuration."
            )
        if self.limit_bytes and (self.used_bytes or 0) > NEARLY_FULL * self.limit_bytes:
            used, limit = (self.used_bytes or 0) / 2**20, self.limit_bytes / 2**20
            found.append(
                f"the server's memory is {used / limit:.0%} full: {used:,.0f} of {limit:,.0f} MiB."
                " When it is full, calls are refused; raise maxmemory, or submit less at a time."
            )
        return found


class Health:
    """Questions about the server; the part of `Store` for who looks after it."""

    keys: Keys
    _wire: Wire

    def server_facts(self) -> ServerFacts:
        """Return what the server tells of itself; managed ones may not tell all."""
        try:
            text = self._wire.call(("INFO",))[0]
        except ServerRefused:
            return ServerFacts()
        lines = (line.partition(":") for line in _text(text).splitlines())
        info = {name: value.strip() for name, colon, value in lines if colon}
        is_valkey = info.get("server_name") == "valkey"
        return ServerFacts(
            product="Valkey" if is_valkey else "Redis",
            version=_shown(info.get("valkey_version" if is_valkey else "redis_version")),
            used_bytes=_number(info.get("used_memory")),
            limit_bytes=_number(info.get("maxmemory")),
            policy=_shown(info.get("maxmemory_policy")),
            saves=self._saves(info.get("aof_enabled")),
        )

    def _saves(self, aof_enabled: str | None) -> bool | None:
        """Return whether there is an AOF, or there are save points, which only CONFIG tells."""
        if aof_enabled == "1":
            return True
        try:
            reply = self._wire.call(("CONFIG", "GET", "save"))[0]
        except ServerRefused:
            return None
        values = list(reply.values()) if isinstance(reply, dict) else reply[1:2]
        if not values:
            return None
        return bool(_text(values[0])) or (None if aof_enabled is None else False)

    def ping(self) -> float:
        """Return the seconds that an exchange takes, at best."""
        times = []
        for _ in range(N_PINGS):
            began = time.perf_counter()
            self._wire.call(("PING",))
            times.append(time.perf_counter() - began)
        return min(times)

    def clock_skew(self) -> float:
        """Return by how many seconds the server's clock is ahead of ours."""
        before = time.time()
        seconds, micros = self._wire.call(("TIME",))[0]
        return int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2


def _text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def _shown(text: str | None) -> str | None:
    return None if text is None else printable(text)


def _number(text: str | None) -> int | None:
    return count(text) if text and text.isdigit() else None
