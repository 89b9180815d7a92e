"""Run coroutines in an event loop of the main thread, several at the same time.

::

    delivery ──start──> chunk: an asyncio task for each item ──all are over──> settlement
                                   │      ^
                                   step ──┘   the slot names it, if the process dies

The loop runs while the worker waits: `TaskWorker` calls `run` instead of waiting on the server, and
in between it takes and settles, and runs the plain functions that coroutines wait for.

A worker is full when its coroutines weigh 1: each weighs 1 / `concurrency`, and a plain function
weighs 1. What does not fit goes back, and nothing more is taken until there is room for it. Each
depth of nested tasks is counted by itself, so what a coroutine waits for always finds room.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..objects import random_numbers
from ..objects.remote_errors import dump_error
from ..wire.item_ranges import items, ranges_of, size
from ..wire.keys import MAX_DEPTH, depth_of
from ..wire.messages import Event, Options, Task
from ..wire.settlement import Delivery, Settlement
from ..worker_context import WorkerContext
from .execution import Execution, Loaded
from .leases import Leases
from .limits import stop_error
from .output import CoroutineItem, Output
from .retries import MAX_LOSSES
from .run import CALLERS, Run, Runner, Stopped, caller, dump_raised
from .slot import Slot, Stop

#: Seconds after which a coroutine that was cancelled is given up, and its worker is replaced.
GRACE = 1.0
#: Seconds for which the code of a coroutine may run without a pause before a warning says that the
#: others wait meanwhile. Shorter warns on a busy machine, too.
BUSY = 0.25
#: Seconds that an item runs before the client is told that it does. Shorter costs more messages.
ANNOUNCE = 0.05
#: Seconds for which a plain call may wait for coroutines to end; then another worker stands in.
#: Shorter starts a process where they would have ended soon.
PLAIN_WAIT = 1.0
#: Sums of weights are a bit more than 1, as floats are.
_FULL = 1 + 1e-9


@dataclass(eq=False, slots=True, kw_only=True)
class _RunningItem:
    """An item whose coroutine runs."""

    chunk: _Chunk
    origin: CoroutineItem
    began: float
    deadline: float
    why: Stop = Stop.NONE
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    is_announced: bool = False
    has_progress: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class _Chunk:
    """A delivery whose coroutines run; `todo` are the items that have not begun."""

    delivery: Delivery
    settlement: Settlement
    loaded: Loaded
    one: Callable[[Any], Any]
    options: Options
    most: int
    todo: deque[int]
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    running: dict[int, _RunningItem] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, bytes] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    handed_back: dict[int, bool] = field(default_factory=dict)
    rest: list[int] = field(default_factory=list)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = depth_of(self.delivery.lane)

    def run(self) -> Run:
        """Return what its items ended with, in order."""
        seconds = time.monotonic() - self.began
        run = Run(started=self.started, seconds=seconds, cancelled=sorted(self.cancelled))
        run.handed_back = self.handed_back
        over = sorted(self.values.keys() | self.errors.keys())
        run.done, run.rest = [*ranges_of(over)], ranges_of(sorted(self.rest))
        for item in over:
            if item in self.errors:
                run.fail(self.errors[item])
            else:
                run.values.append(self.values[item])
        return run


class Coroutines:
    """The coroutines that a worker runs.

    Parameters
    ----------
    slot, runner, output, execution, leases
        Parts of the worker.
    settle
        Gets the settlement of each delivery that is over.

    Attributes
    ----------
    chunks
        The deliveries whose coroutines run.
    step
        The item whose code runs, if any does, and since when it does without a pause, by the
        monotonic clock.
    """

    def __init__(
        self,
        slot: Slot,
        runner: Runner,
        output: Output,
        execution: Execution,
        leases: Leases,
        *,
        settle: Callable[[Settlement], None],
    ) -> None:
        self._slot, self._runner, self._output = slot, runner, output
        self._execution, self._leases, self._settle = execution, leases, settle
        self.chunks: list[_Chunk] = []
        self.step: tuple[CoroutineItem | None, float] = (None, 0.0)
        self._over: list[_Chunk] = []
        self._running: dict[CoroutineItem, _RunningItem] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        #: What has to fit before more is taken, for each depth.
        self._wanted: dict[int, float] = {}
        #: Since when a plain call has found no room, for each depth.
        self._held_up: dict[int, float] = {}
        self._warned = set[str]()

    # -- room ----------------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            factory: Any = self._new_task
            self._loop.set_task_factory(factory)
        return self._loop

    @property
    def are_running(self) -> bool:
        """Whether the event loop runs: what is called now is called by a coroutine."""
        return self._loop is not None and self._loop.is_running()

    def fits(self, delivery: Delivery) -> bool:
        """Return whether there is room for a delivery; if not, more is taken when there is."""
        depth, most = depth_of(delivery.lane), _most(delivery.task)
        weight = min(1.0, size(delivery.task.span) / most)
        self._wanted[depth] = weight
        fits = self._loads().get(depth, 0.0) + weight <= _FULL
        if not fits and delivery.task.concurrency is None:
            self._held_up.setdefault(depth, time.monotonic())
        return fits

    def with_room(self, lanes: Sequence[str]) -> list[str]:
        """Return the lanes whose next delivery is likely to fit."""
        loads = self._loads()
        wanted = {depth: load + self._wanted.get(depth, 0.0) for depth, load in loads.items()}
        return [lane for lane in lanes if wanted.get(depth_of(lane), 0.0) <= _FULL]

    @property
    def hold_up_plain_calls(self) -> bool:
        """Whether plain calls have waited for long until these coroutines end."""
        long_ago = time.monotonic() - PLAIN_WAIT
        return any(since < long_ago for since in self._held_up.copy().values())

    def count(self, lanes: Sequence[str]) -> int:
        """Return how many deliveries to take at a time: twice as many each time, while they fit."""
        most, loads = 1, self._loads()
        for depth in set(map(depth_of, lanes)):
            if wanted := self._wanted.get(depth):
                most = max(most, int((_FULL - loads.get(depth, 0.0)) / wanted))
        return min(most, 2 * len(self.chunks))

    def _loads(self) -> dict[int, float]:
        """Return what the coroutines of each depth weigh, without those that wait for others there.

        This is called several times for each delivery, so it looks at each chunk once.
        """
        depths: dict[object, int] = {}  # of the calls that a coroutine waits for: the least
        for outer, lane in WorkerContext.open_calls():
            if isinstance(outer, CoroutineItem):
                depths[outer] = min(depth_of(lane), depths.get(outer, MAX_DEPTH))
        loads: dict[int, float] = {}
        for chunk in self.chunks:
            n = len(chunk.todo) + len(chunk.running)
            if depths:
                n -= sum(
                    depths.get(r.origin, MAX_DEPTH + 1) <= chunk.depth
                    for r in chunk.running.values()
                )
            loads[chunk.depth] = loads.get(chunk.depth, 0.0) + n / chunk.most
        return loads

    # -- life of a chunk -----------------------------------------------------------------------

    def start(self, delivery: Delivery) -> Settlement | None:
        """Start the coroutines of a delivery; return a settlement if there are none to start."""
        settlement, todo, loaded = self._execution.load(delivery)
        if loaded is None:
            return settlement
        task = delivery.task
        chunk = _Chunk(
            delivery=delivery,
            settlement=settlement,
            loaded=loaded,
            one=caller(task.call, loaded.fn),
            options=Options.decode(task.opts),
            most=_most(task),
            todo=deque(items(todo)),
        )
        self._output.begin_coroutines(task)
        self.chunks.append(chunk)
        self._begin_items(chunk)
        return None

    def run_alone(self, delivery: Delivery) -> Settlement:
        """Run a delivery to its end, and return its settlement, which is not given to `settle`."""
        settle, found = self._settle, list[Settlement]()

        def catch(settlement: Settlement) -> None:
            (found.append if settlement.delivery is delivery else settle)(settlement)

        self._settle = catch
        try:
            settlement = self.start(delivery)
            while settlement is None and not found:
                self.run(GRACE)
        finally:
            self._settle = settle
        return settlement or found[0]

    def _begin_items(self, chunk: _Chunk) -> None:
        while chunk.todo and len(chunk.running) < chunk.most:
            self._begin(chunk, chunk.todo.popleft())
        if not chunk.running and chunk not in self._over:
            self._over.append(chunk)
            # In the next turn of the loop: others that are over by then share the request.
            self.loop.call_soon(self.loop.stop)

    def _begin(self, chunk: _Chunk, item: int) -> None:
        loop, origin, limit = (
            self.loop,
            CoroutineItem(chunk.delivery, item),
            chunk.options.time_limit,
        )
        now = time.monotonic()
        running = _RunningItem(
            chunk=chunk, origin=origin, began=now, deadline=now + limit if limit else 0.0
        )
        chunk.running[item] = self._running[origin] = running
        self._slot.add_coroutines(1)
        context = contextvars.copy_context()
        context.run(CoroutineItem.current.set, origin)
        if chunk.options.seed is not None:
            index = chunk.delivery.task.n + item
            context.run(random_numbers.begin_coroutine, chunk.options.seed, index)
        running.task = loop.create_task(self._run_item(running), context=context)
        running.task.add_done_callback(functools.partial(self._end_of_task, running))
        if limit:
            running.timer = loop.call_later(limit, self._stop, running, Stop.TIME_LIMIT)

    async def _run_item(self, running: _RunningItem) -> None:
        chunk, item = running.chunk, running.origin.item
        try:
            found = chunk.one(chunk.loaded.items[item])
            if inspect.isasyncgen(found):
                value = [one async for one in found]
            else:
                value = await found
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            self._end_with_error(running, error)
        else:
            if running.origin in self._running:
                chunk.values[item] = value
                self._end(running)

    def _end_of_task(self, running: _RunningItem, task: asyncio.Task[None]) -> None:
        """End an item that was stopped before its coroutine began, or just when it ended."""
        if running.origin in self._running:
            stop = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._end_with_error(running, stop or asyncio.CancelledError())

    def _end_with_error(self, running: _RunningItem, error: BaseException) -> None:
        chunk, item = running.chunk, running.origin.item
        if running.origin not in self._running:
            return  # It was given up.
        # Not by isinstance(), which asks an error of user code for its class.
        if type(error) is Stopped:
            running.why = error.why
        is_stop = type(error) is Stopped or (running.why and type(error) is asyncio.CancelledError)
        if not is_stop:
            chunk.errors[item] = dump_raised(
                error, chunk.loaded.fn, chunk.delivery.task.id_of(item)
            )
            self._end(running)
        else:
            self._end_stopped(running, error)

    def _end_stopped(self, running: _RunningItem, cause: BaseException | None = None) -> None:
        WorkerContext.cancel_calls(running.origin)
        chunk, item, task = running.chunk, running.origin.item, running.chunk.delivery.task
        if running.why is Stop.CANCELLED:
            chunk.cancelled.append(item)
        elif running.why is Stop.HANDED_BACK:
            chunk.handed_back[item] = running.has_progress
        else:
            error = stop_error(task, item, running.why)
            trace = None if cause is None else cause.__traceback__
            chunk.errors[item] = dump_error(error.with_traceback(trace), task=task.id_of(item))
        self._end(running)

    def _end(self, running: _RunningItem) -> None:
        del running.chunk.running[running.origin.item], self._running[running.origin]
        self._slot.add_coroutines(-1)
        if self._leases.owners:
            self._leases.release_all(running.origin)
        if running.timer is not None:
            running.timer.cancel()
        self._begin_items(running.chunk)

    # -- the loop ------------------------------------------------------------------------------

    def run(self, seconds: float) -> bool:
        """Run coroutines until a delivery is over, for at most `seconds`; return whether one is."""
        loop, before = self.loop, self._runner.level
        if not self._over:
            timer = loop.call_later(seconds, loop.stop)
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # Raised in an asyncio task that an item has started. That task has it, too.
                return False
            finally:
                timer.cancel()
                self._runner.end_steps(before)
        over, self._over = self._over, []
        for chunk in over:
            self._settle(self._execution.conclude(chunk.delivery, chunk.settlement, chunk.run()))
            self.chunks.remove(chunk)
            if all(other.depth != chunk.depth for other in self.chunks):
                self._held_up.pop(chunk.depth, None)
        return bool(over)

    def cancel(self) -> None:
        """Stop the coroutines whose items are cancelled, as their deliveries say."""
        for chunk in self.chunks.copy():
            n, cancelled = chunk.delivery.task.n, chunk.delivery.cancelled
            gone = {i for i in (*chunk.todo, *chunk.running) if any(n + i in r for r in cancelled)}
            chunk.cancelled += [item for item in chunk.todo if item in gone]
            chunk.todo = deque(item for item in chunk.todo if item not in gone)
            for running in [chunk.running[item] for item in gone & chunk.running.keys()]:
                self._stop(running, Stop.CANCELLED)

    def note_progress(self, item: CoroutineItem) -> None:
        """Note that an item has stored a state."""
        if (running := self._running.get(item)) is not None:
            running.has_progress = True

    def hand_back(self) -> None:
        """Stop all coroutines: their worker has to end, and others run them again."""
        for chunk in self.chunks:
            chunk.rest += chunk.todo
            chunk.todo.clear()
        for running in list(self._running.values()):
            self._stop(running, Stop.HANDED_BACK)

    def _stop(self, running: _RunningItem, why: Stop) -> None:
        """Cancel the asyncio task of an item; give it up if it does not end."""
        if running.task is None or running.why:
            return
        running.why = why
        running.task.cancel()
        if running.timer is not None:
            running.timer.cancel()
        running.timer = self.loop.call_later(GRACE, self._give_up, running)

    def _give_up(self, running: _RunningItem) -> None:
        self._runner.is_torn = True
        self._end_stopped(running)

    def close(self) -> None:
        """Cancel what coroutines have left behind, as `asyncio.run` does, and close the loop."""
        if (loop := self._loop) is None:
            return
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=GRACE))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    # -- steps ---------------------------------------------------------------------------------

    def _new_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        """Return an asyncio task whose steps are noted, if an item has started it."""
        item = (context or contextvars.copy_context()).get(CoroutineItem.current)
        if item is not None:
            coroutine = self._with_steps(coroutine, item)
        return asyncio.Task(coroutine, loop=loop, context=context, **options)

    async def _with_steps(self, coroutine: Coroutine[Any, Any, Any], item: CoroutineItem) -> Any:
        return await self._steps(coroutine, item)

    @types.coroutine
    def _steps(
        self, coroutine: Coroutine[Any, Any, Any], item: CoroutineItem
    ) -> Generator[Any, Any, Any]:
        """Run a coroutine; while its code runs, the slot names its item."""
        send, value = coroutine.send, None
        while True:
            before = self._begin_step(item)
            try:
                waits_for = send(value)
            except StopIteration as end:
                return end.value
            finally:
                self._end_step(item, *before)
            send, value = coroutine.send, None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - the coroutine gets it
                send, value = coroutine.throw, error

    def _begin_step(self, item: CoroutineItem) -> tuple[tuple[int, int], ExitStack | None]:
        running, inside, before = self._running.get(item), None, self._runner.level
        if running is not None and (contexts := running.chunk.loaded.contexts):
            inside = ExitStack()
            for context in contexts:
                inside.enter_context(context)
        self.step = item, time.monotonic()
        deadline = running.deadline if running else 0.0
        self._runner.begin_step(item.delivery, item.item, deadline)
        return before, inside

    def _end_step(
        self, item: CoroutineItem, before: tuple[int, int], inside: ExitStack | None
    ) -> None:
        self._runner.end_steps(before)
        seconds, self.step = time.monotonic() - self.step[1], (None, 0.0)
        self._output.ran(item)
        if seconds > BUSY and _most(item.task) > 1:
            self._warn(item.task, seconds)
        if inside is not None:
            inside.close()

    def _warn(self, task: Task, seconds: float) -> None:
        """Say, once for each function, that it keeps the event loop busy."""
        if task.fn not in self._warned:
            self._warned.add(task.fn)
            sys.stderr.write(
                f"nbstreamq: {task.name}() ran for {seconds:.1f} s without an await. Meanwhile the"
                " other coroutines of its worker waited. Call what blocks with"
                " asyncio.to_thread, or submit it as a plain function.\n"
            )

    # -- for the monitor -----------------------------------------------------------------------

    def announce(self) -> list[Event]:
        """Return events for items that have run for a while, and were not announced yet."""
        found, before = [], time.monotonic() - ANNOUNCE
        for chunk in self.chunks.copy():
            for running in list(chunk.running.values()):
                if running.began < before and not running.is_announced:
                    running.is_announced = True
                    task = chunk.delivery.task
                    found.append(self._execution.started(task, running.origin.item))
        return found


def _most(task: Task) -> int:
    """Return how many items of a task may run at the same time: 1 for a plain function.

    An item that may have killed two workers runs alone: if it kills a third one, it is the cause.
    """
    return 1 if task.losses >= MAX_LOSSES - 1 else task.concurrency or 1


CALLERS.add(Coroutines._steps.__code__)  # noqa: SLF001 - of this module
