"""Where a session's large arguments, captured values and Refs go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..objects.blobs import Blobs, Keeper, Place, digest_of, handles_of, refers, register
from ..objects.functions import FunctionPickler
from ..objects.outcomes import load_outcomes
from ..objects.payloads import dump, load
from ..objects.places import Everywhere, ServerPlace, Tell, UrlPlace
from ..objects.references import Ref
from ..objects.segments import SessionFolder
from ..protocol.messages import Event
from ..protocol.store import Store
from .sender import Order, Sender

__all__ = ["LargeValues"]


class _Session(Protocol):
    """The part of `Session` that is needed here."""

    id: str

    def ask(self, question: Callable[[Store], Any]) -> Any: ...
    def tell(self, do: Callable[[Store], object], size: int) -> None: ...


class LargeValues:
    """Keeps a session's large values, and reads those that come back.

    Attributes
    ----------
    keeper
        Writes them, each once, and frees them with the last message that refers to them.
    pickler
        Of functions that capture some.
    """

    def __init__(
        self, session: _Session, sender: Sender, place: Callable[[Tell], Place] | None
    ) -> None:
        def soon(do: Callable[[Store], object], _: int) -> None:
            sender.put_soon(Order(do, lambda _: None))

        on_server = ServerPlace(session.ask, session.tell, soon, session.id)
        chosen = place(soon) if place else on_server
        self.keeper = Keeper(session.id, chosen)
        self.pickler = FunctionPickler(self.keeper)
        self._lasting = Blobs(session.id, on_server)
        self._reader = Everywhere(on_server, chosen if isinstance(chosen, UrlPlace) else None)
        register(session.id, self._reader)

    def put(self, value: Any) -> Ref:
        """Return a `Ref` to a value that is stored now."""
        data = dump(value, "the value of a Ref", self.keeper, large=0)
        size = sum(size for _, size in handles_of(data))
        return Ref(digest_of(data), size, type(value).__name__, data, self._last)

    def _last(self, data: bytes) -> bytes:
        """Return a message that gives the same value for a week, whoever lives."""
        return dump(load(data), "the value of a Ref", self._lasting)

    def discard(self, event: Event) -> None:
        """Free the large results of calls that nobody waits for any more."""
        if event.kind == "finished" and refers(event.body):
            load_outcomes(event.body)

    def forget(self) -> None:
        """Leave the files alone, in a forked process."""
        if isinstance(self.keeper.place, SessionFolder):
            self.keeper.place.forget()
