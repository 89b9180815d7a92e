"""The functions of a session: pickled, and sent whenever the server may not hold them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from ..objects.functions import FunctionPickle, FunctionPickler
from ..protocol.store import Store
from .repeats import Repeats

__all__ = ["Functions"]

#: Seconds after which a function is sent again, lest it expire: less than its week on the server.
LIFETIME = 86_400.0
#: Seconds in which one that is wanted is sent again once; less than workers wait for it.
AGAIN = 1.0


class Functions:
    """Pickles functions, and sends each that is called.

    Parameters
    ----------
    pickler
        What pickles them.
    tell
        Has something done at the server, that sends so many bytes.
    repeats
        Is told of functions that capture random number generators.
    """

    def __init__(
        self,
        pickler: FunctionPickler,
        tell: Callable[[Callable[[Store], object], int], object],
        repeats: Repeats,
    ) -> None:
        self._repeats = repeats
        self._pickler = pickler
        self._tell = tell
        self._sent: dict[str, float] = {}
        self._again: dict[str, float] = {}

    def pickle(self, fn: Callable[..., Any], *, lasting: bool) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server; `lasting`: to outlive us."""
        pickled = self._pickler.dump(fn, lasting=lasting)
        if pickled.generator:
            self._repeats.captured(pickled.name, pickled.generator)
        now = time.monotonic()
        if self._sent.get(pickled.digest, -LIFETIME) <= now - LIFETIME:
            self._sent[pickled.digest] = now  # before: if it is refused, it is sent again
            put = functools.partial(Store.put_function, digest=pickled.digest, data=pickled.data)
            self._tell(put, len(pickled.data))
        return pickled

    def send_again(self, pickled: FunctionPickle) -> None:
        """Send a function that the server has lost; several workers may ask for it at once."""
        now = time.monotonic()
        if now > self._again.get(pickled.digest, 0.0) + AGAIN:
            self._again[pickled.digest] = now
            put = functools.partial(Store.put_function, digest=pickled.digest, data=pickled.data)
            self._tell(put, len(pickled.data))

    def forget_sent(self) -> None:
        """Send each again when it is called next: the server may have lost it."""
        self._sent.clear()

    def forget(self) -> None:
        """Pickle and send each again: a value that it refers to is gone."""
        self._sent.clear()
        self._pickler.forget()
