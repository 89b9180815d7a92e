"""The functions of a session: pickled, and sent whenever the server may not hold them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..objects.functions import FunctionPickle, FunctionPickler
from .sender import Order

__all__ = ["Functions"]

#: Seconds after which a function is sent again, lest it expire: less than its week on the server.
LIFETIME = 86_400.0


class Functions:
    """Pickles functions; `send` sends an order, `on_refusal` is told if the server takes none."""

    def __init__(
        self, send: Callable[[Order], object], on_refusal: Callable[[BaseException], None]
    ) -> None:
        self._send = send
        self._on_refusal = on_refusal
        self._pickler = FunctionPickler()
        self._sent: dict[str, float] = {}

    def pickle(self, fn: Callable[..., Any]) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server."""
        pickled = self._pickler.dump(fn)
        now = time.monotonic()
        if self._sent.get(pickled.digest, -LIFETIME) <= now - LIFETIME:
            self._sent[pickled.digest] = now  # before: if it is refused, it is sent again
            put = lambda store: store.put_function(pickled.digest, pickled.data)  # noqa: E731
            self._send(Order(put, self._on_refusal, len(pickled.data)))
        return pickled

    def forget_sent(self) -> None:
        """Send each again when it is called next: the server may have lost it."""
        self._sent.clear()
