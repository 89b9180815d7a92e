"""What the server answers, in the forms used here.

Anybody who can write to the server may have written it, so nothing here trusts what it reads.
"""

from __future__ import annotations

import math
from typing import Any

from ..errors import ServerRefused, ServerUnreachable
from ..secret import hide_password
from .messages import Fields


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


#: Largest number that the server counts to.
MAX_COUNT = 2**63 - 1
#: Seconds since the epoch at the end of the year 9999, the last that `datetime` knows.
MAX_TIME = 253_402_300_799.0


def printable(text: str | bytes) -> str:
    """Return a text with an escape such as ``\\x1b`` for each character that can't be printed.

    Examples
    --------
    >>> print(printable(b"red: \\x1b[31m"))
    red: \\x1b[31m
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def count(text: str | bytes | None) -> int:
    """Return a number from 0 to `MAX_COUNT`; 0 for anything else."""
    if not text or not text.isdigit() or not text.isascii():
        return 0
    return int(text) if len(text) < 19 else MAX_COUNT


def seconds(text: bytes) -> float:
    """Return a time that `datetime` knows, in seconds since the epoch; 0 for anything else."""
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return min(max(found, 0.0), MAX_TIME) if math.isfinite(found) else 0.0


#: Answers of a server that will work again by itself: wait, as for a lost connection.
_TEMPORARY = ("LOADING", "READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY ")


class ReplyError(Exception):
    """A reply that is an error."""

    @property
    def is_about_scripts(self) -> bool:
        return str(self).startswith("NOSCRIPT")


def translate(error: Exception, address: str) -> Exception:
    import redis

    text = printable(str(error).rstrip(".")[:300])  # the server's owner wrote that
    where = f" ({hide_password(address)})" if address else ""
    login = redis.AuthenticationError | redis.exceptions.AuthorizationError
    if isinstance(error, login) or text.startswith(("NOAUTH", "WRONGPASS")):
        return ServerRefused(
            f"Login to the server{where} failed: {text}. Check user and password in the url."
        )
    is_refusal = isinstance(error, ReplyError | redis.ResponseError)
    if is_refusal and text.startswith("OOM"):
        return ServerRefused(
            f"The server{where} has reached its limit of memory or disk, and refuses calls: {text}."
            " Take or delete results that it keeps, or raise its limit; `nbstreamq status` says"
            " which one."
        )
    if is_refusal and not text.startswith(_TEMPORARY):
        return ServerRefused(f"The server{where} refused a command: {text}")
    return ServerUnreachable(
        f"The server{where} can't be reached: {text or type(error).__name__}."
        " Is it running, and is the url right?"
    )
