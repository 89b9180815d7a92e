"""Runs the items of one delivery, in this thread, for a slice of time. Knows nothing of Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, GeneratorType
from typing import Any

from ..errors import TimeLimitExceeded
from ..objects.remote_errors import dump_error
from ..protocol.messages import Task
from ..protocol.spans import Span, items, size, span_of
from .output import Output
from .slots import Slot, Stop

__all__ = ["Run", "Runner", "Stopped"]

#: Seconds after which the rest of a chunk goes back to its lane. Longer costs fewer messages;
#: shorter balances sooner and shows progress sooner.
SLICE = 0.1


class Stopped(BaseException):
    """Raised inside a task that is cancelled or over its time limit."""

    def __init__(self, serial: int, why: Stop) -> None:
        super().__init__(why.name.lower())
        self.serial = serial
        self.why = why


@dataclass
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


def _caller(call: str, fn: Callable[..., Any]) -> Callable[[Any], Any]:
    if call == "map":
        return fn
    if call == "starmap":
        return lambda item: fn(*item)
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

    def run(
        self,
        task: Task,
        entry: tuple[str, bytes],
        fn: Callable[..., Any],
        args: Sequence[Any],
        todo: Span,
        time_limit: float | None,
    ) -> Run:
        """Run the items `todo` of `task` until a slice of time is over; at least one is tried.

        Parameters
        ----------
        entry
            Lane and entry id, for the supervisor.
        fn, args
            The function, and all items of the task's payload.
        time_limit
            Seconds that each item may take.
        """
        run = Run(started=time.time())
        begun = time.monotonic()
        at = self._slot.push((*entry, task.job, task.n))
        self._serials.append(0)
        self._places.append(at)
        left = items(todo)
        try:
            while self._run_until_stopped(task, run, _caller(task.call, fn), args, left, at, time_limit):
                if time.monotonic() > begun + SLICE:
                    break
        finally:
            self._serials.pop()
            self._places.pop()
            self._slot.pop()
        if run.stopped:
            run.rest = span_of([self._output.item, *left])
        elif len(run.done) + len(run.cancelled) < size(todo):
            run.rest = span_of(left)
        run.seconds = time.monotonic() - begun
        return run

    def _run_until_stopped(
        self,
        task: Task,
        run: Run,
        one: Callable[[Any], Any],
        args: Sequence[Any],
        left: Iterator[int],
        at: int,
        time_limit: float | None,
    ) -> bool:
        """Run items; return whether it ended because one of them was stopped."""
        try:
            self._run_items(task, run, one, args, left, at, time_limit or 0.0)
        except Stopped as stop:
            mine, self._serials[-1] = self._serials[-1], 0
            item = self._output.item
            if stop.serial != mine:
                run.stopped = stop
                return False
            if stop.why is Stop.CANCELLED:
                run.cancelled.append(item)
            else:
                run.fail(item, _over_time(task.id_of(item), task.name, time_limit or 0.0, stop))
            return True
        return False

    def _run_items(
        self,
        task: Task,
        run: Run,
        one: Callable[[Any], Any],
        args: Sequence[Any],
        left: Iterator[int],
        at: int,
        time_limit: float,
    ) -> None:
        """The hot loop: a microsecond here is a microsecond for every item."""
        slot, output, serials, words = self._slot, self._output, self._serials, self._slot.words
        clock = time.monotonic
        done, values = run.done, run.values
        now = clock()
        end = now + SLICE
        self._serial = serial = self._serial + 1
        slot.begin(at, serial, now, time_limit)
        for item in left:
            words[at] = output.item = item
            if time_limit:
                slot.begin(at, serial, now, time_limit)
            serials[-1] = serial
            try:
                value = one(args[item])
                if type(value) is GeneratorType:
                    value = list(value)
            except Stopped:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
                serials[-1] = 0
                run.fail(item, dump_error(error, task=task.id_of(item)))
            else:
                serials[-1] = 0
                done.append(item)
                values.append(value)
            now = clock()
            if now > end:
                return


def _over_time(task_id: str, name: str, time_limit: float, stop: Stopped) -> bytes:
    error = TimeLimitExceeded(
        f"Task {task_id} ({name}) ran longer than its time_limit of {time_limit:g} s and was stopped."
        " Raise the limit, or split the work.",
        task=task_id,
    )
    return dump_error(error.with_traceback(stop.__traceback__), task=task_id)
