"""What a session sends beside its calls: functions, and large values."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from ..objects import mapped_files
from ..objects.functions import FunctionPickle, FunctionPickler
from ..objects.large_values import (
    DurableValues,
    ServerBackend,
    Tell,
    UrlBackend,
    ValueBackend,
    ValueReader,
    ValueStore,
    ValueWriter,
    addresses_of,
    copy_of,
    digest_of_values,
    refers,
    register,
)
from ..objects.mapped_files import SessionFolder, ValueAddress
from ..objects.pickling import dump, load
from ..objects.random_numbers import is_spawned, type_name
from ..objects.references import Ref
from ..objects.results import load_outcomes
from ..wire.messages import Event
from ..wire.store import Store
from .sender import Command

_REMEDY = (
    "Each call gets a copy of it in the state that it has here, so random numbers repeat from call"
    " to call. Use nbstreamq.rng() inside the function instead, with q.map(..., seed=42) if the"
    " numbers are to be the same each time; or give each call a generator of its own:"
    " zip(inputs, rng.spawn(n))."
)


class Repeats:
    """Notices random number generators that are sent.

    Parameters
    ----------
    warn
        Says a text once.
    """

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn
        #: Held, so that another one can't have the same id.
        self._last: list[Any] = []

    def captured(self, name: str, kind: str) -> None:
        """Say that the function `name` captures a generator."""
        self._warn(f"{name}() captures a random number generator ({kind}). {_REMEDY}")

    def argument(self, name: str, generators: list[Any]) -> None:
        """Look at the generators among the arguments of one call."""
        if self._were_sent(generators) or not all(map(is_spawned, generators)):
            self._say(f"An argument of {name}() is, or holds,", generators)

    def items(self, name: str, generators: list[Any], n_items: int) -> None:
        """Look at the generators among the items of a message; one for each item is all right."""
        if self._were_sent(generators) or len(generators) < n_items:
            self._say(f"Items of {name}() are, or hold,", generators)

    def _were_sent(self, generators: list[Any]) -> bool:
        last, self._last = self._last, generators
        return any(one is other for one in generators for other in last)

    def _say(self, what: str, generators: list[Any]) -> None:
        self._warn(f"{what} a random number generator ({type_name(generators[0])}). {_REMEDY}")


#: Seconds after which a function is sent again, before it expires: the server keeps it for a week.
LIFETIME = 86_400.0
#: Seconds in which a function that workers ask for is sent once; less than they wait for it.
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
    check
        Gets each function before it is sent.
    """

    def __init__(
        self,
        pickler: FunctionPickler,
        tell: Callable[[Callable[[Store], object], int], object],
        repeats: Repeats,
        check: Callable[[Callable[..., Any]], object],
    ) -> None:
        self._repeats, self._check = repeats, check
        self._pickler = pickler
        self._tell = tell
        self._sent: dict[str, float] = {}
        self._again: dict[str, float] = {}

    def pickle(self, fn: Callable[..., Any], *, durable: bool) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server; `durable`: to outlive us."""
        pickled = self._pickler.dump(fn, durable=durable)
        if pickled.generator:
            self._repeats.captured(pickled.name, pickled.generator)
        now = time.monotonic()
        if self._sent.get(pickled.digest, -LIFETIME) <= now - LIFETIME:
            self._check(fn)
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


class LargeValues:
    """Keeps a session's large values, and reads those that come back.

    Parameters
    ----------
    session
        Id of the session.
    ask, tell, send_soon
        `Session.ask`, `Session.tell` and `Sender.send_soon`.
    backend
        Returns where the values are kept; None: the server.

    Attributes
    ----------
    value_store
        Writes them, each once, and frees them with the last message that refers to them.
    pickler
        Of functions that capture some.
    """

    def __init__(
        self,
        session: str,
        ask: Callable[[Callable[[Store], Any]], Any],
        tell: Callable[[Callable[[Store], object], int], object],
        send_soon: Callable[[Command], object],
        backend: Callable[[Tell], ValueBackend] | None,
    ) -> None:
        def soon(do: Callable[[Store], object], _: int) -> None:
            send_soon(Command(do, lambda _: None))

        self._on_server = on_server = ServerBackend(ask, tell, soon, session)
        #: Files that have a copy on the server, for workers on other machines.
        self._copies = list[ValueAddress]()
        chosen = backend(soon) if backend else on_server
        self.value_store = ValueStore(session, chosen)
        self._durable = ValueWriter(session, DurableValues(ask, tell, soon, session))
        self.pickler = FunctionPickler(self.value_store, self._durable)
        self._reader = ValueReader(on_server, chosen if isinstance(chosen, UrlBackend) else None)
        register(session, self._reader)

    def put(self, value: Any) -> Ref:
        """Return a `Ref` to a value that is stored now."""
        data = dump(value, "the value of a Ref", self.value_store, min_external_bytes=0)
        size = sum(size for _, size in addresses_of(data))
        return Ref(digest_of_values(data), size, type(value).__name__, data, self._last)

    def _last(self, data: bytes) -> bytes:
        """Return a message that gives the same value for a week, even if this process ends."""
        return dump(load(data), "the value of a Ref", self._durable)

    def send_copy(self, address: ValueAddress) -> None:
        """Send a value that is in a file to the server, for workers on other machines."""
        for sent in [sent for sent in self._copies if not self.value_store.has(sent)]:
            self._copies.remove(sent)
            self._on_server.free(copy_of(sent))
        if address in self._copies or not self.value_store.has(address):
            return
        if (data := mapped_files.read(address)) is not None:
            self._copies.append(address)
            self._on_server.keep(copy_of(address)[0].partition(":")[2], memoryview(data))

    def close(self) -> None:
        """Free all values."""
        for address in self._copies:
            self._on_server.free(copy_of(address))
        self.value_store.close()

    def discard(self, event: Event) -> None:
        """Free the large results of calls that are over already."""
        if event.kind == "finished" and refers(event.body):
            load_outcomes(event.body)

    def forget(self) -> None:
        """Leave the files alone, in a forked process."""
        if isinstance(self.value_store.backend, SessionFolder):
            self.value_store.backend.forget()
