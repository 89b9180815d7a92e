"""What is known of the tasks of one job: written by events, read by futures, jobs and views."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, ClassVar

from ..errors import NbstreamqError
from ..locks import Condition
from ..objects.outcomes import load_outcomes
from ..protocol.messages import Event, Options
from ..protocol.spans import Span, items, span_of
from ..protocol.states import State
from ..tracebacks import trace_of
from .annotation import annotate
from .callbacks import hold_callbacks, let_go, resolve
from .echo import echo
from .output import Output
from .payload import Payload
from .report import Report

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)

_STATES = tuple(State)
_WAITING, _RUNNING, _DONE, _FAILED, _CANCELLED = (
    _STATES.index(s)
    for s in (State.WAITING, State.RUNNING, State.DONE, State.FAILED, State.CANCELLED)
)
_ALL_DONE = bytes([_DONE])
#: Most results that are looked for at once.
_STRETCH = 10_000
#: Most errors that are annotated when all are asked for; each takes as long as to load its chunk.
_N_ANNOTATED = 100


class Ledger:
    """The tasks of one job.

    Safe to use from several threads; futures are resolved in the thread that applies the event.

    Parameters
    ----------
    job
        Its id.
    name
        Name of the function, for people.
    fn
        The function.
    lane
        Where its tasks wait.
    lock
        Held only for moments, so that many ledgers may share it.
    """

    # A single call has one, too: what most of those never need, is made when it is needed.
    n_over = 0
    n_reruns = 0  #: how often items that had ended were run again
    #: The name that people gave the job; empty: none.
    title = ""
    options = Options()
    held: object = None  #: for the large values in it: the function as it was pickled
    #: The last entry of a named job's events that was read.
    position = b"0"
    growing = False  #: whether more items may come
    #: How many were over when nothing was found on the server; -1: something was.
    n_when_empty = -1
    #: Gets the name and the event when items print; who shows that elsewhere takes its place.
    show: Callable[[str, Event], object] = staticmethod(echo)
    outer: object = None  # in a worker: the task in which the job was made
    #: Called after each change: who reads events waits for more than those.
    wake: Callable[[], object] | None = None
    _changed: threading.Condition | None = None
    _over_callbacks: tuple[Callable[[], object], ...] = ()
    _order: list[range] | None = None
    _reports: list[Report] | None = None
    _errors: dict[int, BaseException] | None = None
    #: Item -> the news that it failed, until its error is asked for: all of a large job may fail,
    #: and to show an item takes the user's own code.
    _unread: dict[int, Report] | None = None
    _output: Output | None = None

    def __init__(
        self,
        job: str,
        name: str,
        fn: Callable[..., Any],
        lane: str,
        lock: threading.RLock | None = None,
    ) -> None:
        self.job = job
        self.name = name
        self.fn = fn
        self.lane = lane
        self._lock = lock or threading.RLock()
        self._states = bytearray()
        self._values: list[Any] = []
        self._futures: dict[int, Future[Any]] = {}
        self._payloads: list[Payload] = []

    def __len__(self) -> int:
        return len(self._states)

    # -- reading -------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        return not self.growing and self.n_over == len(self._states)

    def check_over(self) -> bool:
        """Return `is_over`; a method, to wait for."""
        return self.is_over

    def ended(self) -> list[range]:
        """Return the items that are over, and from now on in the order in which they end."""
        with self._lock:
            if self._order is None:
                self._order = [range(i, i + 1) for i, c in enumerate(self._states) if c >= _DONE]
            return self._order

    def has_more_ended(self, n: int) -> bool:
        """Return whether `ended` has more than `n` entries, or never will."""
        return len(self.ended()) > n or self.is_over

    def waiting(self) -> list[int]:
        """Return the items that have not begun, as far as is known."""
        return [i for i, code in enumerate(self._states) if code == _WAITING]

    def counts(self) -> dict[State, int]:
        """Return how many items are in each state."""
        return {state: self._states.count(code) for code, state in enumerate(_STATES)}

    def state(self, item: int) -> State:
        return _STATES[self._states[item]]

    def has_ended(self, item: int) -> bool:
        return self._states[item] >= _DONE

    def value(self, item: int) -> Any:
        return self._values[item]

    def values_from(self, item: int) -> list[Any]:
        """Return the results from `item` on, up to the first one that is not there."""
        part = self._states[item : item + _STRETCH]
        n = len(part) - len(part.lstrip(_ALL_DONE))
        return self._values[item : item + n]

    def error(self, item: int) -> BaseException | None:
        error = (self._errors or {}).get(item)
        return None if error is None else self._complete(item, error)

    def errors(self, most: int | None = None) -> dict[int, BaseException]:
        """Return item -> exception of those that failed, in order; of `most` of them, if given."""
        known = self._errors or {}
        found = {item: known[item] for item in sorted(known)[:most]}
        for item in islice(found, _N_ANNOTATED):
            self._complete(item, found[item])
        return found

    @property
    def output(self) -> Output:
        """What the items printed and reported so far."""
        self._output = self._output or Output()
        return self._output

    def report(self, item: int) -> Report | None:
        """Return the last news of the item."""
        known = reversed(self._reports or ())
        return next((r for r in known if any(item - r.n in part for part in r.span)), None)

    def reports(self, first: int) -> list[Report]:
        """Return all news from number `first` on, in the order in which they came."""
        return (self._reports or [])[first:]

    def payload(self, item: int) -> Payload | None:
        """Return what was sent for the item; None once its chunk is done and was dropped."""
        for payload in self._payloads:
            if payload.n <= item < payload.n + payload.n_items:
                return payload
        return None

    def wait(self, is_reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `is_reached`, for at most `timeout` seconds; return whether it is."""
        with self._lock:
            if self._changed is None:
                self._changed = Condition(self._lock)
            return self._changed.wait_for(is_reached, timeout)

    # -- writing -------------------------------------------------------------------------------

    def delay(self) -> str:
        """Return why nothing more may happen, if that is not for want of a worker."""
        return ""

    def expects(self, event: Event) -> bool:
        """Return whether the event concerns items that there are."""
        return event.n + event.span[-1].stop <= len(self)

    def rerun(self, chosen: Iterable[int]) -> None:
        """Have items that failed, or were cancelled, wait again; others are left as they are."""
        self._reopen(chosen)
        self.n_reruns += 1
        self._tell()

    def _reopen(self, chosen: Iterable[int]) -> None:
        with self._lock:
            for item in chosen:
                if self._states[item] in (_FAILED, _CANCELLED):
                    self._states[item] = _WAITING
                    self.n_over -= 1
                    (self._errors or {}).pop(item, None)
                    (self._unread or {}).pop(item, None)

    def begin(self, payload: Payload) -> None:
        """Have just the items of `payload`; those there were have not been sent."""
        with self._lock:
            self._payloads, self._states, self._values, self.n_over = [], bytearray(), [], 0
            self.add(payload)

    def add(self, payload: Payload) -> None:
        """Add the items of a chunk that is being submitted."""
        with self._lock:
            self._payloads.append(payload)
            self._states.extend(bytes(payload.n_items))
            self._values.extend([None] * payload.n_items)

    def stop_growing(self) -> None:
        """Say that no more items come."""
        self.growing = False
        self._tell()

    def attach(self, item: int, future: Future[Any]) -> None:
        """Have `future`, the only one of the item, resolved when the item is over."""
        with self._lock:
            ended = self.has_ended(item)
            if not ended:
                self._futures[item] = future
        if ended:
            self._resolve(item, future)

    def when_over(self, callback: Callable[[], object]) -> None:
        """Call `callback` when all items are over; at once if they are."""
        with self._lock:
            self._over_callbacks += (callback,)
        self._tell()

    def release(self, item: int) -> Any:
        """Return the value of an item and forget it."""
        value, self._values[item] = self._values[item], None
        return value

    def apply(self, event: Event) -> None:
        """Take note of what happened."""
        self._ACTIONS[event.kind](self, event)
        self._tell()

    def _finished(self, event: Event) -> None:
        values, errors = load_outcomes(event.body)
        report = self._note(event)
        if len(values) > 1 and len(event.span) == 1 and not errors and self._end_run(event, values):
            return
        ended = [event.n + item for item in items(event.span)]
        for k, item in enumerate(ended):
            code = _DONE if (error := errors.get(k)) is None else _FAILED
            self._end(item, code, values[k], error, report)
        self._resolve_all(ended)
        self._drop_payload(event)

    def _resolve_all(self, ended: Iterable[int]) -> None:
        """Give the futures of items that are over what they have.

        Those that don't get it, since this fails in between, are kept: it can be done again.
        """
        if not self._futures:
            return
        left: dict[int, Future[Any]] = {}
        for item in ended:
            # Let go: the two would keep each other alive. Two threads may be here.
            if self._states[item] >= _DONE and (found := self._futures.pop(item, None)) is not None:
                left[item] = found
        held: Sequence[Any] = ()
        try:
            held = hold_callbacks(left.values()) if len(left) > 1 else ()
            for item, future in list(left.items()):
                try:
                    self._resolve(item, future)
                except Exception:
                    raise
                except BaseException:  # of a callback, which is not to be called again
                    del left[item]
                    raise
                del left[item]
        finally:
            self._futures.update(left)
            if held:
                let_go(held)

    def _end_run(self, event: Event, values: list[Any]) -> bool:
        """Write the results of successive items at once, if that is all there is to do."""
        first = event.n + event.span[0].start
        last = first + len(values)
        with self._lock:
            part = self._states[first:last]
            if self._futures or part.count(_WAITING) + part.count(_RUNNING) < len(values):
                return False
            self._values[first:last] = values
            self._states[first:last] = bytes([_DONE]) * len(values)
            self.n_over += len(values)
            if self._order is not None:
                self._order.append(range(first, last))
        self._drop_payload(event)
        return True

    def _started(self, event: Event) -> None:
        self._mark(event, _RUNNING)
        self._note(event)

    def _again(self, event: Event) -> None:
        self._mark(event, _WAITING)
        self._note(event)

    def _mark(self, event: Event, code: int) -> None:
        with self._lock:
            for item in items(event.span):
                if self._states[event.n + item] < _DONE:
                    self._states[event.n + item] = code

    def _cancelled(self, event: Event) -> None:
        self.cancel(event.n + item for item in items(event.span))

    def cancel(self, chosen: Iterable[int]) -> Span:
        """Mark items as cancelled; return those that were not over yet."""
        newly = [i for i in chosen if not self.has_ended(i) and self._end(i, _CANCELLED)]
        self._resolve_all(newly)
        self._tell()
        return span_of(newly)

    def cancelled(self) -> Span:
        """Return all cancelled items."""
        return span_of(i for i, code in enumerate(self._states) if code == _CANCELLED)

    def fail(self, chosen: Sequence[int], error: BaseException) -> None:
        """Fail those of the items that are not over."""
        for item in chosen:
            self._end(item, _FAILED, None, error)
        self._resolve_all(chosen)
        self._tell()

    def give_up(self, event: Event, error: BaseException) -> None:
        """Have what an event ended be over, though it can't be taken in: with `error`."""
        if event.kind in ("finished", "cancelled"):
            there = range(len(self))[event.n :]
            self.fail([i for part in event.span for i in there[part.start : part.stop]], error)

    def orphan(self, error: NbstreamqError, lock: threading.RLock) -> None:
        """Fail what is open, in a forked process: who held the old lock is gone."""
        self._lock, self._changed = lock, None
        self.growing = False
        self.fail(range(len(self)), error)

    def _end(
        self,
        item: int,
        code: int,
        value: Any = None,
        error: BaseException | None = None,
        report: Report | None = None,
    ) -> bool:
        """Write how an item ended; False if it had ended already: the first word counts.

        All of it or nothing: once something is written, no call that may fail is between.
        """
        with self._lock:
            if self.has_ended(item):
                return False
            self._values[item] = value
            if error is not None:
                if report is not None:
                    self._unread = self._unread or {}
                    self._unread[item] = report
                self._errors = self._errors or {}
                self._errors[item] = error
            self._states[item] = code
            self.n_over += 1
            if self._order is not None:
                self._order.append(range(item, item + 1))
        return True

    def _complete(self, item: int, error: BaseException) -> BaseException:
        """Add to an error what only this side knows, once it is asked for."""
        if report := (self._unread or {}).pop(item, None):
            annotate(error, item, self.payload(item), report, job=self.job, name=self.name)
        return error

    def _resolve(self, item: int, future: Future[Any]) -> None:
        is_cancelled = self._states[item] == _CANCELLED
        resolve(future, self._values[item], self.error(item), is_cancelled=is_cancelled)

    def _note(self, event: Event) -> Report:
        self._reports = self._reports or []
        self._reports.append(report := Report.about(event))
        return report

    def _drop_payload(self, event: Event) -> None:
        """Forget the arguments of a chunk whose items are all done; a single call keeps them."""
        if len(self) == 1:
            return
        payload = self.payload(event.n)
        if payload:
            states = self._states[payload.n : payload.n + payload.n_items]
            if states.count(_DONE) == payload.n_items:
                self._payloads.remove(payload)

    def _tell(self) -> None:
        with self._lock:
            if self._changed is not None:
                self._changed.notify_all()
            callbacks: tuple[Callable[[], object], ...] = ()
            if self._over_callbacks and self.is_over:
                callbacks, self._over_callbacks = self._over_callbacks, ()
        try:
            if self.wake is not None:
                self.wake()
        finally:
            for callback in callbacks:
                try:
                    callback()
                except Exception as error:  # noqa: BLE001 - of a user
                    text = trace_of(error)
                    logger.error("exception calling callback %r\n%s", callback, text)  # noqa: TRY400

    _ACTIONS: ClassVar[dict[str, Callable[[Any, Event], None]]] = {
        "cancelled": _cancelled,
        "finished": _finished,
        "lost": _again,
        "output": lambda self, event: self.output.add_text(event),
        "progress": lambda self, event: self.output.add_progress(event),
        "retried": _again,
        "started": _started,
        "wanted": lambda _self, _event: None,  # in a job's history; by then it was dealt with
    }
