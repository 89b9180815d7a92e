"""Which other supervisors fell silent."""

from __future__ import annotations

__all__ = ["OtherNodes"]


class OtherNodes:
    """Judges the other supervisors of a queue by their heartbeats.

    A node is silent if its last heartbeat stayed the same for a while, by this process's own clock:
    the server's clock may be set back or forward at any time.

    Parameters
    ----------
    silence
        Seconds after which a node counts as silent.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._last_look = 0.0
        #: Node -> its last heartbeat, by the server's clock, and since when it is that, by ours.
        self._since: dict[str, tuple[float, float]] = {}

    def silent(self, heartbeats: dict[str, float], now: float) -> list[str]:
        """Return the silent nodes among `heartbeats`, at `now` by the monotonic clock."""
        if now - self._last_look > self._silence / 2:
            # The server was away, or we were: then the others had no chance to say anything.
            self._since = {}
        self._last_look = now
        since = {}
        for node, beat in heartbeats.items():
            known = self._since.get(node)
            since[node] = known if known and known[0] == beat else (beat, now)
        self._since = since
        return [node for node, (_, at) in since.items() if now - at > self._silence]
