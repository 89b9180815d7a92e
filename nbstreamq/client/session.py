"""One client's connection to a queue: what `TaskQueue` and all its views share.

::

    submit ──> Sender ──> server ──> Listener ──> Session.outstanding ──> futures, jobs

Everything that was sent and has not ended is in one dict, `outstanding`, by the job id that its
events carry: the table of a map, or the futures of single calls in quick succession.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from .. import locks
from ..errors import (
    DataDamaged,
    DataLost,
    JobNotFound,
    NbstreamqError,
    QueueClosed,
    ServerUnreachable,
)
from ..home import Home
from ..launch.launcher import Purpose
from ..locks import Condition
from ..objects.functions import FunctionPickle
from ..objects.large_values import Tell, ValueBackend, refers
from ..objects.mapped_files import is_file
from ..tracebacks import trace_of, warn
from ..wire.connection import RECONNECT
from ..wire.item_ranges import EVERYTHING, size
from ..wire.keys import lane_of
from ..wire.messages import Event, Options, State, Task
from ..wire.store import Store
from ..worker_context import WorkerContext
from .calls import MAX_CALLS, MESSAGE_BYTES, SMALL_BYTES, Call, Calls, Submission
from .environments import Environments
from .functions import Functions, LargeValues, Repeats
from .listener import Listener
from .progress import LongWait, Waits
from .sender import Command, Sender
from .table import JobTable, Outstanding
from .waiting import interrupted, interruptible
from .workers import Workers


def forked(queue: str) -> QueueClosed:
    """Return the error of a process that uses its parent's queue after a fork."""
    return QueueClosed(
        f"This TaskQueue ({queue!r}) belongs to the process that this one was forked from."
        " Make another one here."
    )


