"""Why a call may wait for ever."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["Warner", "reason_for_delay"]


def reason_for_delay(workers: dict[str, dict[str, Any]], queue: str, lane: str) -> str:
    """Return why nobody runs what waits in `lane`, and what to do; empty if somebody may.

    Parameters
    ----------
    workers
        Id -> description of the registered workers of `queue`.
    """
    if not workers:
        return (
            f"queue {queue!r} has no workers. Start some: q.run(4) here, or"
            " `python -m nbstreamq worker URL` anywhere."
        )
    if not any(lane in description.get("lanes", ()) for description in workers.values()):
        return (
            f"no worker serves its lane {lane!r}. Start one:"
            f" python -m nbstreamq worker URL --lane {lane}"
        )
    return ""


class Warner:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=3)
