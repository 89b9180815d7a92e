"""Run the items of a delivery in this thread, for a slice of time; stop those that must stop."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType, GeneratorType
from typing import Any, NoReturn

from ..objects import random_numbers
from ..objects.pickling import load
from ..objects.remote_errors import definition_of, dump_error
from ..tracebacks import trace_of
from ..wire.item_ranges import ItemRanges, items, ranges_of
from ..wire.messages import Options, Task
from ..wire.settlement import Delivery
from ..worker_context import WorkerContext
from .limits import stop_error
from .output import Output
from .process_groups import has_started
from .slot import DEPTH, NO_ITEM, SERIAL, Slot, Stop

logger = logging.getLogger(__name__)

#: Seconds after which the rest of a chunk goes back to its lane. Longer costs fewer messages;
#: shorter balances sooner and shows progress sooner.
SLICE = 0.1
#: Seconds of short items that share a look at the clock: in between other code a look costs ten
#: times as much as in an empty loop. Longer notices later that a slice is over.
LOOK = 0.005


class Stopped(BaseException):
    """Raised inside a task that is cancelled or over its time limit."""

    def __init__(self, serial: int, item: int, why: Stop) -> None:
        super().__init__(why.name.lower())
        self.serial = serial
        self.item = item
        self.why = why


@dataclass(slots=True)
class Run:
    """The outcomes of the items of a delivery.

    Attributes
    ----------
    started, seconds
        When it began, by the wall clock, and how long it took.
    done, values, errors
        The items that are over, in order, as ranges; what each returned; position in `values` ->
        dumped error.
    cancelled
        Items that were stopped because they were cancelled.
    rest
        Items that had not begun when the slice was over.
    handed_back
        Items that had begun and were stopped because the worker has to end, and whether they have
        stored a state.
    stopped
        Set when a waiting task further down the stack is stopped: to be raised again there.
    """

    started: float
    seconds: float = 0.0
    done: list[range] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    errors: dict[int, bytes] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    rest: ItemRanges = ()
    handed_back: dict[int, bool] = field(default_factory=dict)
    stopped: Stopped | None = None
    _items: list[int] = field(default_factory=list)

    def item(self, position: int) -> int:
        """Return the item of the value at `position`."""
        if len(self._items) != len(self.values):
            self._items = list(items(self.done))
        return self._items[position]

    def without_errors(self) -> Run:
        """Return the run without the items that failed."""
        kept = [k for k in range(len(self.values)) if k not in self.errors]
        done, values = [*ranges_of(map(self.item, kept))], [self.values[k] for k in kept]
        return replace(
            self, done=done, values=values, errors={}, cancelled=[], stopped=None, _items=[]
        )

    def fail(self, error: bytes) -> None:
        """Note an error in place of the next value."""
        self.errors[len(self.values)] = error
        self.values.append(None)


@dataclass(slots=True, kw_only=True)
class _Work:
    """A delivery that is running: what to call with which items, and the outcomes.

    An item is over once `run` has its value; in `commit`, later, it is taken from what is `left`.
    `n_together` share a look at the clock.
    """

    task: Task
    fn: Callable[..., Any]
    one: Callable[[Any], Any]
    args: Sequence[Any]
    left: deque[range]
    at: int
    time_limit: float
    run: Run
    n_committed: int = 0
    n_together: int = 1

    def next(self) -> range:
        """Return the next items, all of one range; an empty range if all are over."""
        n_over = len(self.run.values) - self.n_committed
        if self.left and n_over == len(self.left[0]):
            self.commit()
            n_over = 0
        return self.left[0][n_over : n_over + self.n_together] if self.left else range(0)

    def commit(self) -> None:
        """Note which items are over; they are all of the first range that is left.

        No call that may fail is in between: all of it happens, or nothing.
        """
        n, done = len(self.run.values) - self.n_committed, self.run.done
        if not n:
            return
        over, rest = self.left[0][:n], self.left[0][n:]
        if done and done[-1].stop == over.start:
            done[-1] = range(done[-1].start, over.stop)
        else:
            done.append(over)
        if rest:
            self.left[0] = rest
        else:
            self.left.popleft()
        self.n_committed += n

    def cut(self, n: int) -> range:
        """Remove the next `n` items, which are of one range, from what is left, and return them."""
        first = self.left.popleft()
        if n < len(first):
            self.left.appendleft(first[n:])
        return first[:n]


def caller(call: str, fn: Callable[..., Any]) -> Callable[[Any], Any]:
    if call == "map":
        return fn
    if call == "starmap":
        return lambda item: fn(*item)
    if call == "calls":  # Each is unpickled by itself: one that fails does not harm others.

        def one(item: bytes) -> Any:
            args, kwargs = load(item)
            return fn(*args, **kwargs)

        return one
    return lambda item: fn(*item[0], **item[1])


def dump_raised(error: BaseException, fn: Callable[..., Any], task_id: str) -> bytes:
    """Return the error of an item as bytes, with frames of the user's functions only.

    If none of their lines raised it, as with wrong arguments, the error shows the definition.
    """
    # Don't ask the error itself: its class may raise.
    place = vars(BaseException)["__traceback__"]
    trace = place.__get__(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_globals.get("__package__") == __package__:
        place.__set__(error, definition_of(fn))
    return dump_error(error, task=task_id)


def dump_stop(task: Task, stop: Stopped) -> bytes:
    """Return the error of an item that was stopped, but not because it was cancelled."""
    error = stop_error(task, stop.item, stop.why).with_traceback(stop.__traceback__)
    return dump_error(error, task=task.id_of(stop.item))


class Runner:
    """Runs items, and raises `Stopped` in the one that the supervisor wants stopped.

    Parameters
    ----------
    slot
        Where the supervisor sees what runs.
    output
        Is told which item runs.

    Attributes
    ----------
    is_torn
        Whether an item was stopped in the middle of something that outlives it, such as an import:
        nothing else may run in this process.
    slice
        Seconds after which the rest of a chunk goes back; 0: after one item.
    after_stop
        Called when an item was stopped, before another one begins.
    """

    def __init__(self, slot: Slot, output: Output) -> None:
        self.is_torn = False
        self.after_stop: Callable[[], object] = output.look
        self.slice = SLICE
        self._slot = slot
        self._output = output
        self._serial = 0
        #: Serials of the running items, outermost first; a 0 on top while no user code runs.
        self._serials = [0]
        #: The serial of the last step of a coroutine.
        self._step = 0
        #: Where the words of each begin in the slot.
        self._places = [0]
        #: Not empty if the delivery takes long.
        self._long: list[bool] = []
        self._is_fork = False
        self._n_shields, self._is_put_off = 0, False

    def on_stop_signal(self, _signal: int, frame: FrameType | None) -> None:
        """Stop the running item, if it is still the one that is to stop."""
        # Outside of user code an exception could break a message: `check_stop` raises it later.
        if self._n_shields:
            self._is_put_off = True
        elif self._serials[-1] == self._step != self._slot.stop_request()[0]:
            return  # The task that waits below the event loop looks by itself.
        elif self._serials[-1]:
            try:
                self.check_stop()
            except Stopped:
                if not _is_plain(frame):
                    self.is_torn = True
                    self._long.append(True)  # Even if the task catches it, no other item runs.
                raise

    def put_off(self, puts_off: bool) -> None:
        """Put off stops, or allow them again and make up for one. Calls may be nested."""
        self._n_shields += 1 if puts_off else -1
        if self._is_put_off and not self._n_shields:
            self._is_put_off = False
            self.on_stop_signal(0, sys._getframe())  # noqa: SLF001 - documented, in spite of its name

    def check_stop(self) -> None:
        """Raise `Stopped` if a running or waiting item is to stop."""
        serial, item, why = self._slot.stop_request()
        for at, running in zip(self._places, self._serials, strict=True):
            if running == serial != 0 and self._slot.words[at] == item:
                raise Stopped(serial, item, why)

    def watch(self) -> None:
        """Run the rest of the delivery item by item: it takes long."""
        if not self._long:
            self._long.append(True)

    def forked(self) -> None:
        """End this process, which a task has forked, when the code of the task ends."""
        self._is_fork = True
        self._long.append(True)  # No other item runs here.

    def hold(self, delivery: Delivery) -> None:
        """Note in the slot that a delivery is being loaded, run and dumped: each may kill us.

        This holds until `release`, or `restore` if there is an exception.
        """
        task, memory_limit, is_limited = delivery.task, 0, False
        if task.opts:
            options = Options.decode(task.opts)
            memory_limit = options.memory_limit_of(task.attempt)
            is_limited = bool(options.time_limit or memory_limit)
        self._places.append(
            self._slot.push(
                delivery.lane,
                delivery.entry_id,
                task.job,
                task.n,
                task.run,
                memory_limit=memory_limit,
                is_limited=is_limited,
            )
        )
        self._serials.append(0)

    def begin_step(self, delivery: Delivery, item: int, deadline: float) -> None:
        """Note in the slot that the code of a coroutine runs; it may be stopped until `end_step`.

        Parameters
        ----------
        deadline
            When it must be over, by the monotonic clock; 0: no limit.
        """
        slot, task = self._slot, delivery.task
        at = slot.push(delivery.lane, delivery.entry_id, task.job, task.n, task.run)
        self._serial = self._step = serial = self._serial + 1
        slot.set_since(at, time.monotonic())
        slot.set_deadline(at, deadline)
        slot.begin(at, serial)
        slot.words[at] = item
        self._places.append(at)
        self._serials.append(serial)  # From here on a stop may come.

    def end_steps(self, before: tuple[int, int]) -> None:
        """Note that the code of the coroutine pauses, or is over.

        Parameters
        ----------
        before
            What `level` was before `begin_step`.
        """
        del self._serials[before[0] :], self._places[before[0] :]
        self._slot.words[DEPTH] = before[1]
        if self._is_fork:
            _end_fork()

    @property
    def level(self) -> tuple[int, int]:
        """How high its stack is, and that in the slot."""
        return len(self._serials), self._slot.words[DEPTH]

    def release(self) -> None:
        """Note in the slot that the delivery is over."""
        self._serials.pop()
        self._places.pop()
        self._slot.words[DEPTH] -= 1

    def restore(self, depth: int) -> None:
        """Hold only the outer `depth` deliveries, which all wait; an error has ended the rest."""
        n = 1 + 2 * depth  # Each has a serial, and a 0 on top of it while it waits.
        del self._places[n:], self._serials[n:]
        self._slot.restore(depth)

    def waits(self, stop: Stopped) -> bool:
        """Return whether `stop` is for a task further down the stack."""
        return stop.serial in self._serials[:-1]

    def help(self, run_others: Callable[[], None]) -> None:
        """Call `run_others` while the running item waits and none of its code runs."""
        item, n = self._output.item, len(self._serials)
        self._serials.append(0)
        self._places.append(0)
        try:
            run_others()
        finally:  # No call is here, because it could fail.
            self._output.item = item
            del self._places[n:]
            del self._serials[n:]  # This is last: from here on a stop may come.

    def call(
        self, task: Task, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, Run | None]:
        """Call `fn` for the task that is held, which has one item and no options.

        Returns
        -------
        tuple
            What it returned, and None; or None, and the run of an item that raised or was stopped.
        """
        serials, words, at = self._serials, self._slot.words, self._places[-1]
        self._serial = serial = self._serial + 1
        started = time.time()
        try:
            words[at + SERIAL], words[at] = serial, 0
            serials[-1] = serial  # From here on a stop may come,
            try:
                value = fn(*args, **kwargs)
                if type(value) is GeneratorType:
                    value = list(value)
            finally:
                serials[-1] = 0  # and until here.
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            return None, self._run_of_error(task, fn, error, started)
        if self._is_fork:
            _end_fork()
        words[at] = NO_ITEM
        return value, None

    def _run_of_error(
        self, task: Task, fn: Callable[..., Any], error: BaseException, started: float
    ) -> Run:
        """Return the run of a plain call that ended with `error`."""
        self._serials[-1], at = 0, self._places[-1]
        if self._is_fork:
            _end_fork(error)
        run = Run(started=started)
        # Not by isinstance(), which asks an error of user code for its class.
        if type(error) is Stopped and error.serial == self._slot.words[at + SERIAL]:
            self._clean_up_after_stop(task, at, started)
            if error.why is Stop.HANDED_BACK:
                run.handed_back = {0: self._slot.has_progress}
            elif error.why is Stop.TOO_DEEP:
                run.done = [range(1)]
                run.fail(dump_stop(task, error))
            else:
                run.cancelled = [0]  # It has no limits.
            return run
        self._slot.rest(at)
        run.done = [range(1)]
        run.fail(dump_raised(error, fn, task.id_of(0)))
        return run

    def _clean_up_after_stop(self, task: Task, at: int, started: float) -> None:
        """Clean up after an item that was stopped; `started` is by the wall clock.

        Nobody waits for what it has submitted: that is cancelled.
        """
        self._n_shields, self._is_put_off = 0, False
        self._slot.rest(at)
        WorkerContext.cancel_calls(task)
        self.after_stop()
        # Processes that it has started end with this one.
        self.is_torn = self.is_torn or has_started(time.time() - started)

    def run(self, task: Task, fn: Callable[..., Any], args: Sequence[Any], todo: ItemRanges) -> Run:
        """Run items of the task that is held until a slice of time is over, but at least one.

        Parameters
        ----------
        fn, args
            The function, and all items of the task's payload.
        todo
            Which of them.
        """
        begun = time.monotonic()
        at = self._places[-1]
        self._long.clear()
        try:
            options = Options.decode(task.opts)
            one = caller(task.call, fn)
            if options.seed is not None:
                one = self._seeded(one, task, options.seed)
            work = _Work(
                task=task,
                fn=fn,
                one=one,
                args=args,
                left=deque(todo),
                at=at,
                time_limit=options.time_limit or 0.0,
                run=Run(started=time.time()),
            )
            is_apart = options.seed is not None or random_numbers.is_seeded()
        except BaseException as error:  # noqa: BLE001 - our own code: one item is charged with it
            first, *others = items(todo)
            run = Run(started=time.time(), done=[range(first, first + 1)], rest=ranges_of(others))
            run.fail(dump_error(error, task=task.id_of(first)))
            return run
        try:
            if is_apart:
                with random_numbers.own_state():
                    self._run_slice(work, begun + self.slice)
            else:
                self._run_slice(work, begun + self.slice)
            self._slot.rest(at)
        except BaseException as error:  # noqa: BLE001 - not of an item, whose errors end there
            self._charge_next(work, error)
        work.run.rest = tuple(work.left)
        work.run.seconds = time.monotonic() - begun
        return work.run

    def _seeded(
        self, one: Callable[[Any], Any], task: Task, seed: random_numbers.Seed
    ) -> Callable[[Any], Any]:
        """Return a function that gives an item its random numbers, and calls it."""
        output = self._output

        def call(value: Any) -> Any:
            random_numbers.begin(seed, task.n + output.item)
            found = one(value)
            return list(found) if type(found) is GeneratorType else found

        return call

    def _run_slice(self, work: _Work, end: float) -> None:
        while self._run_until_stopped(work) and time.monotonic() < end:
            pass

    def _run_until_stopped(self, work: _Work) -> bool:
        """Run items; return whether to go on after one of them was stopped."""
        try:
            self._run_items(work)
            if self._is_fork:
                _end_fork()
        except Stopped as stop:
            mine, self._serials[-1] = self._serials[-1], 0
            self._clean_up_after_stop(work.task, work.at, work.run.started)
            work.commit()
            if stop.serial != mine:
                work.run.stopped = stop
                return False
            if not work.left or work.left[0].start != stop.item:
                return not self.is_torn  # It was over before it was stopped.
            if stop.why is Stop.HANDED_BACK:
                work.run.handed_back = {stop.item: self._slot.has_progress}
                work.cut(1)
                return False
            if stop.why is Stop.CANCELLED:
                work.run.cancelled += work.cut(1)
            else:
                work.run.fail(dump_stop(work.task, stop))
                work.commit()
            return not self.is_torn
        work.commit()
        return False

    def _charge_next(self, work: _Work, error: BaseException) -> None:
        """Fail the item that was running when our own code failed; earlier results are kept."""
        self._serials[-1] = 0
        self._slot.rest(work.at)
        work.commit()
        if work.left:
            item = work.left[0].start
            task_id = work.task.id_of(item)
            logger.error("task %s failed around its call\n%s", task_id, trace_of(error))
            work.run.fail(dump_error(error, task=task_id))
            work.commit()

    def _is_stop(self, error: BaseException, item: int) -> bool:
        """Return whether the running `item` was stopped, or one that waits for it.

        An item may keep the exception of an earlier stop, and a later item may raise it again.
        """
        if self._is_fork:
            _end_fork(error)
        # Not by isinstance(), which asks an error of user code for its class.
        if type(error) is not Stopped or error.serial not in self._serials:
            return False
        return error.serial != self._serials[-1] or error.item == item

    def _run_items(self, work: _Work) -> None:
        """Run items in the hot loop, where a microsecond counts for each item.

        Short items share a look at the clock. While they run, `Stopped` may be raised anywhere.
        """
        output, serials, words, at = self._output, self._serials, self._slot.words, work.at
        one, args, run, clock, long = work.one, work.args, work.run, time.monotonic, self._long
        append = run.values.append
        self._serial = serial = self._serial + 1
        now = clock()
        end, block = now + self.slice, work.next()
        self._slot.begin(at, serial)
        while block:
            if work.time_limit:
                # Before the item is set: else it would seem to have the deadline of the last one.
                self._slot.set_deadline(at, now + work.time_limit)
            serials[-1] = serial
            for item in block:
                words[at] = output.item = item
                try:
                    value = one(args[item])
                    if type(value) is GeneratorType:
                        value = list(value)
                except BaseException as error:  # whatever a task raises is its outcome
                    if self._is_stop(error, item):
                        raise
                    serials[-1] = 0
                    run.fail(dump_raised(error, work.fn, work.task.id_of(item)))
                    serials[-1] = serial
                else:
                    append(value)
                if long:
                    break
            serials[-1] = 0
            before, now = now, clock()
            if now > end:
                return
            block = self._next_block(work, len(block), now - before, now)

    def _next_block(self, work: _Work, n_run: int, seconds: float, now: float) -> range:
        """Return the next items, after `n_run` took `seconds`, and look at what these printed.

        While C code or subprocesses print, each item comes alone.
        """
        if self._is_fork:
            _end_fork()
        if self.is_torn:
            return range(0)
        if seconds > LOOK / 2:
            work.n_together = max(1, work.n_together // 2)
        elif n_run == work.n_together and not (work.time_limit or self._long):
            work.n_together *= 2
        block, output = work.next(), self._output
        output.put_streams_back()
        if block and now - output.looked > output.pause:
            output.look()
        return block if output.pause else block[:1]


def _is_plain(frame: FrameType | None) -> bool:
    """Return whether only the task's function runs, and code that its notebook defines.

    Code of an imported module may be stopped half-way through an import or a first set-up, or while
    it holds a lock, and everything that runs later in this process would suffer. Our own code is
    made for stops.
    """
    frames = []
    while frame is not None and frame.f_code not in CALLERS:
        if not str(frame.f_globals.get("__name__")).startswith("nbstreamq."):
            frames.append(frame)
        frame = frame.f_back
    return not any(map(_is_of_module, frames[:-1]))  # The last is the task's function.


def _is_of_module(frame: FrameType) -> bool:
    module = sys.modules.get(str(frame.f_globals.get("__name__")))
    is_import = frame.f_code.co_filename.startswith("<frozen importlib")
    return is_import or getattr(module, "__dict__", None) is frame.f_globals


#: The frames below these are a task's.
CALLERS = {Runner.call.__code__, Runner._run_items.__code__}  # noqa: SLF001


def _end_fork(error: BaseException | None = None) -> NoReturn:
    """End a process that a task has forked as Python ends one: only its parent is a worker."""
    status = 0 if error is None else 1
    try:
        if error is not None and issubclass(type(error), SystemExit):
            code: Any = error.code  # type: ignore[attr-defined]
            status = code if isinstance(code, int) else int(code is not None)
            if code is not None and not isinstance(code, int):
                sys.stderr.write(f"{code}\n")
        elif error is not None:
            sys.stderr.write(trace_of(error))
        sys.stdout.flush()
    finally:  # The methods of the error may raise.
        os._exit(status)
