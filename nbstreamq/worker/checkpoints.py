"""The states that running tasks store on the server, for their next attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ..errors import ServerRefused, ServerUnreachable
from ..objects.pickling import dump, load
from ..wire.connection import RECONNECT
from ..wire.item_ranges import items
from ..wire.messages import Task
from ..wire.settlement import Settlement
from ..wire.store import Store


def over(settlements: Iterable[Settlement]) -> set[str]:
    """Return the ids of the tasks that have ended by some settlements."""
    return {
        f"{event.job}-{event.n + item}"
        for settlement in settlements
        for event in settlement.events
        if event.kind in ("finished", "cancelled")
        for item in items(event.span)
    }


class Checkpoints:
    """Stores states of this worker's tasks, and drops them when the tasks are over.

    Parameters
    ----------
    store
        A connection of its own: any thread of a task may use it.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        #: Ids of tasks that have a state on the server, as far as this worker knows.
        self.known = set[str]()

    def put(self, task: Task, item: int, state: object) -> None:
        """Store a state; it replaces the last one of the item."""
        data = dump(state, f"the state that {task.name}() gave to checkpoint()", maps=False)
        name = task.id_of(item)
        self._ask(lambda store: store.put_checkpoint(task.job, name, data))
        self.known.add(name)

    def get(self, task: Task, item: int) -> tuple[Any] | None:
        """Return the last state of the item, in a tuple; None if there is none."""
        name = task.id_of(item)
        data = self._ask(lambda store: store.get_checkpoint(task.job, name))
        if data is None:
            return None
        self.known.add(name)
        return (load(data),)

    def drop(self, settled: Iterable[Settlement]) -> None:
        """Drop the states of tasks that have ended. What is left over expires."""
        ended = over(settled) & self.known
        with suppress(ServerUnreachable, ServerRefused):
            self._ask_once(lambda store: store.drop_checkpoints(ended))
        self.known -= ended

    def forked(self) -> None:
        """Close the connection, which belongs to the process that this one was forked from."""
        self._store.close()

    def _ask(self, question: Callable[[Store], Any]) -> Any:
        while True:
            try:
                return self._ask_once(question)
            except ServerUnreachable:
                time.sleep(RECONNECT)

    def _ask_once(self, question: Callable[[Store], Any]) -> Any:
        with self._lock:
            try:
                return question(self._store)
            except BaseException:
                self._store.close()  # A task that is stopped may leave a reply in it.
                raise
