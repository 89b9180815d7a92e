"""One client's connection to a queue: what `TaskQueue` and all its views share.

::

    submit ──> Sender ──> server ──> Listener ──> Ledger ──> futures, jobs
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ..current import host
from ..errors import NbstreamqError, QueueClosed, ServerUnreachable
from ..launch.local import LocalWorkers
from ..objects.blobs import Place
from ..objects.functions import FunctionPickle
from ..objects.places import Tell
from ..protocol.keys import is_named
from ..protocol.messages import Event
from ..protocol.spans import EVERYTHING
from ..protocol.store import Store
from . import lifetime
from .delay import Warner, reason_for_delay
from .echo import echo
from .everywhere import everywhere_order
from .large import LargeValues
from .ledger import Ledger
from .listener import Listener
from .memory import Memory
from .sender import Entry, Order, Sender

__all__ = ["Session"]

#: Seconds of waiting for a result after which it is asked whether there is anybody to run it.
PATIENCE = 3.0
#: Seconds after which the interpreter's exit no longer waits for a lost server: time for a warning.
LAST_PATIENCE = 2 * PATIENCE
#: Seconds in which a cancellation, or the end of a session, tries to reach the server.
FAREWELL = 2.0
#: Seconds after which a function is sent again, lest it expire: less than its week on the server.
FUNCTION_LIFETIME = 86_400.0
_KIND_CLOSE, _KIND_LOOK = "close", "look"


class Session:
    """A client of a queue, until it is closed.

    Parameters
    ----------
    store
        The queue.
    workers
        The local workers, if there may be any.
    n_workers
        How many are started at the first submit; None: none.
    revive
        Brings the server back; None if that is not in our hands.
    place
        Opens the place of large values; None: they go to the server.
    """

    def __init__(
        self,
        store: Store,
        workers: LocalWorkers,
        n_workers: int | None,
        revive: Callable[[], object] | None,
        *,
        session: str,
        place: Callable[[Tell], Place] | None,
    ) -> None:
        self.id = session
        self.workers = workers
        self.trouble: ServerUnreachable | None = None
        self._n_workers = n_workers
        self._revive = revive
        self._store = store
        self.encode_task = store.encode_task
        self._store_lock = threading.Lock()
        self._lock = threading.Lock()
        self._ledgers_lock = threading.RLock()
        #: Of all futures: held for moments only.
        self.condition = threading.Condition(self._ledgers_lock)
        self._numbers = itertools.count(1)
        self._ledgers: dict[str, Ledger] = {}
        self._sent: dict[str, float] = {}
        self.warn = Warner().say
        self._state, self._has_ended = "open", threading.Event()
        self._memory = Memory(session, store.keys.queue)
        self._sender = Sender(store.clone(), self.id, self._on_trouble, self._memory)
        self._put_off: list[Ledger] = []
        self._listener = Listener(
            store.clone(), self.id, self._deliver, self._on_delivered, self._on_trouble
        )
        self.large = LargeValues(self, self._sender, place)
        lifetime.follow(self)

    # -- submitting ----------------------------------------------------------------------------

    def open_ledger(self, fn: Callable[..., Any], name: str, lane: str) -> Ledger:
        """Return the ledger of a new job."""
        ledger = Ledger(f"{self.id}.{next(self._numbers)}", name, fn, lane, self._ledgers_lock)
        self.register(ledger)
        return ledger

    def register(self, ledger: Ledger, after: bytes | None = None) -> None:
        """Have `ledger` told of its job's events; of a named job's, behind the entry `after`."""
        ledger.wake = self._listener.look_again
        with self._lock:
            self.check_open()
            self._ledgers[ledger.job] = ledger
        if after is not None:
            self._listener.follow(ledger.job, after)
            # The request that is under way knows nothing of it: an event ends that.
            look = Event(kind=_KIND_LOOK, job=self.id, n=0, worker="")
            self.send(Order(lambda store: store.publish([look]), lambda _: None))

    def ledger(self, job: str) -> Ledger | None:
        """Return the ledger of a job that is not over."""
        return self._ledgers.get(job)

    def pickle_function(self, fn: Callable[..., Any], *, lasting: bool = False) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server; `lasting`: to outlive us."""
        self.check_open()
        self.start_workers()
        pickled = self.large.pickler.dump(fn, lasting=lasting)
        now = time.monotonic()
        if self._sent.get(pickled.digest, -FUNCTION_LIFETIME) <= now - FUNCTION_LIFETIME:
            put = functools.partial(Store.put_function, digest=pickled.digest, data=pickled.data)
            self.tell(put, len(pickled.data), alone=not self._ledgers)
            self._sent[pickled.digest] = now
        return pickled

    def send(self, item: Entry | Order) -> None:
        """Send something to the server, in its turn."""
        self._sender.put(item, alone=len(self._ledgers) == 1)

    def stop_growing(self, ledger: Ledger) -> None:
        """Say that no more calls of the job come."""
        ledger.stop_growing()
        self._retire(ledger)

    def tell(self, do: Callable[[Store], object], size: int, *, alone: bool = False) -> None:
        """Have something done at the server, in its turn, that sends `size` bytes."""
        self._sender.put(Order(do, self._on_refusal, size), alone=alone)

    def everywhere(self, ledger: Ledger, function: FunctionPickle, args: bytes) -> None:
        """Send a call to every worker, and to those that join later."""
        ledger.growing = True
        end = functools.partial(self.stop_growing, ledger)
        n_workers = lambda: self.workers.n_workers  # noqa: E731 - as it will be then
        self._sender.put(everywhere_order(ledger, function, args, n_workers, end))

    def cancel(self, ledger: Ledger, chosen: Iterable[int]) -> None:
        """Cancel items: here at once, on the workers soon."""
        self._check_owner()
        if self._state != "closed":
            self._cancel(ledger, chosen)

    def _cancel(self, ledger: Ledger, chosen: Iterable[int]) -> None:
        if newly := ledger.cancel(chosen):
            span = ledger.cancelled()
            said = threading.Event()

            def carry_out(store: Store) -> None:
                store.cancel(ledger.job, span, newly)
                said.set()

            self._sender.put(Order(carry_out, self._on_refusal), alone=True)
            # Who has cancelled a call that waits may rely on it that it never begins.
            said.wait(FAREWELL)
        self._retire(ledger)

    def start_workers(self) -> None:
        """Start the local workers that a queue starts by itself, if it has not yet."""
        n, self._n_workers = self._n_workers, None
        if n:
            self.workers.scale(n)

    def scale(self, n_workers: int) -> None:
        """There shall be `n_workers` local workers."""
        self.check_open()
        self._n_workers = None
        self.workers.scale(n_workers)

    # -- waiting -------------------------------------------------------------------------------

    def wait_until(
        self, ledger: Ledger, is_reached: Callable[[], bool], timeout: float | None
    ) -> bool:
        """Wait until `is_reached`, which an event of `ledger` brings about; return whether it is.

        In a task, other tasks are run meanwhile. Says in a warning what it waits for in vain.

        Parameters
        ----------
        timeout
            Seconds to wait in all; None waits for ever.
        """
        self._check_owner()
        deadline = None if timeout is None else time.monotonic() + timeout
        if (worker := host()) is not None:
            worker.help_until(functools.partial(ledger.wait, is_reached), timeout, ledger.lane)
        while True:
            left = PATIENCE if deadline is None else max(0.0, deadline - time.monotonic())
            soon = len(ledger) == len(self._ledgers) == 1
            if not self._listener.lead(is_reached, min(left, PATIENCE), soon=soon):
                ledger.wait(is_reached, min(left, PATIENCE))
            if is_reached():
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._explain_delay(ledger)

    def _explain_delay(self, ledger: Ledger) -> None:
        """Warn, once for each reason, if there is a reason why nothing happens."""
        # Workers that are started again have not joined yet.
        if not self.workers.revive() and (reason := self.survey(ledger)[1]):
            self.warn(f"waiting for {ledger.name}: {reason}")

    def survey(self, ledger: Ledger) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the workers there are, and why none may run the calls; empty if one may."""
        try:
            self._check_memory()
            workers = self.ask(Store.workers)
        except NbstreamqError as error:
            return {}, str(error)
        reason = reason_for_delay(workers, self._store.keys.queue, ledger.lane)
        return workers, reason or ledger.delay()

    def ask(self, question: Callable[[Store], Any]) -> Any:
        """Return the answer of the server to `question`, which changes nothing there."""
        self._check_owner()
        with self._store_lock:
            try:
                return question(self._store)
            except ServerUnreachable:
                # The connection may be older than a restart of the server.
                return question(self._store)

    # -- news ----------------------------------------------------------------------------------

    def _deliver(self, event: Event) -> bool:
        """Take an event; False at the last one."""
        if event.kind == _KIND_CLOSE:
            return False
        ledger = self._ledgers.get(event.job)
        if ledger is None or not ledger.expects(event):
            self.large.discard(event)
            if event.kind == "output":
                echo("everywhere", event)  # of a late joiner's set-up
            return True
        ledger.apply(event)
        if event.kind == "output":
            echo(ledger.name, event)
        self._retire(ledger)
        return True

    def _retire(self, ledger: Ledger) -> None:
        """Forget a job that is over; end a session that waited for the last."""
        if not ledger.is_over:
            return
        with self._lock:
            if is_named(ledger.job) and ledger.job in self._ledgers:
                # What comes behind its end may reopen it: it must know how far it has heard.
                if (position := self._listener.unfollow(ledger.job)) is None:
                    self._put_off.append(ledger)
                    return
                ledger.position = position
            self._ledgers.pop(ledger.job, None)
            last = self._state == "closing" and not self._ledgers
        if last:
            threading.Thread(target=self._end, name="nbstreamq-closing").start()

    def _on_delivered(self) -> None:
        put_off, self._put_off = self._put_off, []
        for ledger in put_off:
            self._retire(ledger)

    def _on_trouble(self, error: ServerUnreachable | None) -> None:
        if error is None and self._state != "closed":
            self._check_memory()
        self.trouble = error
        if error is not None and self._revive is not None and self._state != "closed":
            try:
                self._revive()
            except (NbstreamqError, OSError) as failure:
                self.warn(f"the server was lost, and can't be started again: {failure}")

    def _check_memory(self) -> None:
        """Fail what is open if the server has forgotten it: nobody else would ever end it."""
        if error := self._memory.check(self.ask):
            self._sent.clear()
            self._on_refusal(error)

    def _on_refusal(self, error: BaseException) -> None:
        """Fail all that is open: what it was that the server refused, or lost, nobody knows."""
        with self._lock:
            open_ledgers = list(self._ledgers.values())
        for ledger in open_ledgers:
            ledger.fail(range(len(ledger)), error)
            self._retire(ledger)

    @property
    def n_open(self) -> int:
        """Number of jobs that are not over."""
        return len(self._ledgers)

    # -- the end -------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise `QueueClosed` unless calls can be submitted."""
        self._check_owner()
        if self._state != "open":
            raise QueueClosed(
                "cannot schedule new futures after shutdown: make another TaskQueue"
                f" ({self._store.keys.queue!r})"
            )

    def _check_owner(self) -> None:
        if self._state == "foreign":
            raise lifetime.forked(self._store.keys.queue)

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more calls; end, and with `wait` return, when those that are open are done.

        With `cancel`, those that are not running yet, as far as is known, are cancelled.
        """
        with self._lock:
            if self._state in ("foreign", "closed"):
                return
            open_ledgers = list(self._ledgers.values())
        for ledger in open_ledgers if cancel else ():
            self._cancel(ledger, ledger.waiting())
        with self._lock:
            self._state = "closing"
        for ledger in open_ledgers:
            # Where inputs are taken as the results are, nobody may take any more.
            ledger.stop_growing()
        with self._lock:
            for ledger in open_ledgers:
                if ledger.is_over:
                    self._ledgers.pop(ledger.job, None)
            remaining = list(self._ledgers.values())
        if wait:
            for ledger in remaining:
                self.wait_until(ledger, ledger.check_over, None)
        if wait or not remaining:
            self._end()
        if wait:  # another thread may be at it, since the last call was over
            self._has_ended.wait()

    def _end(self, farewell: float | None = None) -> None:
        """Close all connections; `farewell` bounds the seconds that the server may take."""
        with self._lock:
            if self._state in ("closed", "foreign"):
                return
            self._state = "closed"
        self.large.keeper.close()
        try:
            last = Event(kind=_KIND_CLOSE, job=self.id, n=0, worker="")
            self._sender.put(Order(lambda store: store.publish([last]), lambda _: None))
            self._sender.close(farewell)
            self._listener.close(farewell or FAREWELL)
            self.workers.close(wait=farewell is None)
            with self._store_lock:
                self._store.close()
        finally:
            self._has_ended.set()

    def abandon(self) -> None:
        """End at the interpreter's exit: only a shutdown waits for what is not done.

        It waits for a lost server no longer than it takes to say so.
        """
        if self._state == "closing":
            for ledger in list(self._ledgers.values()):
                while self.trouble is None:
                    if self.wait_until(ledger, ledger.check_over, LAST_PATIENCE):
                        break
        if self._ledgers and self._state == "open":
            drop = Order(lambda s: s.cancel(self.id, EVERYTHING, EVERYTHING), lambda _: None)
            self._sender.put(drop)
        self._end(FAREWELL)

    def forget(self) -> None:
        """In a forked process: have nothing to do with the parent's connections."""
        self._state = "foreign"
        self._lock, self._ledgers_lock = threading.Lock(), threading.RLock()
        # In its place: futures refer to it.
        self.condition.__init__(self._ledgers_lock)  # type: ignore[misc]
        self.workers.forget()
        self.large.forget()
        for ledger in self._ledgers.values():
            ledger.orphan(lifetime.forked(self._store.keys.queue), self._ledgers_lock)
