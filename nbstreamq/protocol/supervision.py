"""What supervisors ask of a queue: the part of `Store` that is theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..errors import SignatureError
from . import scripts
from .connection import Wire
from .keys import LANES, Keys
from .messages import Control
from .replies import block_ms, stream_entries
from .signing import Signer

__all__ = ["Supervision"]


class Supervision:
    """Signs of life, burials, due tasks, and orders."""

    keys: Keys
    _wire: Wire
    _signer: Signer

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the registered workers: id -> description."""
        flat = self._wire.call(("HGETALL", self.keys.workers))[0]
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): json.loads(text) for name, text in pairs}

    def heartbeat(self, node: str, silence: float, workers: dict[str, dict[str, Any]]) -> list[str]:
        """Say that `node` and its workers live; return the nodes silent for `silence` seconds."""
        descriptions = [part for w, d in workers.items() for part in (w, json.dumps(d))]
        keys = self.keys
        own_lanes = [keys.lane(f"@{worker}") for worker in workers]
        command = scripts.heartbeat(
            keys.nodes, keys.workers, own_lanes, node, silence, descriptions
        )
        return [name.decode() for name in self._wire.call(command)[0]]

    def forget_node(self, node: str) -> None:
        """Drop a node whose workers are all buried."""
        self._wire.call(("ZREM", self.keys.nodes, node))

    def bury(self, worker: str, lanes: Iterable[str]) -> bool:
        """Forget a dead worker; False if it still holds entries, which `held` then returns."""
        keys = self.keys
        lane_keys = [keys.lane(lane) for lane in lanes]
        command = scripts.bury(keys.workers, keys.lane(f"@{worker}"), lane_keys, worker)
        return bool(self._wire.call(command)[0])

    def promote(self, lanes: Iterable[str]) -> float | None:
        """Move due tasks into their lanes; return seconds until the next is due, None if none."""
        keys = self.keys
        waits = self._wire.call(*(scripts.promote(keys.delayed(n), keys.lane(n)) for n in lanes))
        due = [wait / 1000 for wait in waits if wait >= 0]
        return min(due) if due else None

    def await_control(self, after: bytes, block: float = 30.0) -> None:
        """Ask, for at most `block` seconds, for the control entries after `after`.

        `controls` returns them.
        """
        self._wire.send(("XREAD", "BLOCK", block_ms(block), "STREAMS", self.keys.control, after))

    def controls(self, after: bytes) -> tuple[bytes, list[Control]]:
        """Return the id of the last control entry, and those that carry an order."""
        entries = stream_entries(self._wire.receive())
        orders = []
        for _, _, fields in entries:
            # Unsigned entries are mere wake-ups, written by scripts.
            if b"sig" not in fields[::2]:
                continue
            # A forged one is passed over: stopping at it would keep off all later orders.
            with suppress(SignatureError):
                orders.append(Control.decode(fields, self._signer))
        return (entries[-1][1] if entries else after), orders

    def last_control(self) -> bytes:
        """Return the id of the newest control entry, where a new supervisor starts to listen."""
        newest = self._wire.call(("XREVRANGE", self.keys.control, "+", "-", "COUNT", 1))[0]
        return newest[0][0] if newest else b"0"

    def known_lanes(self) -> list[str]:
        """Return the lanes that the registered workers serve, and the usual ones."""
        served = {lane for d in self.workers().values() for lane in d.get("lanes", ())}
        return [*LANES, *sorted(served - set(LANES))]
