"""Times and replies, in the forms that the server uses."""

from __future__ import annotations

from typing import Any

from .messages import Fields

__all__ = ["block_ms", "mapping", "stream_entries"]


def block_ms(seconds: float) -> int:
    """Return `seconds` as BLOCK takes them; 0 would mean for ever."""
    return max(1, int(seconds * 1000))


def stream_entries(reply: Any) -> list[tuple[bytes, bytes, Fields]]:
    """Return (stream, id, fields) for each entry of an XREAD reply, RESP2 or RESP3."""
    streams = reply.items() if isinstance(reply, dict) else reply or ()
    return [(key, entry_id, fields) for key, found in streams for entry_id, fields in found]


def mapping(reply: Any) -> dict[bytes, Any]:
    """Return what an HGETALL or XINFO reply maps to what, RESP2 or RESP3."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
