"""Runs the items of one delivery, in this thread, for a slice of time. Knows nothing of Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, GeneratorType
from typing import Any

from ..errors import TimeLimitExceeded
from ..objects.payloads import load
from ..objects.remote_errors import dump_error
from ..protocol.messages import Options, Task
from ..protocol.settlement import Delivery
from ..protocol.spans import Span, items, size, span_of
from .output import Output
from .slots import Slot, Stop

__all__ = ["Run", "Runner", "Stopped"]

#: Seconds after which the rest of a chunk goes back to its lane. Longer costs fewer messages;
#: shorter balances sooner and shows progress sooner.
SLICE = 0.1
#: Seconds that an item takes before what others than Python code printed in it is looked for at
#: once. Shorter costs very short items more; what they print is taken for their successor's.
LOOK = 1e-4


class Stopped(BaseException):
    """Raised inside a task that is cancelled or over its time limit."""

    def __init__(self, serial: int, why: Stop) -> None:
        super().__init__(why.name.lower())
        self.serial = serial
        self.why = why


@dataclass(slots=True)
class Run:
    """What came of the items of one delivery.

    Attributes
    ----------
    started, seconds
        When it began, by the wall clock, and how long it took.
    done, values, errors
        The items that are over, in order; what each returned; position in `done` -> dumped error.
    cancelled
        Items that were stopped because somebody cancelled them.
    rest
        What was not begun when the slice was over.
    stopped
        Set when a waiting task further down the stack is stopped: to be raised again there.
    """

    started: float
    seconds: float = 0.0
    done: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    errors: dict[int, bytes] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    rest: Span = ()
    stopped: Stopped | None = None

    def fail(self, item: int, error: bytes) -> None:
        """Add an item that failed."""
        self.errors[len(self.done)] = error
        self.done.append(item)
        self.values.append(None)


@dataclass(slots=True, kw_only=True)
class _Work:
    """A delivery in the runner's hands: what is to be called with what, and what came of it."""

    task: Task
    one: Callable[[Any], Any]
    args: Sequence[Any]
    left: Iterator[int]
    at: int
    time_limit: float
    run: Run


def _caller(call: str, fn: Callable[..., Any]) -> Callable[[Any], Any]:
    if call == "map":
        return fn
    if call == "starmap":
        return lambda item: fn(*item)
    if call == "calls":  # each unpickled by itself: what fails of one is its own

        def one(item: bytes) -> Any:
            args, kwargs = load(item)
            return fn(*args, **kwargs)

        return one
    return lambda item: fn(*item[0], **item[1])


class Runner:
    """Runs items, and raises `Stopped` in the one that the supervisor wants stopped.

    Parameters
    ----------
    slot
        Where the supervisor sees what runs.
    output
        Is told which item runs.
    """

    def __init__(self, slot: Slot, output: Output) -> None:
        self._slot = slot
        self._output = output
        self._serial = 0
        #: Serials of the running items, outermost first; a 0 on top: user code does not run now.
        self._serials = [0]
        #: Where each of them stands in the slot.
        self._places = [0]

    def on_stop_signal(self, _signal: int, _frame: FrameType | None) -> None:
        """Stop the running item, if it is still the one that shall be stopped."""
        # Elsewhere than in user code an exception could tear a message apart: `check_stop` follows.
        if self._serials[-1]:
            self.check_stop()

    def check_stop(self) -> None:
        """Raise `Stopped` if a running or waiting item shall be stopped."""
        serial, item, why = self._slot.stop_request()
        for at, running in zip(self._places, self._serials, strict=True):
            if running == serial != 0 and self._slot.words[at] == item:
                raise Stopped(serial, why)

    def hold(self, delivery: Delivery) -> None:
        """Say that a delivery is unpickled, run and packed: each of these may kill the process.

        Until `release`. An exception that nobody foresaw ends the worker: the slot goes on saying
        what it held, so that the delivery is charged with it, and does not come back for ever.
        """
        task = delivery.task
        entry = (delivery.lane, delivery.entry_id, task.job, task.n)
        memory_limit = int(Options.decode(task.opts).memory_limit or 0)
        self._places.append(self._slot.push(entry, memory_limit))
        self._serials.append(0)

    def release(self) -> None:
        """Say that the delivery that is held is over."""
        self._serials.pop()
        self._places.pop()
        self._slot.pop()

    @contextmanager
    def helping(self) -> Iterator[None]:
        """While the running item waits for others: not in user code."""
        item = self._output.item
        self._serials.append(0)
        self._places.append(0)
        try:
            yield
        finally:
            self._serials.pop()
            self._places.pop()
            self._output.item = item

    def run(self, task: Task, fn: Callable[..., Any], args: Sequence[Any], todo: Span) -> Run:
        """Run items of the task that is held until a slice of time is over; at least one is tried.

        Parameters
        ----------
        fn, args
            The function, and all items of the task's payload.
        todo
            Which of them.
        """
        begun = time.monotonic()
        at = self._places[-1]
        work = _Work(
            task=task,
            one=_caller(task.call, fn),
            args=args,
            left=items(todo),
            at=at,
            time_limit=Options.decode(task.opts).time_limit or 0.0,
            run=Run(started=time.time()),
        )
        try:
            while self._run_until_stopped(work) and time.monotonic() < begun + SLICE:
                pass
        finally:
            self._slot.rest(at)
        run = work.run
        if run.stopped:
            run.rest = span_of([self._output.item, *work.left])
        elif len(run.done) + len(run.cancelled) < size(todo):
            run.rest = span_of(work.left)
        run.seconds = time.monotonic() - begun
        return run

    def _run_until_stopped(self, work: _Work) -> bool:
        """Run items; return whether it ended because one of them was stopped."""
        try:
            self._run_items(work)
        except Stopped as stop:
            mine, self._serials[-1] = self._serials[-1], 0
            item = self._output.item
            if stop.serial != mine:
                work.run.stopped = stop
                return False
            if stop.why is Stop.CANCELLED:
                work.run.cancelled.append(item)
            else:
                work.run.fail(item, _over_time(work, item, stop))
            return True
        return False

    def _run_items(self, work: _Work) -> None:
        """The hot loop: a microsecond here is a microsecond for every item."""
        slot, output, serials, words = self._slot, self._output, self._serials, self._slot.words
        at, one, args, time_limit = work.at, work.one, work.args, work.time_limit
        done, values, clock = work.run.done, work.run.values, time.monotonic
        now = clock()
        end = now + SLICE
        self._serial = serial = self._serial + 1
        slot.begin(at, serial, now, time_limit)
        for item in work.left:
            if time_limit:
                # Before the item: else its predecessor's deadline would be taken for its own.
                slot.begin(at, serial, now, time_limit)
            words[at] = output.item = item
            serials[-1] = serial
            try:
                value = one(args[item])
                if type(value) is GeneratorType:
                    value = list(value)
            except Stopped:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                serials[-1] = 0
                work.run.fail(item, dump_error(error, task=work.task.id_of(item)))
            else:
                serials[-1] = 0
                done.append(item)
                values.append(value)
            before, now = now, clock()
            if now - before > LOOK:
                output.look()
            if now > end:
                return


def _over_time(work: _Work, item: int, stop: Stopped) -> bytes:
    task_id = work.task.id_of(item)
    error = TimeLimitExceeded(
        f"Task {task_id} ({work.task.name}) ran longer than its time_limit of {work.time_limit:g} s"
        " and was stopped. Raise the limit, or split the work.",
        task=task_id,
    )
    return dump_error(error.with_traceback(stop.__traceback__), task=task_id)
