"""What was sent for some items of a job, kept to tell of it, or to run it again here."""

from __future__ import annotations

import reprlib
from typing import Any, NamedTuple

from ..objects.functions import FunctionPickle
from ..objects.payloads import load
from ..protocol.messages import Options, Task
from ..protocol.spans import ONE, Span

__all__ = ["Payload"]


class Payload(NamedTuple):
    """The pickled arguments of some items.

    Attributes
    ----------
    n, n_items
        The first item's index in the job, and how many there are.
    call
        How an item is called, as in `Task`.
    args
        The items, pickled.
    """

    n: int
    n_items: int
    call: str
    args: bytes

    def task(self, job: str, function: FunctionPickle, options: Options, span: Span = ()) -> Task:
        """Return the message that calls `function` on the items; or on `span` of them."""
        return Task(
            job=job,
            n=self.n,
            span=span or (ONE if self.n_items == 1 else (range(self.n_items),)),
            fn=function.digest,
            name=function.name,
            call=self.call,
            args=self.args,
            opts=options.encode(),
        )

    def arguments(self, item: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments of an item of the job."""
        loaded = load(self.args)
        if self.call == "calls":
            loaded = load(loaded[item - self.n])
        if self.call in ("apply", "calls"):
            args, kwargs = loaded
            return args, kwargs
        value = loaded[item - self.n]
        return (tuple(value) if self.call == "starmap" else (value,)), {}

    def describe(self, item: int, name: str) -> str:
        """Return the call of an item as people write it, abbreviated."""
        try:
            args, kwargs = self.arguments(item)
            parts = [*map(reprlib.repr, args), *(f"{k}={v!r:.40}" for k, v in kwargs.items())]
        except BaseException as error:  # noqa: BLE001 - foreign code, for a description only
            return f"(can't be shown: {error!r})"
        return parts[0] if self.call == "map" else f"{name}({', '.join(parts)})"
