"""What is known here of the items of a job: written by events, read by futures, jobs and views.

A `JobTable` holds the items of one map. If the map has a name, the server keeps the job: it has the
inputs, and other clients may add items, cancel them or run them again. A single call has no table:
its future knows all of it, see `future.py`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from ..errors import NbstreamqError
from ..locks import Condition
from ..objects.functions import FunctionPickle
from ..objects.results import load_outcomes
from ..tracebacks import trace_of
from ..wire.item_ranges import ItemRanges, items, ranges_of
from ..wire.messages import Event, Options, State, Task
from ..wire.records import Chunk
from .callbacks import hold_callbacks, let_go, resolve
from .error_notes import Payload, RunInfo, annotate

#: `splitlines` knows more of them, such as a form feed.
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


def print_output(name: str, event: Event) -> None:
    """Show what a task printed, each line marked with the function's name and the item's index."""
    for item, stream, text in json.loads(event.body):
        target = sys.stderr if stream == "stderr" else sys.stdout
        mark = f"[{name} {event.n + item}] "
        for line in _LINE_ENDS.split(text.removesuffix("\n")):
            try:
                target.write(f"{mark}{line}\n")
            except UnicodeEncodeError:  # not in the terminal's encoding, or half a surrogate pair
                coding = getattr(target, "encoding", None) or "ascii"
                plain = line.encode(coding, "backslashreplace").decode(coding)
                target.write(f"{mark}{plain}\n")
        target.flush()


class ItemOutput:
    """Written by the events of a job, read by futures and views."""

    def __init__(self) -> None:
        self._texts: dict[int, list[tuple[str, str]]] = {}
        self._progress: dict[int, tuple[int, int | None]] = {}

    def add_text(self, event: Event) -> None:
        """Take in an event of kind ``output``."""
        for item, stream, text in json.loads(event.body):
            self._texts.setdefault(event.n + item, []).append((stream, text))

    def add_progress(self, event: Event) -> None:
        """Take in an event of kind ``progress``."""
        done, total = json.loads(event.body)
        self._progress[event.n + event.span[0].start] = (done, total)

    def pieces(self, item: int) -> list[tuple[str, str]]:
        """Return what the item printed: (stream, text), in order."""
        return list(self._texts.get(item, ()))

    def text(self, item: int) -> str:
        """Return what the item printed, to whichever stream."""
        return "".join(text for _, text in self.pieces(item))

    def last_texts(self, n_items: int) -> dict[int, str]:
        """Return item -> what it printed, for the last items that began to print."""
        return {item: self.text(item) for item in list(self._texts)[-n_items:]}

    def progress(self, item: int) -> tuple[int, int | None] | None:
        """Return (done, in all) as the item reported it last; None if it did not."""
        return self._progress.get(item)

    def all_progress(self) -> dict[int, tuple[int, int | None]]:
        """Return item -> what it reported last."""
        return self._progress.copy()


logger = logging.getLogger(__name__)

_STATES = tuple(State)
_WAITING, _RUNNING, _DONE, _FAILED, _CANCELLED = (
    _STATES.index(s)
    for s in (State.WAITING, State.RUNNING, State.DONE, State.FAILED, State.CANCELLED)
)
_ALL_DONE = bytes([_DONE])
#: Kinds of events that are not about items which there must be.
_ABOUT_JOB = ("opened", "closed", "cancelled")
#: Most results that are looked for at once.
_STRETCH = 10_000
#: Most errors that are annotated when all are asked for; each takes as long as to load its chunk.
_N_ANNOTATED = 100


class Outstanding:
    """What a session has sent, and what has not ended yet: a single call, or the items of a map.

    Attributes
    ----------
    job
        Its id, by which events find it.
    name
        Name of the function, for people.
    fn
        The function.
    lane
        Where its tasks wait.
    outer
        In a worker, the task that submitted it.
    title
        The name that people gave the job; empty: none. A job with a name is kept on the server.
    growing
        Whether more items may come.
    n_when_empty
        How many were open when nothing was found on the server; -1: something was found.
    shows_progress
        Whether waits for it show how far it is.
    """

    job: str
    name: str
    fn: Callable[..., Any]
    lane: str
    outer: object
    title = ""
    growing = False
    n_when_empty = -1
    shows_progress = True
    _changed: threading.Condition | None = None

    @property
    def n_items(self) -> int:
        """How many items there are so far."""
        raise NotImplementedError

    @property
    def n_open(self) -> int:
        """How many of them are not over."""
        raise NotImplementedError

    @property
    def is_over(self) -> bool:
        """Whether all items are over, and no more come."""
        raise NotImplementedError

    def check_over(self) -> bool:
        """Return `is_over`; a method, to wait for."""
        return self.is_over

    def state(self, item: int) -> State:
        raise NotImplementedError

    def wait(self, is_reached: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `is_reached`, for at most `timeout` seconds; return whether it is."""
        raise NotImplementedError

    def fail(self, error: BaseException, chosen: Sequence[int] | None = None) -> None:
        """Fail those of the `chosen` items that are not over; None: of all."""
        raise NotImplementedError

    def mark_cancelled(self, chosen: Iterable[int]) -> ItemRanges:
        """Mark items as cancelled; return those that were not over yet."""
        raise NotImplementedError

    def stop_growing(self) -> None:
        """Say that no more items come."""

    def orphan(self, error: NbstreamqError, lock: threading.RLock) -> None:
        """Fail what is open, in a forked process: the thread that held the old lock is gone."""
        raise NotImplementedError


