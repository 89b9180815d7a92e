"""A thread that watches a long task: it sends its output, and gives waiting tasks back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..errors import ServerRefused, ServerUnreachable
from ..locks import Event
from ..wire import messages
from ..wire.messages import Task
from ..wire.store import Store
from ..worker_context import WorkerContext
from .coroutines import Coroutines
from .execution import Execution
from .output import Output

logger = logging.getLogger(__name__)

#: Seconds between two looks. Shorter shows output sooner; longer wakes the process less often.
PULSE = 0.05
#: Looks that find nothing running before it sleeps until it is woken, which takes time.
PATIENCE = 20


class TaskMonitor:
    """Looks at a busy worker every `PULSE` seconds.

    Parameters
    ----------
    execution, coroutines, output
        Which tasks run, and what they print.
    store
        A connection of its own.
    free
        Gives back what waits behind the running task, and settles what is over.
    set_waits
        Is told at each look whether another worker is to stand in: the running task waits for calls
        that it has submitted, or plain calls wait for coroutines.

    Attributes
    ----------
    n_batches
        How many batches of tasks have begun; the worker counts them here.
    sleeps
        Whether it must be woken when one begins.
    """

    def __init__(
        self,
        execution: Execution,
        coroutines: Coroutines,
        output: Output,
        store: Store,
        *,
        free: Callable[[Store], None],
        set_waits: Callable[[bool], None],
    ) -> None:
        self._execution = execution
        self._coroutines = coroutines
        self._output = output
        self._free, self._set_waits = free, set_waits
        self._computed = 0.0  #: processor seconds of this process at the last look
        self._store = store
        self._busy, self.sleeps = Event(), True
        self.n_batches = 0
        #: The item that ran at the last look, and the last one that the client was told of.
        self._seen: tuple[Task, int] | None = None
        self._announced: tuple[Task, int] | None = None
        self._unsent: list[messages.Event] = []

    def start(self) -> None:
        threading.Thread(target=self._run, name="nbstreamq-monitor", daemon=True).start()

    def wake(self) -> None:
        """Start to look, because a task runs."""
        self.sleeps = False  # Else each task would wake it until it runs.
        self._busy.set()

    def _run(self) -> None:
        idle = n_batches = 0
        while True:
            time.sleep(PULSE)
            try:
                self._busy.wait()
                self.sleeps = False
                last, n_batches = n_batches, self.n_batches
                is_busy = self._execution.running or self._coroutines.chunks
                idle = 0 if is_busy or n_batches != last else idle + 1
                if idle > PATIENCE:
                    self._busy.clear()
                    self.sleeps = True
                    if self.n_batches != n_batches:  # A task began before the line above.
                        self._busy.set()
                self._beat()
            except (ServerUnreachable, ServerRefused):
                continue  # Events that are unsent go when the server is back or has memory.
            except BaseException:  # No fault of ours may end the thread.
                self._store.close()  # A reply may be left in it.
                logger.exception("the task monitor goes on after a fault")

    def _has_open_calls(self) -> bool:
        """Return whether code runs for a while, and its task waits for calls of its own."""
        running, step = self._execution.running[-1:], self._coroutines.step
        what, began = (running[0][0].task, running[0][1]) if running else step
        if what is None or time.monotonic() - began < PULSE:
            return False
        return any(outer is what for outer, _ in WorkerContext.open_calls())

    def _beat(self) -> None:
        running = self._execution.running[-1:]
        before, self._computed = self._computed, time.process_time()
        is_idle = self._computed - before < PULSE / 2
        holds_up = self._coroutines.hold_up_plain_calls
        self._set_waits(holds_up or (is_idle and self._has_open_calls()))
        if self._coroutines.chunks:
            self._beat_of_coroutines()
        if not running:
            return
        (delivery, began), item = running[0], self._output.item
        task = delivery.task
        lasts, self._seen = (task, item) == self._seen, (task, item)
        if time.monotonic() - began < PULSE:
            return
        self._execution.watch()
        self._free(self._store)
        with self._output.reporting():
            if lasts and (task, item) != self._announced:
                self._unsent.append(self._execution.started(task, item))
                self._announced = task, item
            self._send_reports()

    def _beat_of_coroutines(self) -> None:
        item, began = self._coroutines.step
        blocks = item is not None and time.monotonic() - began > PULSE
        if blocks:  # Perhaps for long.
            self._free(self._store)
        with self._output.reporting():
            self._unsent += self._coroutines.announce()
            self._send_reports()

    def _send_reports(self) -> None:
        self._unsent += self._execution.reports(self._output.collect())
        if self._unsent:
            self._store.publish(self._unsent)
            self._unsent = []
