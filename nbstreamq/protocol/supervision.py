"""What supervisors ask of a queue: the part of `Store` that is theirs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..arguments import check_queue_name
from ..errors import SignatureError
from . import scripts
from .dead import Dead
from .health import Health
from .keys import LANES, PREFIX, WEEK, tail_of
from .lanes import Lanes
from .messages import Control, Task
from .replies import block_ms, mapping, stream_entries

__all__ = ["Supervision"]


#: What a worker's description may hold.
_DESCRIPTION: dict[str, Any] = {
    "node": str,
    "host": str,
    "supervisor": int,
    "pid": int,
    "python": str,
    "state": str,
    "lanes": list,
    "homes": list,
    "memory": int,
    "cpu": float,
}
#: Process ids are below; os.kill takes no others.
_PID_LIMIT = 2**31
#: A clock that nobody sets, and that goes on while the machine sleeps; macOS's monotonic one does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
#: Longest text in a description, and largest number: both are shown.
_MAX_TEXT, _MAX_NUMBER = 1000, 2**53


class Supervision(Dead, Health, Lanes):
    """Signs of life, burials, due tasks, and orders."""

    #: When this connection sent its last heartbeat, by `_CLOCK`.
    _last_beat: float | None

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the registered workers: id -> description.

        Descriptions carry no signature, since nothing of them is ever run; what is none is dropped.
        """
        described = mapping(self._wire.call(("HGETALL", self.keys.workers))[0])
        found = {}
        for name, text in described.items():
            try:
                found[_text(name.decode())] = _description(text)
            except (ValueError, RecursionError):
                if self._wire.call(("HDEL", self.keys.workers, name))[0]:
                    problem = "A worker's description could not be read."
                    self._set_aside(
                        "worker", self.keys.workers, [b"value", name + b" " + text], problem
                    )
        return found

    def join(self, worker: str, description: dict[str, Any]) -> list[Task]:
        """Register a worker, and return the set-up tasks that it must run first."""
        keys = self.keys
        own = keys.lane(f"@{worker}")
        entries = self._wire.call(
            scripts.join(keys.workers, keys.setup, own, worker, json.dumps(description))
        )[0]
        tasks = []
        for entry_id, fields in entries:
            try:
                task = Task.decode(fields, self._signer, b"setup")
                self._check_new(fields[-1], keys.setup, entry_id)
                tasks.append(task)
            except SignatureError as error:
                self._refuse("setup", keys.setup, entry_id, error)
        return tasks

    def heartbeat(
        self, node: str, workers: dict[str, dict[str, Any]]
    ) -> tuple[float, dict[str, float]]:
        """Say that `node` and its workers live.

        Returns
        -------
        tuple
            By how many seconds the server's clock went back since this connection's last heartbeat,
            0 if it did not: see `hasten`; and the last heartbeat of each node, by that clock.
        """
        descriptions = [part for w, d in workers.items() for part in (w, json.dumps(d))]
        keys = self.keys
        own_lanes = [keys.lane(f"@{worker}") for worker in workers]
        before, self._last_beat = self._last_beat, time.clock_gettime(_CLOCK)
        elapsed = 0.0 if before is None else self._last_beat - before
        command = scripts.heartbeat(
            keys.nodes, keys.workers, own_lanes, node, elapsed, descriptions
        )
        step, *flat = self._wire.call(command)[0]
        beats = {}
        for name, beat in mapping(flat).items():
            try:
                beats[name.decode()] = float(beat)
            except ValueError:  # not UTF-8
                self._wire.call(("ZREM", keys.nodes, name))
        return int(step) / 1000, beats

    def hasten(self, seconds: float, lanes: Iterable[str]) -> None:
        """Make delayed tasks due earlier by as much as the server's clock went back."""
        delayed = [self.keys.delayed(lane) for lane in lanes]
        self._wire.call(scripts.hasten(self.keys.control, delayed, seconds))

    def forget_node(self, node: str) -> None:
        """Drop a node whose workers are all buried."""
        self._wire.call(("ZREM", self.keys.nodes, node), ("HDEL", self.keys.troubles, node))

    def tell_trouble(self, node: str, text: str) -> None:
        """Say what is wrong with the workers of `node`; empty: nothing is."""
        key = self.keys.troubles
        if not text:
            self._wire.call(("HDEL", key, node))
            return
        sealed = self._signer.seal(b"trouble", node.encode(), text.encode())
        self._wire.call(("HSET", key, node, sealed), ("EXPIRE", key, WEEK))

    def troubles(self) -> list[str]:
        """Return what supervisors say is wrong with their workers; unsigned words are left out."""
        said = mapping(self._wire.call(("HGETALL", self.keys.troubles))[0])
        found = []
        for node, sealed in sorted(said.items()):
            with suppress(SignatureError):
                found.append(self._signer.unseal(b"trouble", node, sealed).decode())
        return found

    def bury(self, worker: str, lanes: Iterable[str]) -> bool:
        """Forget a dead worker; False if it still holds entries, which `held` then returns."""
        keys = self.keys
        lane_keys = [keys.lane(lane) for lane in lanes]
        command = scripts.bury(keys.workers, keys.lane(f"@{worker}"), lane_keys, worker)
        return bool(self._wire.call(command)[0])

    def has_tasks(self, lanes: Iterable[str]) -> bool:
        """Return whether anything waits, runs or is delayed in `lanes`."""
        keys = self.keys
        asked = [(("XLEN", keys.lane(n)), ("ZCARD", keys.delayed(n))) for n in lanes]
        return any(self._wire.call(*(command for pair in asked for command in pair)))

    def promote(self, lanes: Iterable[str]) -> float | None:
        """Move due tasks into their lanes; return seconds until the next is due, None if none."""
        keys = self.keys
        moves = []
        for lane in lanes:
            delayed = keys.delayed(lane)
            source = tail_of(delayed)
            moves.append(scripts.promote(delayed, keys.lane(lane), keys.dead, keys.refused, source))
        waits = self._wire.call(*moves)
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
        for _, entry_id, fields in entries:
            # Unsigned entries are mere wake-ups.
            if b"sig" not in fields[::2]:
                continue
            try:
                order = Control.decode(fields, self._signer)
                self._check_new(fields[-1], self.keys.control, entry_id)
                orders.append(order)
            except SignatureError as error:
                self._refuse("control", self.keys.control, entry_id, error)
        return (entries[-1][1] if entries else after), orders

    def last_control(self) -> bytes:
        """Return the id of the newest control entry, where a new supervisor starts to listen."""
        newest = self._wire.call(("XREVRANGE", self.keys.control, "+", "-", "COUNT", 1))[0]
        return newest[0][0] if newest else b"0"

    def queue_names(self, having: str = "meta") -> list[str]:
        """Return the names of the queues on the server that have a key of this kind: all.

        Of a cluster, only those on this queue's node.
        """
        start, end = f"{PREFIX}:{{", f"}}:{having}"
        found = self._scan(f"{start}*{end}")
        names = (key.decode(errors="replace")[len(start) : -len(end)] for key in found)
        return sorted(filter(_is_queue_name, names))  # others may have written any key

    def delete_queue(self) -> int:
        """Delete all keys of the queue; return how many there were."""
        start = self.keys.meta.removesuffix("meta")
        literal = re.sub(r"([][*?^\\-])", r"\\\1", start)
        found = self._scan(f"{literal}*")
        return sum(self._wire.call(("UNLINK", *found))) if found else 0

    def _scan(self, pattern: str) -> list[bytes]:
        cursor, found = b"0", set[bytes]()
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            cursor, keys = self._wire.call(scan)[0]
            found.update(keys)
            if cursor == b"0":
                return sorted(found)

    def known_lanes(self) -> list[str]:
        """Return the usual lanes, those that registered workers serve, and those of homes."""
        served = {lane for d in self.workers().values() for lane in d.get("lanes", ())}
        return [*LANES, *sorted(served - set(LANES)), *self.home_lanes()]


def _is_queue_name(text: str) -> bool:
    try:
        check_queue_name("name", text)
    except ValueError:
        return False
    return True


def _is_sound(value: Any, name: str) -> bool:
    """Return whether a part of a description can be used, and shown."""
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT and value.isprintable()
    if isinstance(value, list):
        return all(isinstance(one, str) and _is_sound(one, name) for one in value)
    limit = _PID_LIMIT if name in ("pid", "supervisor") else _MAX_NUMBER
    return bool(0 <= value < limit)  # and no NaN


def _text(text: str) -> str:
    """Return a worker's name; ValueError if none has such a name."""
    if not _is_sound(text, "name"):
        raise ValueError("not a name")
    return text


def _description(text: bytes) -> dict[str, Any]:
    """Return a worker's description; ValueError if it is none, or holds what nobody can use."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a description")  # noqa: TRY004 - of what was sent, not of our own
    for name, kind in _DESCRIPTION.items():
        value = found.get(name, kind())
        if type(value) is not kind or not _is_sound(value, name):
            raise ValueError(f"not a description: {name}")
    json.dumps(found, ensure_ascii=False).encode()  # ValueError: a half of a surrogate pair
    return found