def say(text: str) -> None:
    """Print a message on standard error, if there is one."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(f"nbstreamq: {text}", file=sys.stderr, flush=True)  # noqa: T201 - for people


def may_submit() -> bool:
    """Return whether this thread may submit calls at the exit: callbacks, and threads that end."""
    thread = threading.current_thread()
    return not thread.daemon or thread.name.startswith("nbstreamq-")


def _open_calls() -> list[tuple[object, str]]:
    """Return what tasks of this worker have submitted and is not over: the task, and the lane."""
    found = (what for session in list(Session.all) for what in session.open())
    return [(what.outer, what.lane) for what in found if what.outer is not None]


def _cancel_calls(task: object) -> None:
    """Cancel what a task of this worker, which was stopped, has submitted."""
    for session in list(Session.all):
        # The newest first: a worker that is stopped must not begin another one meanwhile.
        for what in reversed([*session.open()]):
            if what.outer is task and not what.title:
                session.cancel(what, range(what.n_items))


logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

#: Seconds of waiting for a result after which it is asked whether there is anybody to run it.
PATIENCE = 3.0
#: Seconds in which a cancellation, or the end of a session, tries to reach the server.
FAREWELL = 2.0
_KIND_CLOSE, _KIND_LOOK = "close", "look"


class Session:
    """A client of a queue, until it is closed.

    Parameters
    ----------
    store
        The queue.
    workers
        Returns the `Workers`, given how they ask the server and warn.
    revive
        Brings the server back; None if that is not in our hands.
    home
        Of this process.
    place
        Opens the place of large values; None: they go to the server.
    purpose
        What workers in other places need to get in.

    Attributes
    ----------
    all
        The sessions of this process.
    interpreter_exits
        Whether the main thread has ended: no thread can be started any more.
    """

    all: ClassVar[weakref.WeakSet[Session]] = weakref.WeakSet()
    interpreter_exits: ClassVar[bool] = False

    def __init__(
        self,
        store: Store,
        workers: Callable[..., Workers],
        revive: Callable[[], object] | None,
        *,
        home: Home,
        place: Callable[[Tell], ValueBackend] | None,
        purpose: Purpose,
    ) -> None:
        self.id, self.home, self._purpose = purpose.session, home, purpose
        self.queue = store.keys.queue
        self.workers = workers(ask_within=self.ask_within, warn=self.warn)
        self.trouble: ServerUnreachable | None = None
        self._revive = revive
        self._store = store
        self.encode_task = store.encode_task
        self._store_lock, self._lock = threading.Lock(), threading.Lock()
        #: Of all calls and jobs, held for moments only; and the same as futures need it.
        self.calls_lock = threading.RLock()
        self.condition = Condition(self.calls_lock)
        self._numbers = itertools.count(1)
        #: What is not over, by the job id that its events carry.
        self.outstanding: dict[str, Calls | JobTable] = {}
        #: What the next call may join.
        self._calls: Calls | None = None
        self._set_ups: dict[str, JobTable] = {}
        self._said = set[str]()
        self._state, self._has_ended = "open", locks.Event()
        self._sender = Sender(
            store.clone(),
            self.id,
            outstanding=self.outstanding,
            on_trouble=self._on_trouble,
            on_forgotten=self._on_forgotten,
            on_refused=self.fail,
        )
        try:
            self.large = LargeValues(self.id, self.ask, self.tell, self._sender.send_soon, place)
        except BaseException:
            self._sender.close(0)
            raise
        self.repeats = Repeats(self.warn)
        self.environments = Environments(functools.partial(self.ask_within, 0.0), self.warn)
        self._functions = Functions(self.large.pickler, self.tell, self.repeats, self._compare)
        self._listener = Listener(
            store.clone(),
            self.id,
            deliver=self.take,
            on_fault=self._on_fault,
            on_trouble=self._on_trouble,
            awaited=(self.outstanding, self._set_ups),
        )
        self._sender.meanwhile = self._listener.ask
        self.send = self._sender.send  # a call that was added, or a command
        Session.all.add(self)
        WorkerContext.open_calls, WorkerContext.cancel_calls = _open_calls, _cancel_calls

    # -- submitting ----------------------------------------------------------------------------

    def new_id(self, worker: WorkerContext | None) -> str:
        """Return the id of a new job; `worker` is the worker that this process is."""
        job = f"{self.id}.{next(self._numbers)}"
        # Workers that may run a task may run what it submits, too.
        return job if worker is None else f"{job}@{worker.home()}"

    def new_table(
        self, fn: Callable[..., Any], name: str, lane: str, job: str | None = None
    ) -> JobTable:
        """Return the table of a job, to `register` when it is growing or has an item.

        Parameters
        ----------
        job
            The id of a named job; None: it is a new job without a name.
        """
        job = job or self.new_id(WorkerContext.current)
        table = JobTable(job, name, fn, lane, self.calls_lock)
        table.outer = WorkerContext.current.task() if WorkerContext.current else None
        return table

    def add_call(  # noqa: PLR0917 - by keyword it would take longer
        self,
        call: Call,
        function: FunctionPickle,
        lane: str,
        options: Options,
        worker: WorkerContext | None,
        is_plain: bool,
    ) -> None:
        """Give a call its job id and number, and have it told of its events.

        Parameters
        ----------
        worker
            The worker that this process is; None in any other process.
        is_plain
            Whether it may share a job id with other calls.
        """
        outer = None if worker is None else worker.task()
        # A message that refers to large values must not live as long as other calls.
        is_plain &= (
            len(call.args) <= SMALL_BYTES and type(call.args) is type(function.data) is bytes
        )
        with self._lock:
            if self._state != "open":
                self.check_open()
            group = self._calls
            if (
                group is None
                or not is_plain
                # The same object: a function that captures something mutable is pickled for each
                # call, and each of its calls finds that as it was, in a job of its own.
                or group.function is not function
                or group.outer is not outer
                or group.lane != lane
                or (group.options is not options and group.options != options)
                or group.n >= MAX_CALLS
            ):
                last, group = group, Calls(self.new_id(worker), function, lane, options, outer)
                if last is not None and last.function.digest == function.digest:
                    group.pace = last.pace
                self._calls = group if is_plain else last
            call.group, call.index = group, group.n
            call.job, call.name, call.lane = group.job, function.name, lane
            if outer is not None:
                call.outer = outer
            group.n += 1
            group.open[call.index] = call
            self.outstanding[group.job] = group

    def register(self, table: JobTable) -> None:
        """Have a job told of its events; a named one, of those behind its `position`."""
        table.wake = self.look_again
        with self._lock:
            self.check_open()
            is_known = self.outstanding.get(table.job) is table
            self.outstanding[table.job] = table
        if table.title and not is_known:
            self._listener.follow(table.job, table.position)
            # The request that is under way does not include it: an event ends that request.
            look = Event(kind=_KIND_LOOK, job=self.id, n=0, worker="")
            self.send(Command(lambda store: store.publish([look], own=True), _ignore))

    def table(self, job: str) -> JobTable | None:
        """Return the table of a job that is not over."""
        found = self.outstanding.get(job)
        return found if isinstance(found, JobTable) else None

    def pickle_function(self, fn: Callable[..., Any], *, durable: bool = False) -> FunctionPickle:
        """Return `fn` pickled, once it is on its way to the server; `durable`: to outlive us."""
        if self._state != "open":
            self.check_open()
        if self.workers.n_at_first:
            self.workers.start()
        return self._functions.pickle(fn, durable=durable)

    def _compare(self, fn: Callable[..., Any]) -> None:
        if not self.trouble:  # a submit must not wait for a server that is away
            self.environments.check(fn)

    def submit(self, table: JobTable, task: Task, delay: float, *, immediate: bool = False) -> None:
        """Send items of a job; they fail if the server refuses them.

        Parameters
        ----------
        task
            Their message.
        delay
            Seconds before they may start.
        immediate
            Whether a worker may have nothing else to do.
        """
        fields = self.encode_task(task)
        n_bytes = len(task.args) + MESSAGE_BYTES
        chosen = range(task.n + task.span[0].start, task.n + task.span[-1].stop)
        message = table.lane, delay, fields, task.job
        self.send(Submission(message, n_bytes, table, chosen), immediate=immediate)

    def look_again(self) -> None:
        """Wake the caller that reads events: what it waits for may have come without one."""
        self._listener.look_again()

    def stop_growing(self, table: JobTable) -> None:
        """Say that no more calls of the job come."""
        table.stop_growing()
        self._retire(table)

    def tell(self, do: Callable[[Store], object], size: int) -> None:
        """Have something done at the server, in its turn, that sends `size` bytes."""
        self.send(Command(do, self._on_refusal, size))

    def set_up(self, table: JobTable, command: Command) -> None:
        """Send a set-up, and go on to show what workers that join later print of it."""
        self._set_ups[table.job] = table
        self.send(command, immediate=False)

    def fail(
        self, row: Calls | JobTable, error: BaseException, chosen: Sequence[int] | None = None
    ) -> None:
        """Fail those of the `chosen` items that are not over; None: all of them."""
        if isinstance(row, Calls):
            row.fail(error, list(row.open) if chosen is None else chosen)
        else:
            row.fail(error, chosen)
        self._retire(row)

    def cancel(self, what: Outstanding, chosen: Iterable[int]) -> None:
        """Cancel items: here at once, on the workers soon."""
        self._check_owner()
        if self._state == "closed":
            return
        if isinstance(what, Call):
            self._cancel(what.group, what, [what.index for _ in chosen])
        elif isinstance(what, JobTable):
            self._cancel(what, what, chosen)

    def _cancel(self, row: Calls | JobTable, what: Outstanding, chosen: Iterable[int]) -> None:
        # The server may hear of it late, or twice: then it must not stop what was run again since.
        run = what.run if isinstance(what, JobTable) else None
        newly = row.mark_cancelled(chosen)

        def cancel(store: Store) -> None:
            if not store.cancel(row.job, row.cancelled_items(), newly, run=run):
                self.warn(
                    f"Job {what.title!r} was not cancelled: another client had run it again"
                    f" before the server heard of it. q.attach({what.title!r}) shows it."
                )

        if newly:
            # A call that was still waiting must not begin after `cancel` has returned.
            self._tell_and_wait(cancel, lambda error: self.warn(str(error)))
        self._retire(row)

    def _tell_and_wait(
        self,
        do: Callable[[Store], object],
        fail: Callable[[BaseException], None],
        *,
        immediate: bool = True,
    ) -> None:
        """Have something done at the server, in its turn, and wait for that a moment."""
        is_over = locks.Event()

        def carry_out(store: Store) -> None:
            do(store)
            is_over.set()

        def refused(error: BaseException) -> None:
            fail(error)
            is_over.set()

        self.send(Command(carry_out, refused), immediate=immediate)
        is_over.wait(FAREWELL)

    def forget_job(self, job: str) -> None:
        """Let nothing more run of a named job that was deleted, and drop its dead letters."""
        self.ask(Store.cancel, job, EVERYTHING, EVERYTHING)
        self.ask(Store.forget_dead, self.ask(Store.letters_of, job))
        if table := self.table(job):
            self.cancel(table, range(len(table)))
            self.stop_growing(table)

    # -- waiting -------------------------------------------------------------------------------

    @interruptible
    def wait_until(
        self,
        what: Outstanding,
        is_reached: Callable[[], bool],
        timeout: float | None,
        *,
        beside: Sequence[Outstanding] = (),
    ) -> bool:
        """Wait until `is_reached`, which an event of `what` brings about; return whether it is.

        In a task, other tasks are run meanwhile. Warns if nothing can end the wait, and says how to
        cancel what was waited for when it is interrupted.

        Parameters
        ----------
        timeout
            Seconds to wait in all; None waits for ever.
        beside
            Other calls and jobs that the caller waits for, too.
        """
        if self._state == "foreign":
            self._check_owner()
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        if WorkerContext.current is not None:
            self.help_until(functools.partial(what.wait, is_reached), timeout, [what.lane])
        long_wait: LongWait | None = None
        began = time.monotonic()
        waits = Waits.begin(self, what)
        pause = min(waits.shows_after, PATIENCE)
        try:
            while True:
                now = time.monotonic()
                until = now + pause if deadline is None else min(deadline, now + pause)
                spin = len(self.outstanding) == 1 and what.n_items == 1
                if self._listener.lead(is_reached, until - now, spin=spin):
                    return True
                if what.wait(is_reached, max(0.0, until - time.monotonic())):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                if long_wait is None:
                    explain = functools.partial(self._explain, what)
                    long_wait = LongWait(waits, self, what, began, explain, PATIENCE)
                pause = long_wait.go_on()
        except KeyboardInterrupt as interrupt:
            interrupted(interrupt, self.cancel, beside or [what])
            raise
        finally:
            waits.add(what, time.monotonic() - began)
            if long_wait is not None:
                long_wait.end()

    def ask(
        self, question: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a method of `Store` returns, which can be called again.

        While the server can't be reached this waits, as calls do, and says so after a while.
        """
        return self.ask_within(math.inf, question, *args, **kwargs)

    def ask_within(
        self,
        patience: float,
        question: Callable[Concatenate[Store, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do as `ask`, and raise `ServerUnreachable` if the server is away for longer.

        Parameters
        ----------
        patience
            Seconds to wait at most. 0: ask twice at once, since the connection may be older than a
            restart of the server.
        """
        self._check_owner()
        begun, n_asked = time.monotonic(), 0
        while True:
            n_asked += 1
            try:
                with self._store_lock:
                    try:
                        return question(self._store, *args, **kwargs)
                    finally:
                        if self._state == "closed":  # after a shutdown, too, can be asked
                            self._store.close()
            except ServerUnreachable as error:
                away = time.monotonic() - begun
                is_closed = self._state == "closed"
                if n_asked > 1 and (is_closed or away >= patience):
                    raise
                if away > PATIENCE:
                    self.warn(f"waiting for the server: {error}")
                if n_asked > 1:
                    time.sleep(RECONNECT)

    def help_until(
        self, wait: Callable[[float], bool], timeout: float | None, lanes: Collection[str]
    ) -> None:
        """Run other tasks while this one waits, inside a worker."""
        if WorkerContext.current is not None:
            WorkerContext.current.help_until(wait, timeout, lanes)

    # -- why a wait may never end --------------------------------------------------------------

    def warn(self, text: str) -> None:
        """Warn of each thing once."""
        if text not in self._said:
            self._said.add(text)
            warn(text)

    def _explain(self, what: Outstanding) -> None:
        """Warn, once for each reason, if there is a reason why nothing happens."""
        workers, reason = self.survey(what)
        if reason:
            self.warn(f"waiting for {what.name}: {reason}")
        self.environments.warn_of(what.fn, workers)

    def survey(self, what: Outstanding) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the workers there are, and why none may run the calls; empty if one may."""
        if self.trouble:  # a server that is full may answer on another connection
            return {}, str(self.trouble)
        try:
            self.check_memory()
            # With another secret, neither this client nor its workers can do anything here.
            self.ask_within(0.0, Store.check_secret, write=False)
            workers = self.ask_within(0.0, Store.workers)
        except NbstreamqError as error:
            return {}, str(error)
        reason = self.workers.local.trouble or self.workers.obstacle(workers, what)
        return workers, reason or self._why_without_end(what) or self._why_vanished(what)

    def _why_without_end(self, what: Outstanding) -> str:
        """Say that a named job may get more items; fail it if it was deleted."""
        if not what.title or not isinstance(what, JobTable):
            return ""
        try:
            record = self.ask_within(0.0, Store.job_record, what.job)
        except NbstreamqError:
            return ""
        if record is None:
            self.fail(what, JobNotFound(f"Job {what.title!r} was deleted, or replaced."))
        if not what.growing or what.n_open:
            return ""
        return (
            f"job {what.title!r} has no end: its client is still submitting, or stopped before the"
            " last input. Run the cell that makes it again, to submit the rest."
        )

    def _why_vanished(self, what: Outstanding) -> str:
        """Say that the server holds nothing of a job any more, though some has no result.

        At the second look only: a result may be on its way.
        """
        try:
            is_there = self.ask_within(0.0, _has_tasks)
        except NbstreamqError:
            return ""
        n_left, name = what.n_open, what.title or what.name
        before, what.n_when_empty = what.n_when_empty, -1 if is_there else n_left
        if is_there or before != n_left or what.growing or what.is_over:
            return ""
        remedy = (
            f"q.map(..., name={name!r}, replace=True) runs it again"
            if what.title
            else "cancel() them, and submit them again"
        )
        return (
            f"{n_left:,} calls of {name} have no result, and nothing waits or runs on the server:"
            f" their messages were deleted there. They will never run; {remedy}."
        )

    # -- news ----------------------------------------------------------------------------------

    def take(self, event: Event) -> bool:
        """Take an event; False at the last one."""
        row, kind = self.outstanding.get(event.job), event.kind
        if row is None or kind == "wanted":
            return self._take_other(event)
        if isinstance(row, Calls):
            row.apply(event)
            if kind == "output":
                row.show(event)
            if not row.open:
                self._retire(row)
        elif row.expects(event):
            row.apply(event)
            if kind == "output":
                row.show(row.name, event)
            self._retire(row)
        else:
            self.large.discard(event)
        return True

    def catch_up(self, table: JobTable) -> None:
        """Tell a named job that is not registered what happened behind its `position`."""
        before = None
        while table.position != before:
            before = table.position
            table.position, events = self.ask(Store.history, table.job, before)
            for event in events:
                if table.expects(event):
                    table.apply(event)

    def _take_other(self, event: Event) -> bool:
        """Take an event that is not about items that are open; False at the last one."""
        if event.kind == _KIND_CLOSE:
            return False
        set_up = self._set_ups.get(event.job)
        if event.kind == "wanted":
            self._supply(self.outstanding.get(event.job, set_up), event.body.decode())
            return True
        self.large.discard(event)
        if set_up is not None and event.kind == "output":  # of a worker that joined later
            set_up.show(set_up.name, event)
        return True

    def _supply(self, row: Calls | JobTable | None, what: str) -> None:
        """Send what a worker asks for: see `Values.want`."""
        function = row.function if row else None
        if function is not None and function.digest == what:
            self._functions.send_again(function)
        elif is_file(what):
            path, _, size = what.rpartition(" ")
            self.large.send_copy((path, int(size)))
        elif not what:
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
        self.ask_within(0.0, Store.check_secret)
        if self.n_outstanding() > n_calls:
            self._on_refusal(self._data_lost())

    def _data_lost(self) -> DataLost:
        """Return the error of calls that the server has forgotten."""
        return DataLost(
            f"The server has lost the data of queue {self.queue!r}, this call's too;"
            " probably it was restarted without them. Calls can be submitted again, after what they"
            " need of everywhere() and put(). So that a server keeps its data: appendonly yes."
        )

    def _on_fault(self, event: Event, error: Exception) -> bool:
        """Take an event that `take` failed with once more; else what it is about fails."""
        logger.error("an event (%s) of %s failed here\n%s", event.kind, event.job, trace_of(error))
        if event.kind == _KIND_CLOSE:
            return False
        row = self.outstanding.get(event.job)
        if row is not None and event.kind in ("finished", "cancelled"):
            try:
                if refers(event.body):  # what it refers to can be read once
                    raise error
                row.apply(event)
            except Exception as second:  # noqa: BLE001 - whatever it is, it is about these items
                row.give_up(event, second)
            self._retire(row)
        return True

    def _retire(self, row: Calls | JobTable) -> None:
        """Forget calls that are over; end a session that waited for the last."""
        with self._lock:
            # Asked here: calls are added to those that are not over.
            is_open = row.open if isinstance(row, Calls) else not row.is_over
            if is_open or self.outstanding.get(row.job) is not row:
                return
            if isinstance(row, JobTable) and row.title:
                # What comes behind its end may reopen it: it must know how far it has heard.
                try_again = functools.partial(self._retire, row)
                if (position := self._listener.unfollow(row.job, try_again)) is None:
                    return
                row.position = position
            self.outstanding.pop(row.job)
            is_last = self._state == "closing" and not self.outstanding
        # At the interpreter's exit no thread can be started, and `abandon` ends the session.
        if is_last and not Session.interpreter_exits:
            threading.Thread(target=self._end_at_last, name="nbstreamq-closing").start()

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
        """Fail what is open if the server has lost it: nothing else would ever end it."""
        if self._sender.has_lost_data(functools.partial(self.ask_within, 0.0)):
            self._on_refusal(self._data_lost())

    def _on_refusal(self, error: BaseException) -> None:
        """Fail everything that is open: it is not known what the server has refused or lost."""
        self._functions.forget_sent()
        with self._lock:
            rows = list(self.outstanding.values())
        for row in rows:
            self.fail(row, error)

    def open(self) -> list[Outstanding]:
        """Return the calls and jobs that are not over."""
        found = list[Outstanding]()
        with self._lock:
            for row in self.outstanding.values():
                found += row.open.copy().values() if isinstance(row, Calls) else [row]
        return found

    def n_outstanding(self) -> int:
        """Return how many calls are open."""
        return sum(what.n_open for what in self.open())

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
            f"cannot schedule new futures after shutdown: make another TaskQueue ({self.queue!r})"
        )

    def _check_owner(self) -> None:
        if self._state == "foreign":
            raise forked(self.queue)

    def close(self, *, wait: bool, cancel: bool) -> None:
        """Take no further calls; end, and with `wait` return, when the open ones are over.

        With `cancel`, those that are not running yet, as far as is known, are cancelled.
        """
        if self._state in ("foreign", "closed"):
            return
        is_open = self.open()
        for what in is_open if cancel else ():
            self.cancel(what, [i for i in range(what.n_items) if what.state(i) is State.WAITING])
        for what in is_open:
            # Where inputs are taken as the results are, the results may never be taken.
            if isinstance(what, JobTable):
                self.stop_growing(what)
        with self._lock:
            self._state = "closing"
        remaining = self.open()
        if wait:
            for what in remaining:
                self.wait_until(what, what.check_over, None, beside=remaining)
        if wait or not remaining:
            # All calls are over: what is left to send is not worth waiting for a lost server.
            self._end(FAREWELL if self.trouble else None)
        if wait:  # another thread may be at it, since the last call was over
            self._has_ended.wait()

    def _end(self, farewell: float | None = None, *, wait: bool = True) -> None:
        """Close all connections; `farewell` bounds the seconds that the server may take.

        With `wait`, local workers that no other queue uses have ended when it returns.
        """
        last = Event(kind=_KIND_CLOSE, job=self.id, n=0, worker="")
        say_so = Command(lambda store: store.publish([last], own=True), _ignore)
        steps: tuple[Callable[[], object], ...] = (
            self.large.close,
            functools.partial(self.send, say_so, immediate=False),
            functools.partial(self._sender.close, farewell),
            functools.partial(self._listener.close, farewell or FAREWELL),
            functools.partial(self.workers.close, wait=wait),
            self._close_store,
            *([self._purpose.tunnel.close] if self._purpose.tunnel else []),
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
        """End in a thread of its own, which has to try again by itself."""
        try:
            self._end()
        except Exception:
            logger.exception("closing a queue is tried again")
            self._end()

    def _close_store(self) -> None:
        with self._store_lock:
            self._store.close()

    # -- the interpreter's exit ----------------------------------------------------------------

    def unnamed(self) -> list[Outstanding]:
        """Return the calls and jobs without a name that have open calls."""
        if self._state in ("closed", "foreign", "leaving"):
            return []
        # Where inputs are taken as the results are, a job may stay open without open calls.
        return [what for what in self.open() if what.n_open and not what.title]

    def is_busy(self) -> bool:
        """Return whether the exit has to wait: for calls, callbacks, or what is to be sent."""
        if self._state in ("closed", "foreign", "leaving"):
            return False
        return bool(self.unnamed() or self.is_delivering or self.is_sending)

    @property
    def is_sending(self) -> bool:
        """Whether something waits to be sent, or is being sent."""
        return self._sender.is_busy

    @property
    def is_delivering(self) -> bool:
        """Whether events are being dealt with, callbacks included."""
        return self._listener.is_delivering

    def begin_exit(self) -> None:
        """Take calls only of threads that end: the interpreter exits."""
        with self._lock:
            if self._state == "open":
                self._state = "exiting"

    def drop(self) -> int:
        """Cancel the open calls, and take no further ones; return how many were open."""
        dropped = self.unnamed()
        with self._lock:
            if self._state not in ("open", "exiting", "closing"):
                return 0
            self._state = "leaving"
        n = sum(size(what.mark_cancelled(range(what.n_items))) for what in dropped)
        if n:
            cancel = functools.partial(Store.cancel, job=self.id, span=EVERYTHING, newly=EVERYTHING)
            self._tell_and_wait(cancel, _ignore, immediate=False)
            say(f"dropped {count_calls(n)} of queue {self.queue!r}.")
        return n

    def abandon(self) -> None:
        """End at the interpreter's exit."""
        self.drop()
        self._end(FAREWELL, wait=False)

    def forget(self) -> None:
        """In a forked process: have nothing to do with the parent's connections."""
        self._state = "foreign"
        self._lock, self.calls_lock = threading.Lock(), threading.RLock()
        # In its place: futures refer to it.
        self.condition.__init__(self.calls_lock)  # type: ignore[misc]
        self.workers.forget()
        self.large.forget()
        for what in self.open():
            what.orphan(forked(self.queue), self.calls_lock)


def _ignore(_error: BaseException) -> None:
    """Go on after a command that the server refused, which nothing depends on."""


def _has_tasks(store: Store) -> bool:
    own = map(lane_of, store.workers())
    return store.has_tasks([*store.known_lanes(), *own])


def count_calls(n: int) -> str:
    """Return a number of open calls in words."""
    return f"{n:,} open calls" if n != 1 else "1 open call"
