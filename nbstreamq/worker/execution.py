"""Run a delivery and return its settlement. Taking and sending are the loop's part."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from ..errors import SecretMismatch, ValueMissing, VersionMismatch
from ..objects.functions import LoadedFunction
from ..objects.references import Dependent
from ..objects.remote_errors import dump_error, summary
from ..objects.results import dump_outcomes, dump_small
from ..objects.surroundings import OUR_NAME, Surroundings, arriving
from ..tracebacks import trace_of
from ..wire.item_ranges import ItemRanges, items, ranges_of, size
from ..wire.keys import depth_of
from ..wire.messages import VERSION, Event, Task
from ..wire.settlement import Delivery, PermanentFailure, Requeue, Settlement
from .cache import Values
from .output import CoroutineItem, Output, Piece
from .retries import hand_back, retry, retry_lost
from .run import Run, Runner, Stopped

logger = logging.getLogger(__name__)

#: Most different errors of a slice that its dead letter names.
N_REASONS = 3
_NOTHING = nullcontext()


class Loaded(NamedTuple):
    """What the items of a delivery call: a function, their arguments, and what surrounds it."""

    fn: Callable[..., Any]
    items: Sequence[Any]
    contexts: tuple[Surroundings, ...]


class Execution:
    """Runs deliveries in the main thread.

    Parameters
    ----------
    worker
        Id of the worker, for events.
    runner, output, values
        The parts it drives.
    """

    def __init__(self, worker: str, runner: Runner, output: Output, values: Values) -> None:
        self._worker = worker
        self._runner = runner
        self._output = output
        self._values = values
        #: Progress that is not published yet: (task, item) -> (done, total).
        self._progress: dict[tuple[Task, int], tuple[int, int | None]] = {}
        #: What runs, outermost first, and when it began by the monotonic clock.
        self.running: list[tuple[Delivery, float]] = []

    @property
    def task(self) -> Task | None:
        """The running task."""
        if (coroutine := CoroutineItem.current.get()) is not None:
            return coroutine.task
        return self.running[-1][0].task if self.running else None

    @property
    def item(self) -> int:
        """The running item of that task."""
        coroutine = CoroutineItem.current.get()
        return self._output.item if coroutine is None else coroutine.item

    @property
    def depth(self) -> int:
        """How deep the running task is nested."""
        if (coroutine := CoroutineItem.current.get()) is not None:
            return depth_of(coroutine.delivery.lane)
        return depth_of(self.running[-1][0].lane) if self.running else 0

    def execute(self, delivery: Delivery) -> tuple[Settlement, Stopped | None]:
        """Run a slice of a delivery.

        Returns
        -------
        tuple
            What follows from it; and, if a task further down the stack is to be stopped, the
            exception to raise there, once this is settled.
        """
        depth, run, task = len(self.running), None, delivery.task
        try:
            # No chunk, no options, not nested in another task, and not cancelled.
            if task.call == "apply" and not (task.opts or depth or delivery.cancelled):
                return self._execute_plain(delivery), None
            settlement, todo = self._begin(delivery)
            if todo:
                self._enter(delivery, todo[0].start)
                run = self._run(delivery, todo)
                self._leave(settlement)
                self._conclude(settlement, run)
                self._runner.release()
        except BaseException as error:  # noqa: BLE001 - whatever it is, this task is charged with it
            return self.rescue(delivery, run, error, depth)
        return settlement, run.stopped if run else None

    def _execute_plain(self, delivery: Delivery) -> Settlement:
        """Run a call without options that nobody has cancelled: the short way for most calls."""
        settlement, task = Settlement(delivery=delivery), delivery.task
        if not delivery.is_wanted:
            return settlement
        self._runner.hold(delivery)
        self._output.enter(task, 0)
        self.running.append((delivery, time.monotonic()))
        started, began = time.time(), time.monotonic()
        value, run = None, None
        try:
            function, arguments, arrived = self._load(task)
            args, kwargs = arguments
            started, began = time.time(), time.monotonic()
            if function.surroundings is None and arrived is None:
                value, run = self._runner.call(task, function.fn, args, kwargs)
            else:
                with function.surroundings or _NOTHING, arrived or _NOTHING:
                    value, run = self._runner.call(task, function.fn, args, kwargs)
        except BaseException as error:  # noqa: BLE001 - unpickling runs foreign code
            run = self._run_of_load_error(task, task.span, error)
        seconds = time.monotonic() - began
        self.running.pop()
        pieces = self._output.leave()
        if pieces or self._progress:
            settlement.events += self.reports(pieces)
        body = dump_small(value) if run is None else None
        if body is None:
            run = run or Run(started=started, done=[range(1)], values=[value])
            run.seconds = seconds
            self._conclude(settlement, run)
        else:
            settlement.ended = (1, 0, 0)
            settlement.events.append(
                Event(
                    kind="finished",
                    job=task.job,
                    n=task.n,
                    worker=self._worker,
                    attempt=task.attempt,
                    started=started,
                    seconds=seconds,
                    body=body,
                )
            )
        self._runner.release()
        return settlement

    def load(self, delivery: Delivery) -> tuple[Settlement, ItemRanges, Loaded | None]:
        """Load what a delivery calls, to run its items as coroutines; `conclude` ends it.

        Returns
        -------
        tuple
            A settlement, which has the cancelled items; the items to run; and what they call. None:
            there is nothing to run, and the settlement is complete.
        """
        depth, loaded = len(self.running), None
        settlement, todo = Settlement(delivery=delivery), delivery.task.span
        try:
            settlement, todo = self._begin(delivery)
            if todo:
                self._enter(delivery, todo[0].start)
                run = None
                try:
                    loaded = self._loaded(delivery.task)
                except BaseException as error:  # noqa: BLE001 - unpickling runs foreign code
                    run = self._run_of_load_error(delivery.task, todo, error)
                self._leave(settlement)
                if run is not None:
                    self._conclude(settlement, run)
                self._runner.release()
        except BaseException as error:  # noqa: BLE001 - whatever it is, this task is charged with it
            return self.rescue(delivery, None, error, depth)[0], (), None
        return settlement, todo, loaded

    def _loaded(self, task: Task) -> Loaded:
        function, loaded, arrived = self._load(task)
        contexts = tuple(filter(None, (function.surroundings, arrived)))
        return Loaded(function.fn, [loaded] if task.call == "apply" else loaded, contexts)

    def conclude(self, delivery: Delivery, settlement: Settlement, run: Run) -> Settlement:
        """Return the settlement of a delivery whose coroutines are over."""
        depth = len(self.running)
        try:
            self._runner.hold(delivery)
            settlement.events += self.reports(self._output.end_coroutines(delivery.task))
            self._conclude(settlement, run)
            self._runner.release()
        except BaseException as error:  # noqa: BLE001 - as above
            return self.rescue(delivery, run, error, depth)[0]
        return settlement

    def rescue(
        self, delivery: Delivery, run: Run | None, error: BaseException, depth: int
    ) -> tuple[Settlement, Stopped | None]:
        """Return what `execute` returns for a delivery at which our own code failed.

        Parameters
        ----------
        run
            Results of its items, which are kept; None: no item has begun.
        depth
            How many other deliveries wait for it.
        """
        logger.error("task %s failed around its call\n%s", delivery.task.id_of(0), trace_of(error))
        # Not by isinstance(), which asks an error of user code for its class.
        stop = error if type(error) is Stopped and self._runner.waits(error) else None
        self._runner.restore(depth)
        self._output.restore(depth)
        del self.running[depth:]
        settlement = Settlement(delivery=delivery)
        if stop:
            settlement.successors.append(Requeue(task=delivery.task))
            return settlement, stop
        if run is not None:
            try:
                settlement, _ = self._begin(delivery)
                self._conclude(settlement, run)
            except BaseException as second:  # noqa: BLE001 - as above
                error = second
            else:
                return settlement, run.stopped
        if run is None and size(delivery.task.span) > 1 and (again := retry_lost(delivery.task)):
            # No item has begun, and it is not known whether one of them is the cause.
            settlement.successors.append(again)
            return settlement, None
        return self.fail(delivery, error), run.stopped if run else None

    def _begin(self, delivery: Delivery) -> tuple[Settlement, ItemRanges]:
        """Return a settlement with the cancelled items of a delivery, and the items to run."""
        task = delivery.task
        settlement = Settlement(delivery=delivery)
        if not delivery.is_wanted:
            return settlement, ()
        dropped, todo = part_cancelled(task, delivery.cancelled)
        if dropped:
            settlement.events.append(self._event("cancelled", task, dropped))
            settlement.count(cancelled=size(dropped))
        return settlement, todo

    def fail(self, delivery: Delivery, error: BaseException) -> Settlement:
        """Return a settlement that ends all items of a delivery with `error`."""
        task, n = delivery.task, size(delivery.task.span)
        dumped = dump_error(error, task=task.id_of(task.span[0].start))
        body = dump_outcomes([None] * n, dict.fromkeys(range(n), dumped), task.id_of)
        settlement = Settlement(delivery=delivery)
        settlement.count(failed=n)
        settlement.events.append(self._event("finished", task, task.span, body))
        settlement.given_up.append(PermanentFailure(task=task, reason=summary(dumped)))
        return settlement

    def watch(self) -> None:
        """Run the rest of the delivery item by item: it takes long."""
        self._runner.watch()

    def reports_of_set_up(self, settlement: Settlement) -> list[Event]:
        """Return events for what a set-up of `everywhere` printed and raised."""
        task = settlement.delivery.task
        events = [event for event in settlement.events if event.kind == "output"]
        for failed in settlement.given_up:
            text = f"The set-up {task.name} failed on worker {self._worker}: {failed.reason}\n"
            events.append(self._output_event(task, [Piece(task, 0, "stderr", text)]))
        return events

    def report_progress(self, done: int, total: int | None) -> None:
        """Keep the progress of the running item for the next report."""
        if (task := self.task) is not None:
            self._progress[task, self.item] = (done, total)

    def reports(self, pieces: Iterable[Piece]) -> list[Event]:
        """Return events for what was printed, and for the progress since the last report."""
        printed: dict[int, list[Piece]] = {}
        for piece in pieces:
            printed.setdefault(id(piece.task), []).append(piece)
        events = [self._output_event(found[0].task, found) for found in printed.values()]
        progress, self._progress = self._progress, {}
        for (task, item), (done, total) in progress.items():
            body = json.dumps([done, total]).encode()
            events.append(self._event("progress", task, (range(item, item + 1),), body))
        return events

    def collect_unattributed_output(self) -> list[Event]:
        """Return events for what C code and subprocesses printed since the last look."""
        return self.reports(self._output.collect())

    def started(self, task: Task, item: int) -> Event:
        """Return the event that tells the client that `item` of `task` is running."""
        return self._event("started", task, (range(item, item + 1),), started=time.time())

    def _enter(self, delivery: Delivery, item: int) -> None:
        """Attribute to the task what is printed and reported from now on."""
        self._runner.hold(delivery)
        self._output.enter(delivery.task, item)
        self.running.append((delivery, time.monotonic()))

    def _leave(self, settlement: Settlement) -> None:
        self.running.pop()
        pieces = self._output.leave()
        if pieces or self._progress:
            settlement.events += self.reports(pieces)

    def _run(self, delivery: Delivery, todo: ItemRanges) -> Run:
        task = delivery.task
        try:
            function, loaded, arrived = self._load(task)
            items_of = [loaded] if task.call == "apply" else loaded
            # First what surrounds the function, then what functions among its arguments need.
            with function.surroundings or _NOTHING, arrived or _NOTHING:
                return self._runner.run(task, function.fn, items_of, todo)
        except BaseException as error:  # Unpickling runs foreign code.
            if type(error) is Stopped and self._runner.waits(error):
                raise
            return self._run_of_load_error(task, todo, error)

    def _load(self, task: Task) -> tuple[LoadedFunction, Any, Surroundings | None]:
        """Return the function of a task, its arguments, and what functions among these need."""
        if task.version != VERSION:
            raise VersionMismatch(
                f"Task {task.id_of(task.span[0].start)} was submitted by nbstreamq {task.version},"
                f" and this worker has {VERSION}: install the same version for the client and the"
                " workers, and restart them."
            )
        if len(self.running) == 1:
            self._values.edits.forget_edited()
        while True:
            try:
                function = self._values.function(task)
                if OUR_NAME not in task.args:
                    return function, pickle.loads(task.args), None
                return function, *self._load_arguments(task.args)
            except ValueMissing as error:
                if not self._values.has_been_sent(task, error.address):
                    raise

    def _load_arguments(self, data: bytes) -> tuple[Any, Surroundings | None]:
        with arriving() as arrived:
            loaded = pickle.loads(data)
            if isinstance(loaded, Dependent):
                loaded = loaded.load(self._values.value)
        return loaded, arrived.surroundings

    def _run_of_load_error(self, task: Task, todo: ItemRanges, error: BaseException) -> Run:
        """Return the outcome of items whose function or arguments could not be loaded."""
        if type(error) is SecretMismatch and self._values.has_other_secret():
            return Run(started=time.time(), rest=todo)  # Other workers know the new secret.
        if type(error) is ValueMissing:
            self._values.want(task)
        run = Run(started=time.time(), done=[*todo])
        dumped = dump_error(error, task=task.id_of(0))
        for _ in items(todo):
            run.fail(dumped)
        return run

    def _conclude(self, settlement: Settlement, run: Run) -> None:
        """Add the results of `run`, its retries and its rest to the settlement."""
        task = settlement.delivery.task
        if run.cancelled:
            settlement.events.append(self._event("cancelled", task, ranges_of(run.cancelled)))
            settlement.count(cancelled=len(run.cancelled))
        if run.errors and (again := retry(task, ranges_of(map(run.item, run.errors)))):
            self._note_retry(settlement, run, again)
            run = run.without_errors()
        if run.done:
            body = dump_outcomes(
                run.values,
                run.errors,
                lambda k: task.id_of(run.item(k)),
                self._values.results(task.job),
            )
            n_failed = len(run.errors)
            settlement.count(done=len(run.values) - n_failed, failed=n_failed)
            times: dict[str, Any] = {"started": run.started, "seconds": run.seconds}
            settlement.events.append(self._event("finished", task, tuple(run.done), body, **times))
        if run.errors:
            failed = sorted(run.errors)
            reason = _reason([run.errors[k] for k in failed])
            lost = task.again(ranges_of(map(run.item, failed)))
            settlement.given_up.append(PermanentFailure(task=lost, reason=reason))
        if run.handed_back:
            seconds = time.time() - run.started
            hand_back(settlement, run.handed_back, worker=self._worker, seconds=seconds)
        if run.rest:
            settlement.continue_with(task.again(run.rest))

    def _note_retry(self, settlement: Settlement, run: Run, again: Requeue) -> None:
        """Requeue the failed items of `run`, and tell the client."""
        error = summary(next(iter(run.errors.values())))
        body = json.dumps({"error": error, "delay": again.delay}).encode()
        task = settlement.delivery.task
        settlement.events.append(self._event("retried", task, again.task.span, body))
        settlement.successors.append(again)

    def _output_event(self, task: Task, pieces: Sequence[Piece]) -> Event:
        body = json.dumps([[p.item, p.stream, p.text] for p in pieces]).encode()
        return self._event("output", task, ranges_of(sorted({p.item for p in pieces})), body)

    def _event(
        self, kind: str, task: Task, span: ItemRanges, body: bytes = b"", **times: float
    ) -> Event:
        return Event.about(task, span, kind=kind, worker=self._worker, body=body, **times)


def part_cancelled(task: Task, cancelled: ItemRanges) -> tuple[ItemRanges, ItemRanges]:
    """Return the items of `task` that are cancelled, and those to run."""
    if not cancelled:
        return (), task.span
    gone = {i for i in items(task.span) if any(task.n + i in r for r in cancelled)}
    return ranges_of(sorted(gone)), ranges_of(i for i in items(task.span) if i not in gone)


def _reason(errors: Sequence[bytes]) -> str:
    """Return one line that says why items failed, the most frequent reasons first."""
    if len(errors) == 1:
        return summary(errors[0])
    found = Counter(map(summary, errors)).most_common()
    texts = [f"{text} ({n} items)" if n > 1 else text for text, n in found[:N_REASONS]]
    if n_others := sum(n for _, n in found[N_REASONS:]):
        texts.append(f"and {n_others} others")
    return "; ".join(texts)
