"""One client's connection to a queue: what `TaskQueue` and all its views share.

::

    submit ──> Sender ──> server ──> Listener ──> Ledger ──> futures, jobs
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import os
import shlex
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from .. import locks
from ..errors import DataDamaged, NbstreamqError, QueueClosed, ServerUnreachable
from ..home import Home
from ..launch.local import LocalWorkers
from ..locks import Condition
from ..objects.functions import FunctionPickle
from ..objects.large_values import Tell, ValueBackend, refers, refers_to_server
from ..tracebacks import shortened, trace_of
from ..wire.connection import RECONNECT
from ..wire.item_ranges import EVERYTHING, size
from ..wire.keys import is_named
from ..wire.messages import Event
from ..wire.store import Store
from ..worker_context import host, outer_task
from .channel import DataLossCheck, Entry, Listener, Order, Sender
from .functions import Functions, LargeValues, Repeats
from .ledger import Call, CallLedger, CallPace, Ledger
from .waiting import (
    WaitTarget,
    Warner,
    explain,
    help_until,
    interrupted,
    interruptible,
    survey,
    uninterrupted,
)


class Follower(Protocol):
    """Who wants to know."""

    def is_busy(self) -> bool:
        """Return whether it has open calls, other than those of named jobs."""

    def announce(self) -> None:
        """Say how many they are."""

    def finish(self) -> None:
        """Wait for them."""

    def drop(self) -> int:
        """Cancel them, take no more, and return how many there were."""

    def abandon(self) -> None:
        """The interpreter exits."""

    def forget(self) -> None:
        """This process was forked from the one that the follower belongs to."""


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()
_drops = _is_exiting = False


def follow(follower: Follower) -> None:
    """Tell `follower` of such an end, if it still lives then."""
    _followers.add(follower)


def drop_calls_at_exit() -> None:
    """Drop open calls when this process ends, instead of waiting for them: it is a kernel."""
    global _drops  # noqa: PLW0603 - a process is a kernel, or none
    _drops = True


def forked(queue: str) -> QueueClosed:
    """Return what is said to who uses the parent's queue after a fork."""
    return QueueClosed(
        f"This TaskQueue ({queue!r}) belongs to the process that this one was forked from."
        " Make another one here."
    )