class JobTable(Outstanding):
    """The items of one map.

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
        Held only for moments, so that everything of a session may share it.

    Attributes
    ----------
    options
        How its items are run.
    call
        How its items are called, as in `Task`.
    function
        The function as it was pickled. It keeps the large values alive that it refers to.
    run
        How often items that had ended were run again.
    show
        Gets the name and the event when items print. A view that shows the output replaces it.
    wake
        Called after each change: a thread that reads events waits for more than those.
    fetch
        Of a named job: returns the pickled inputs of a chunk, by its first item; None if they can't
        be had.
    position
        Of a named job: the last entry of its events that was read.
    about
        Of a named job: what its client wrote down, see `JobRecord`.
    failure
        Of a named job: why it was failed as a whole here, where it is not known how it goes on at
        the server. None: it was not.
    """

    options = Options()
    failure: BaseException | None = None
    call = "map"
    function: FunctionPickle | None = None
    show: Callable[[str, Event], object] = staticmethod(print_output)
    wake: Callable[[], object] | None = None
    fetch: Callable[[int], bytes | None] | None = None
    position = b"0"
    about: dict[str, Any]

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
        self.outer: object = None
        self.n_over = 0
        self.run = 0
        #: Item -> the run that it was last part of, of those that were run again.
        self._runs: dict[int, int] = {}
        self._lock = lock or threading.RLock()
        self._states = bytearray()
        self._values: list[Any] = []
        self._errors: dict[int, BaseException] = {}
        #: Item -> the news that it failed, until its error is asked for: all items of a large job
        #: may fail, and to describe an item runs the user's own code.
        self._unread: dict[int, RunInfo] = {}
        self._reports: list[RunInfo] = []
        #: What the items printed and reported so far.
        self.output = ItemOutput()
        self._order: list[range] | None = None
        self._over_callbacks: tuple[Callable[[], object], ...] = ()
        #: Item -> its future: all that somebody holds, and those that wait for the item.
        self._futures: WeakValueDictionary[int, Future[Any]] = WeakValueDictionary()
        self._unresolved: dict[int, Future[Any]] = {}
        #: In the order of their items. Those of a named job have no arguments: the server has them.
        self._payloads: list[Payload] = []
        #: The last one that was fetched.
        self._fetched: Payload | None = None

    def __len__(self) -> int:
        return len(self._states)

    # -- reading -------------------------------------------------------------------------------

    @property
    def n_items(self) -> int:
        return len(self._states)

    @property
    def n_open(self) -> int:
        return len(self._states) - self.n_over

    @property
    def is_over(self) -> bool:
        return not self.growing and self.n_over == len(self._states)

    def wait(self, is_reached: Callable[[], bool], timeout: float | None) -> bool:
        with self._lock:
            if self._changed is None:
                self._changed = Condition(self._lock)
            return self._changed.wait_for(is_reached, timeout)

    def ended(self) -> list[range]:
        """Return the items that are over, and from now on in the order in which they end."""
        with self._lock:
            if self._order is None:
                self._order = [range(i, i + 1) for i, c in enumerate(self._states) if c >= _DONE]
            return self._order

    def has_more_ended(self, n: int) -> bool:
        """Return whether `ended` has more than `n` entries, or never will."""
        return len(self.ended()) > n or self.is_over

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
        error = self._errors.get(item)
        return None if error is None else self._complete(item, error)

    def errors(self, most: int | None = None) -> dict[int, BaseException]:
        """Return item -> exception of those that failed, in order; of `most` of them, if given."""
        known = self._errors
        found = {item: known[item] for item in sorted(known)[:most]}
        for item in islice(found, _N_ANNOTATED):
            self._complete(item, found[item])
        return found

    def report(self, item: int) -> RunInfo | None:
        """Return the last news of the item."""
        known = reversed(self._reports)
        return next((r for r in known if any(item - r.n in part for part in r.span)), None)

    def reports(self, first: int) -> list[RunInfo]:
        """Return all news from number `first` on, in the order in which they came."""
        return self._reports[first:]

    def payload(self, item: int) -> Payload | None:
        """Return what was sent for the item; None if it can't be had.

        Arguments are dropped once all items of their chunk are done. Those of a named job are
        fetched from the server.
        """
        with self._lock:
            at = bisect_right(self._payloads, item, key=attrgetter("n")) - 1
            found = self._payloads[at] if at >= 0 else None
        if found is None or item >= found.n + found.n_items:
            return None
        if self.fetch is None:
            return found
        if self._fetched is None or self._fetched.n != found.n:
            args = self.fetch(found.n)
            if args is None:
                return None
            self._fetched = found._replace(args=args)
        return self._fetched

    def tasks(
        self, chosen: Iterable[int], function: FunctionPickle, options: Options
    ) -> Iterator[Task]:
        """Yield the messages that run items again: one for each chunk that has some.

        No two runs send the same message: that is how a copy is known.
        """

        def chunk_of(item: int) -> Payload:
            payload = self.payload(item)
            if payload is None:
                raise NbstreamqError(
                    f"The arguments of item {item} of job {self.job} are not kept any more."
                    " Call the function with them instead."
                )
            return payload

        self.function = function
        for payload, found in groupby(chosen, chunk_of):
            span = ranges_of(i - payload.n for i in found)
            task = payload.task(self.job, function, options, span)
            yield task.with_changes(run=self.run + 1)

    # -- writing -------------------------------------------------------------------------------

    def rerun(self, chosen: Iterable[int], run: int) -> None:
        """Have items that failed, or were cancelled, wait again, unless run `run` is known."""
        with self._lock:
            if run <= self.run:
                return
            self.run = run
            self._reopen(chosen)
        self._tell()

    def _reopen(self, chosen: Iterable[int]) -> None:
        """Have items that failed, or were cancelled, wait again; others stay as they are."""
        with self._lock:
            for item in chosen:
                if self._states[item] in (_FAILED, _CANCELLED):
                    self._states[item] = _WAITING
                    self._runs[item] = self.run
                    self.n_over -= 1
                    self._errors.pop(item, None)
                    self._unread.pop(item, None)
                    self._futures.pop(item, None)  # it stays as it is; the item has another one

    def set_chunks(self, chunks: Iterable[Chunk]) -> None:
        """Have the chunks of a named job as the server has them; those behind them stay."""
        with self._lock:
            kept = [Payload(c.first, c.n_items, self.call, b"") for c in chunks]
            end = kept[-1].n + kept[-1].n_items if kept else 0
            self._payloads = kept + [sent for sent in self._payloads if sent.n >= end]
            self._fetched = None
            self._extend(end)

    def begin(self, payload: Payload) -> None:
        """Have just the items of `payload`; those there were have not been sent."""
        with self._lock:
            self._payloads, self._states, self._values, self.n_over = [], bytearray(), [], 0
            self.add(payload)

    def add(self, payload: Payload) -> None:
        """Add the items of a chunk that is being submitted."""
        with self._lock:
            self._payloads.append(payload)
            self._extend(payload.n + payload.n_items)

    def _extend(self, n_items: int) -> None:
        """Have at least `n_items` items."""
        with self._lock:
            missing = max(0, n_items - len(self)) if self.failure is None else 0
            self._states.extend(bytes(missing))
            self._values.extend([None] * missing)

    def stop_growing(self) -> None:
        """Say that no more items come."""
        self.growing = False
        self._tell()

    def future(self, item: int, make: Callable[[int], Future[Any]]) -> Any:
        """Return the only future of the item; `make` makes it when it is first asked for."""
        while True:
            with self._lock:
                run, future = self.run, self._futures.get(item)
                if future is not None:
                    return future
                future = make(item)
                if not self.has_ended(item):
                    self._futures[item] = self._unresolved[item] = future
                    return future
            self._resolve(item, future)  # without the lock: it may run code of the user
            with self._lock:
                if run == self.run:
                    return self._futures.setdefault(item, future)

    def when_over(self, callback: Callable[[], object]) -> None:
        """Call `callback` when all items are over; at once if they are."""
        with self._lock:
            if not self.is_over:
                self._over_callbacks += (callback,)
                return
        _call(callback)  # Here: another thread that tells of the end might call it later.

    def release(self, item: int) -> Any:
        """Return the value of an item and forget it."""
        value, self._values[item] = self._values[item], None
        return value

    def expects(self, event: Event) -> bool:
        """Return whether the event concerns items that there are.

        All events of a named job do: another client may add items.
        """
        if self.failure is not None:
            return False
        end = event.n + event.span[-1].stop
        if self.title and event.kind not in _ABOUT_JOB:
            self._extend(end)
        return bool(self.title) or end <= len(self)

    def apply(self, event: Event) -> None:
        """Take note of what happened."""
        self._ACTIONS[event.kind](self, event)
        self._tell()

    def _items_of(self, event: Event) -> list[int]:
        """Return the items that an event is about, without those that were run again since."""
        # A cancellation by another client may mean more items than there are.
        there = range(event.n, len(self))
        found = (i for part in event.span for i in there[part.start : part.stop])
        return [i for i in found if not self._is_old(event, i)]

    def _is_old(self, event: Event, item: int) -> bool:
        """Return whether the item was run again since what the event is about."""
        return event.run < self._runs.get(item, 0)

    def _finished(self, event: Event) -> None:
        values, errors = load_outcomes(event.body)
        report = self._note(event)
        if len(values) > 1 and len(event.span) == 1 and not errors and self._end_run(event, values):
            return
        ended = [event.n + item for item in items(event.span)]
        for k, item in enumerate(ended):
            if self._is_old(event, item):
                continue
            if self.title and self._states[item] == _CANCELLED:
                self._reopen([item])  # cancelled too late: the worker had finished
            code = _DONE if (error := errors.get(k)) is None else _FAILED
            self._end(item, code, values[k], error, report)
        self._resolve_all(ended)
        self._drop_payload(event)

    def _resolve_all(self, ended: Iterable[int]) -> None:
        """Give the futures of items that are over what they have.

        Those that don't get it, since this fails in between, are kept: it can be done again.
        """
        if not self._unresolved:
            return
        left: dict[int, Future[Any]] = {}
        for item in ended:
            # Let go: the two would keep each other alive. Two threads may be here.
            if (
                self._states[item] >= _DONE
                and (found := self._unresolved.pop(item, None)) is not None
            ):
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
            self._unresolved.update(left)
            if held:
                let_go(held)

    def _end_run(self, event: Event, values: list[Any]) -> bool:
        """Write the results of successive items at once, if that is all there is to do."""
        first = event.n + event.span[0].start
        last = first + len(values)
        with self._lock:
            part = self._states[first:last]
            is_simple = not self._unresolved and event.run == self.run
            if not is_simple or part.count(_WAITING) + part.count(_RUNNING) < len(values):
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
            for item in self._items_of(event):
                if self._states[item] < _DONE:
                    self._states[item] = code

    def _cancelled(self, event: Event) -> None:
        self.mark_cancelled(self._items_of(event))

    def _closed(self, event: Event) -> None:
        self._extend(event.n)
        self.growing = False

    def _rerun(self, event: Event) -> None:
        self.rerun(items(event.span), event.run)

    def mark_cancelled(self, chosen: Iterable[int]) -> ItemRanges:
        newly = [i for i in chosen if not self.has_ended(i) and self._end(i, _CANCELLED)]
        self._resolve_all(newly)
        self._tell()
        return ranges_of(newly)

    def cancelled_items(self) -> ItemRanges:
        """Return all cancelled items."""
        return ranges_of(i for i, code in enumerate(self._states) if code == _CANCELLED)

    def fail(self, error: BaseException, chosen: Sequence[int] | None = None) -> None:
        """Fail those of the `chosen` items that are not over; None: all of them.

        A named job that fails as a whole goes on at the server. So this table is over: the next
        call makes another one, of what the server has.
        """
        if chosen is None:
            with self._lock:
                if self.title:
                    self.failure, self.growing = error, False
                chosen = range(len(self))
        for item in chosen:
            self._end(item, _FAILED, None, error)
        self._resolve_all(chosen)
        self._tell()

    def give_up(self, event: Event, error: BaseException) -> None:
        """Fail with `error` what an event has ended that can't be taken in."""
        if event.kind in ("finished", "cancelled"):
            self.fail(error, self._items_of(event))

    def orphan(self, error: NbstreamqError, lock: threading.RLock) -> None:
        self._lock, self._changed = lock, None
        self.growing = False
        self.fail(error)

    def _end(
        self,
        item: int,
        code: int,
        value: Any = None,
        error: BaseException | None = None,
        report: RunInfo | None = None,
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
                    self._unread[item] = report
                self._errors[item] = error
            self._states[item] = code
            self.n_over += 1
            if self._order is not None:
                self._order.append(range(item, item + 1))
        return True

    def _complete(self, item: int, error: BaseException) -> BaseException:
        """Add to an error what only this side knows, once it is asked for."""
        if report := self._unread.pop(item, None):
            annotate(error, item, self.payload(item), report, job=self.job, name=self.name)
        return error

    def _resolve(self, item: int, future: Future[Any]) -> None:
        is_cancelled = self._states[item] == _CANCELLED
        resolve(future, self._values[item], self.error(item), is_cancelled=is_cancelled)

    def _note(self, event: Event) -> RunInfo:
        self._reports.append(report := RunInfo.about(event))
        return report

    def _drop_payload(self, event: Event) -> None:
        """Forget the arguments of a chunk whose items are all done; a single item keeps them.

        The server keeps the inputs of a named job as long as the job.
        """
        if len(self) == 1 or self.title:
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
                _call(callback)

    _ACTIONS: ClassVar[dict[str, Callable[[Any, Event], None]]] = {
        "cancelled": _cancelled,
        "closed": _closed,
        "finished": _finished,
        "handed_back": _again,
        "lost": _again,
        "opened": lambda _self, _event: None,  # it holds the place for those that follow
        "output": lambda self, event: self.output.add_text(event),
        "progress": lambda self, event: self.output.add_progress(event),
        "rerun": _rerun,
        "retried": _again,
        "started": _started,
        "wanted": lambda _self, _event: None,  # in a job's history; by then it was dealt with
    }


def _call(callback: Callable[[], object]) -> None:
    """Call what somebody wants called at the end of a job; log its error."""
    try:
        callback()
    except Exception as error:  # noqa: BLE001 - of a user
        logger.error("exception calling callback %r\n%s", callback, trace_of(error))  # noqa: TRY400