def say(text: str) -> None:
    """Tell people on standard error, if there still is one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(f"nbstreamq: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for people


def is_exiting() -> bool:
    """Return whether the main thread has ended."""
    return _is_exiting


def may_submit() -> bool:
    """Return whether this thread may submit calls at the exit: callbacks, and threads that end."""
    thread = threading.current_thread()
    return not thread.daemon or thread.name.startswith("nbstreamq-")


def _finish_all() -> None:
    """Wait for all calls that are open; or drop them, where nobody wants to wait."""
    global _is_exiting  # noqa: PLW0603 - as above
    if host() is not None:
        return  # the worker is told to go; what its tasks submitted is run by others
    _is_exiting = True
    if _drops or _ended_by_interrupt():
        _drop_all()
        return
    try:
        for follower in list(_followers):
            follower.announce()
        while busy := [f for f in list(_followers) if f.is_busy()]:
            for follower in busy:
                follower.finish()
    except KeyboardInterrupt:
        _drop_all()


def _drop_all() -> None:
    for follower in list(_followers):
        follower.drop()


def _ended_by_interrupt() -> bool:
    """Return whether Ctrl-C ended the script; at a prompt it only ended a statement."""
    kind = getattr(sys, "last_type", None)
    at_prompt = hasattr(sys, "ps1")
    return not at_prompt and isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _abandon_all() -> None:
    if host() is not None:
        return
    _finish_all()  # threads may have submitted more while the interpreter waited for them
    for follower in list(_followers):
        follower.abandon()


def _forget_all() -> None:
    for follower in list(_followers):
        follower.forget()


# Twice: before all functions of `atexit`, which may take away what the calls need, as it is with
# the standard library's executors; and when the interpreter has waited for the threads.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
atexit.register(_abandon_all)
os.register_at_fork(after_in_child=_forget_all)


logger = logging.getLogger(__name__)

#: Seconds of waiting for a result after which it is asked whether there is anybody to run it.
PATIENCE = 3.0
#: Seconds for which questions about the state of the queue wait for a server that is away.
LOOK_PATIENCE = 5.0
#: Seconds after which the interpreter's exit no longer waits for a lost server: time for a warning.
LAST_PATIENCE = 2 * PATIENCE
#: Seconds after which the exit says again what it waits for, and why.
REMINDER = 60.0
#: Seconds between two looks at the exit whether a callback is over, or all is sent.
PAUSE = 0.01
#: Seconds in which a cancellation, or the end of a session, tries to reach the server.
FAREWELL = 2.0
L = TypeVar("L", bound=Ledger)
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
    home
        Of this process.
    server
        Address for the command of workers that may run its calls; empty: the embedded server's.
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
        home: Home,
        server: str,
        place: Callable[[Tell], ValueBackend] | None,
    ) -> None:
        self.id = session
        self.home = home
        self._server = server
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
        self.condition = Condition(self._ledgers_lock)
        self._numbers = itertools.count(1)
        self.calls: CallLedger | None = None  #: what the next call may join
        self.pace = "", CallPace()  #: of the last function that was called, by its digest
        self._ledgers: dict[str, Ledger] = {}
        self._set_ups: dict[str, Ledger] = {}
        self.warn = Warner().say
        self._state, self._has_ended = "open", locks.Event()
        self._memory = DataLossCheck(session, store.keys.queue)
        self._sender = Sender(
            store.clone(),
            self.id,
            on_trouble=self._on_trouble,
            memory=self._memory,
            meanwhile=self._ask,
            on_forgotten=self._on_forgotten,
        )
        try:
            self.large = LargeValues(self, self._sender, place)
        except BaseException:
            self._sender.close(0)
            raise
        self.repeats = Repeats(self.warn)
        self._functions = Functions(self.large.pickler, self.tell, self.repeats)
        self._put_off: list[Ledger] = []
        self._listener = Listener(
            store.clone(),
            self.id,
            deliver=self._deliver,
            on_fault=self._on_fault,
            on_delivered=self._on_delivered,
            on_trouble=self._on_trouble,
            is_far=lambda event: refers_to_server(event.body),
        )
        follow(self)

    # -- submitting ----------------------------------------------------------------------------

    def new_ledger(self, fn: Callable[..., Any], name: str, lane: str, kind: type[L]) -> L:
        """Return the ledger of a new job, to `register` when it is growing or has an item."""
        job, worker = f"{self.id}.{next(self._numbers)}", host()
        if worker is not None:  # where a task may run, what it submits may, too
            job += f"@{worker.home()}"
        ledger = kind(job, name, fn, lane, self._ledgers_lock)
        ledger.outer = outer_task()
        return ledger

    @property
    def homes(self) -> tuple[str, str]:
        """Tags of the calls, and of the named jobs, that are made now; see `Home`."""
        worker = host()
        if worker is None:
            return self.home.tags
        return worker.home(), (worker.homes[-1] if worker.homes else worker.home())

    def worker_command(self, folder: str = "", python: str = "python", lane: str = "") -> str:
        """Return the command that starts workers for this queue."""
        words = [python, "-m", "nbstreamq", "worker", *filter(None, [self._server])]
        words += ["--queue", self._store.keys.queue]
        words += ["--lane", lane] if lane else []
        return f"cd {shlex.quote(folder)} && {shlex.join(words)}" if folder else shlex.join(words)

    def join(self, ledger: CallLedger, data: bytes) -> int | None:
        """Add a call to a job and return its number; None if the job is over."""
        with self._lock:
            self.check_open()
            return ledger.add_call(data) if ledger.job in self._ledgers else None

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
            self.send(Order(lambda store: store.publish([look], own=True), lambda _: None))

    def ledger(self, job: str) -> Ledger | None:
        """Return the ledger of a job that is not over."""
        return self._ledgers.get(job)

    def pickle_function(self, fn: Callable[..., Any], *, durable: bool = False) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server; `durable`: to outlive us."""
        self.check_open()
        self.start_workers()
        return self._functions.pickle(fn, durable=durable)

    def send(self, item: Entry | Call | Order, shield: uninterrupted | None = None) -> None:
        """Send something to the server, in its turn; `shield` is the caller's, if he has one."""
        alone = len(self._ledgers) == 1 and (isinstance(item, Order) or item.at_once)
        self._sender.put(item, shield, alone=alone)

    def _ask(self) -> None:
        self._listener.ask()

    def stop_growing(self, ledger: Ledger) -> None:
        """Say that no more calls of the job come."""
        ledger.stop_growing()
        self._retire(ledger)

    def tell(self, do: Callable[[Store], object], size: int) -> None:
        """Have something done at the server, in its turn, that sends `size` bytes."""
        self._sender.put(Order(do, self._on_refusal, size), alone=not self._ledgers)

    def set_up(self, ledger: Ledger, order: Order) -> None:
        """Send the order of a set-up, and go on to show what those that join later print of it."""
        self._set_ups[ledger.job] = ledger
        self._sender.put(order)

    def cancel(self, ledger: Ledger, chosen: Iterable[int]) -> None:
        """Cancel items: here at once, on the workers soon."""
        self._check_owner()
        # The server may hear of it late, or twice: then it must not stop what was run again since.
        run = ledger.n_reruns if ledger.title else None
        if self._state != "closed" and (newly := ledger.cancel(chosen)):
            said = locks.Event()

            def carry_out(store: Store) -> None:
                if not store.cancel(ledger.job, ledger.cancelled(), newly, run=run):
                    self.warn(
                        f"Job {ledger.title!r} was not cancelled: another client had run it again"
                        f" before the server heard of it. q.attach({ledger.title!r}) shows it."
                    )
                said.set()

            self._sender.put(Order(carry_out, lambda e: self.warn(str(e))), alone=True)
            # Who has cancelled a call that waits may rely on it that it never begins.
            said.wait(FAREWELL)
        self._retire(ledger)

    def start_workers(self) -> None:
        """Start the local workers that a queue starts by itself, if it has not yet."""
        n, self._n_workers = self._n_workers, None
        if n:
            try:
                self.workers.scale(n)
            except BaseException:
                self._n_workers = n  # the next call tries again
                raise

    def scale(self, n_workers: int) -> None:
        """There shall be `n_workers` local workers."""
        self.check_open()
        self._n_workers = None
        self.workers.scale(n_workers)

    # -- waiting -------------------------------------------------------------------------------

    @interruptible
    def wait_until(
        self,
        ledger: Ledger,
        is_reached: Callable[[], bool],
        timeout: float | None,
        *,
        item: int | None = None,
        beside: Sequence[Ledger] = (),
    ) -> bool:
        """Wait until `is_reached`, which an event of `ledger` brings about; return whether it is.

        In a task, other tasks are run meanwhile. Says in a warning what it waits for in vain, and
        when it is interrupted, how to cancel that.

        Parameters
        ----------
        timeout
            Seconds to wait in all; None waits for ever.
        item
            The one that is waited for, which of calls that share a ledger is the only one.
        beside
            Other jobs that the caller waits for, too.
        """
        self._check_owner()
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        if host() is not None:
            help_until(self, functools.partial(ledger.wait, is_reached), timeout, [ledger.lane])
        try:
            while True:
                left = PATIENCE if deadline is None else max(0.0, deadline - time.monotonic())
                soon = len(ledger) - ledger.n_over == len(self._ledgers) == 1
                if not self._listener.lead(is_reached, min(left, PATIENCE), soon=soon):
                    ledger.wait(is_reached, min(left, PATIENCE))
                if is_reached():
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                explain(self, ledger)
        except KeyboardInterrupt as interrupt:
            mine = WaitTarget(ledger, item if isinstance(ledger, CallLedger) else None)
            waited = [WaitTarget(one) for one in beside] or [mine]
            interrupted(interrupt, self, waited)
            raise shortened(interrupt)  # noqa: B904 - it is the same one

    def ask(self, question: Callable[[Store], Any], *, patience: float | None = None) -> Any:
        """Return the answer of the server to `question`, which can be asked again.

        While the server can't be reached this waits, as calls do, and says so after a while.

        Parameters
        ----------
        patience
            Seconds to wait at most; None: as long as it takes. 0: ask twice at once, since the
            connection may be older than a restart of the server.

        Raises
        ------
        ServerUnreachable
            It was away for longer.
        """
        self._check_owner()
        begun, n_asked = time.monotonic(), 0
        while True:
            n_asked += 1
            try:
                return self._ask_once(question)
            except ServerUnreachable as error:
                away = time.monotonic() - begun
                is_closed = self._state == "closed"
                if n_asked > 1 and (is_closed or (patience is not None and away >= patience)):
                    raise
                if away > PATIENCE:
                    self.warn(f"waiting for the server: {error}")
                if n_asked > 1:
                    time.sleep(RECONNECT)

    def _ask_once(self, question: Callable[[Store], Any]) -> Any:
        with self._store_lock:
            try:
                return question(self._store)
            finally:
                if self._state == "closed":  # after a shutdown, too, can be asked
                    self._store.close()

    # -- news ----------------------------------------------------------------------------------

    def _deliver(self, event: Event) -> bool:
        """Take an event; False at the last one."""
        if event.kind == _KIND_CLOSE:
            return False
        ledger = self._ledgers.get(event.job)
        if event.kind == "wanted":
            self._supply(ledger or self._set_ups.get(event.job), event.body.decode())
            return True
        if ledger is None or not ledger.expects(event):
            self.large.discard(event)
            ledger = self._set_ups.get(event.job)
            if ledger is not None and event.kind == "output":  # of a late joiner
                ledger.show(ledger.name, event)
            return True
        ledger.apply(event)
        if event.kind == "output":
            ledger.show(ledger.name, event)
        self._retire(ledger)
        return True

    def _supply(self, ledger: Ledger | None, digest: str) -> None:
        """Send a function again that the server has lost; and values when they are used next."""
        function: object = ledger.held if ledger else None
        if isinstance(ledger, CallLedger):
            function = ledger.kind.function
        if isinstance(function, FunctionPickle) and function.digest == digest:
            self._functions.send_again(function)
        elif not digest:
            self.large.value_store.forget()
            self._functions.forget()

    def _on_forgotten(self, n_calls: int) -> None:
        """Go on after the server has lost its data, if nothing of ours was in them.

        Parameters
        ----------
        n_calls
            How many calls it has taken since.
        """
        self._functions.forget_sent()
        self.large.value_store.forget()
        self.ask(Store.check_secret, patience=0.0)
        if sum(len(ledger) - ledger.n_over for ledger in self.open_ledgers()) > n_calls:
            self._on_refusal(self._memory.lost())

    def _on_fault(self, event: Event, error: Exception) -> bool:
        """Take an event that `_deliver` failed with once more; else what it is about fails."""
        logger.error("an event (%s) of %s failed here\n%s", event.kind, event.job, trace_of(error))
        if event.kind == _KIND_CLOSE:
            return False
        ledger = self._ledgers.get(event.job)
        if ledger is not None and event.kind in ("finished", "cancelled"):
            try:
                if refers(event.body):  # what it refers to can be read once
                    raise error
                ledger.apply(event)
            except Exception as second:  # noqa: BLE001 - whatever it is, it is about these items
                ledger.give_up(event, second)
            self._retire(ledger)
        return True

    def _retire(self, ledger: Ledger) -> None:
        """Forget a job that is over; end a session that waited for the last."""
        with self._lock:
            # Asked here: calls are added to one that is not over.
            if not ledger.is_over or self._ledgers.get(ledger.job) is not ledger:
                return
            self.calls = None if self.calls is ledger else self.calls
            if is_named(ledger.job):
                # What comes behind its end may reopen it: it must know how far it has heard.
                if (position := self._listener.unfollow(ledger.job)) is None:
                    self._put_off.append(ledger)
                    return
                ledger.position = position
            self._ledgers.pop(ledger.job)
            # At the interpreter's exit no thread can be started, and `abandon` ends the session.
            is_last = self._state == "closing" and not self._ledgers and not is_exiting()
        if is_last:
            threading.Thread(target=self._end_at_last, name="nbstreamq-closing").start()

    def _on_delivered(self) -> None:
        for _ in range(len(self._put_off)):
            self._retire(self._put_off.pop(0))

    def _on_trouble(self, error: ServerUnreachable | None) -> None:
        if error is None and self._state != "closed":
            self.check_memory()
        self.trouble = error
        if error is not None and self._revive is not None and self._state != "closed":
            try:
                self._revive()
            except DataDamaged as failure:  # no further try would end otherwise
                self._on_refusal(failure)
            except (NbstreamqError, OSError) as failure:
                self.warn(f"the server was lost, and can't be started again: {failure}")

    def check_memory(self) -> None:
        """Fail what is open if the server has forgotten it: nobody else would ever end it."""
        if error := self._memory.check(functools.partial(self.ask, patience=0.0)):
            self._on_refusal(error)

    def _on_refusal(self, error: BaseException) -> None:
        """Fail all that is open: what it was that the server refused, or lost, nobody knows."""
        self._functions.forget_sent()
        for ledger in self.open_ledgers():
            ledger.fail(range(len(ledger)), error)
            self._retire(ledger)

    def open_ledgers(self) -> list[Ledger]:
        """Return the jobs that are not over."""
        with self._lock:
            return list(self._ledgers.values())

    # -- the end -------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raise `QueueClosed` unless calls can be submitted."""
        self._check_owner()
        if self._state == "open" or (self._state == "exiting" and may_submit()):
            return
        if self._state == "exiting":
            raise QueueClosed(
                "cannot schedule new futures after interpreter shutdown: a daemon thread could go"
                " on for ever"
            )
        raise QueueClosed(
            "cannot schedule new futures after shutdown: make another TaskQueue"
            f" ({self._store.keys.queue!r})"
        )

    def _check_owner(self) -> None:
        if self._state == "foreign":
            raise forked(self._store.keys.queue)

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no more calls; end, and with `wait` return, when those that are open are done.

        With `cancel`, those that are not running yet, as far as is known, are cancelled.
        """
        if self._state in ("foreign", "closed"):
            return
        open_ledgers = self.open_ledgers()
        for ledger in open_ledgers if cancel else ():
            self.cancel(ledger, ledger.waiting())
        for ledger in open_ledgers:
            # Where inputs are taken as the results are, nobody may take any more.
            self.stop_growing(ledger)
        with self._lock:
            self._state = "closing"
            remaining = list(self._ledgers.values())
        if wait:
            for ledger in remaining:
                self.wait_until(ledger, ledger.check_over, None, beside=remaining)
        if wait or not remaining:
            # All calls are over: what is left to say is not worth waiting for a lost server.
            self._end(FAREWELL if self.trouble else None)
        if wait:  # another thread may be at it, since the last call was over
            self._has_ended.wait()

    def _end(self, farewell: float | None = None, *, wait: bool = True) -> None:
        """Close all connections; `farewell` bounds the seconds that the server may take.

        With `wait`, local workers that nobody else uses have ended when it returns.
        """
        last = Event(kind=_KIND_CLOSE, job=self.id, n=0, worker="")
        say_so = Order(lambda store: store.publish([last], own=True), lambda _: None)
        steps = (
            self.large.value_store.close,
            functools.partial(self._sender.put, say_so),
            functools.partial(self._sender.close, farewell),
            functools.partial(self._listener.close, farewell or FAREWELL),
            functools.partial(self.workers.close, wait=wait),
            self._close_store,
        )
        with self._lock:
            if self._state in ("closed", "foreign"):
                return
            self._state = "closed"
        try:
            for step in steps:
                try:
                    step()
                except Exception:
                    logger.exception("closing a queue goes on after a fault")
                    with suppress(Exception):
                        step()
        finally:
            self._has_ended.set()

    def _end_at_last(self) -> None:
        """End in a thread: nobody is there to try again."""
        try:
            self._end()
        except Exception:
            logger.exception("closing a queue is tried again")
            self._end()

    def _close_store(self) -> None:
        with self._store_lock:
            self._store.close()

    # -- the interpreter's exit ----------------------------------------------------------------

    def n_open(self) -> int:
        """Return how many calls are open, other than those of named jobs."""
        return sum(len(ledger) - ledger.n_over for ledger in self._unnamed())

    def _unnamed(self) -> list[Ledger]:
        """Return the jobs without a name that have open calls."""
        if self._state in ("closed", "foreign", "leaving"):
            return []
        found = [one for one in self.open_ledgers() if not is_named(one.job)]
        # Where inputs are taken as the results are, a job may stay open without open calls.
        return [one for one in found if one.n_over < len(one)]

    def is_busy(self) -> bool:
        """Return whether the exit has to wait: for calls, callbacks, or what is to be sent."""
        if self._state in ("closed", "foreign", "leaving"):
            return False
        return bool(self.n_open() or self._listener.is_delivering or self._sender.is_busy)

    def announce(self) -> None:
        """Say that the exit waits, and for how much; daemon threads can submit nothing more."""
        with self._lock:
            if self._state == "open":
                self._state = "exiting"
        if n := self.n_open():
            say(
                f"waiting for {_calls(n)} of queue {self._store.keys.queue!r} before Python exits."
                " Ctrl-C drops what is open."
            )

    def finish(self) -> None:
        """Return when there are no open calls; say why, where nothing can run them.

        Those of named jobs run without us, once they are sent. A server that is lost is waited for
        no longer than it takes to say so.
        """
        said = set[str]()
        told = heard = time.monotonic()
        while self.is_busy():
            if self.trouble is None or not (self._sender.is_busy or self._unnamed()):
                heard = time.monotonic()
            if self._await_some():
                continue
            if time.monotonic() > heard + LAST_PATIENCE:
                say(f"can't wait any longer: {self.trouble}")
                self.drop()
                return
            if time.monotonic() > told + REMINDER:
                said, told = set(), time.monotonic()
                self.announce()
            if (reason := self._reason()) and reason not in said:
                said.add(reason)
                say(reason)

    def _await_some(self) -> bool:
        """Wait for the calls of a job, a callback, or the sender; return whether one is done."""
        if not (found := self._unnamed()):
            until = time.monotonic() + PATIENCE
            while (is_busy := self.is_busy()) and time.monotonic() < until:
                time.sleep(PAUSE)
            return not is_busy
        ledger = found[0]
        return ledger.wait(lambda: ledger.n_over >= len(ledger), PATIENCE)

    def _reason(self) -> str:
        """Return why nothing may run; empty if something may."""
        for ledger in self._unnamed():
            if reason := survey(self, ledger)[1]:
                return f"waiting for {ledger.name}: {reason}"
        if self._listener.is_delivering and not self._unnamed():
            return (
                f"waiting for a callback of queue {self._store.keys.queue!r} to return. Ctrl-C ends"
                " the wait."
            )
        return ""

    def drop(self) -> int:
        """Cancel the open calls, and take no more; return how many they were."""
        dropped = self._unnamed()
        with self._lock:
            if self._state not in ("open", "exiting", "closing"):
                return 0
            self._state = "leaving"
        n = sum(size(ledger.cancel(range(len(ledger)))) for ledger in dropped)
        if n:
            said = locks.Event()

            def carry_out(store: Store) -> None:
                store.cancel(self.id, EVERYTHING, EVERYTHING)
                said.set()

            self._sender.put(Order(carry_out, lambda _: said.set()))
            said.wait(FAREWELL)
            say(f"dropped {_calls(n)} of queue {self._store.keys.queue!r}.")
        return n

    def abandon(self) -> None:
        """End at the interpreter's exit."""
        self.drop()
        self._end(FAREWELL, wait=False)

    def forget(self) -> None:
        """In a forked process: have nothing to do with the parent's connections."""
        self._state = "foreign"
        self._lock, self._ledgers_lock = threading.Lock(), threading.RLock()
        # In its place: futures refer to it.
        self.condition.__init__(self._ledgers_lock)  # type: ignore[misc]
        self.workers.forget()
        self.large.forget()
        for ledger in self._ledgers.values():
            ledger.orphan(forked(self._store.keys.queue), self._ledgers_lock)


def _calls(n: int) -> str:
    return f"{n:,} open calls" if n != 1 else "1 open call"
