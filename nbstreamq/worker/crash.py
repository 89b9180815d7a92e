"""What becomes of the tasks that a worker held when it died."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import (
    DeathCertificate,
    NbstreamqError,
    WorkerLost,
)
from ..objects.remote_errors import dump_error, summary
from ..objects.results import dump_outcomes
from ..wire.item_ranges import ItemRanges, items, ranges_of, size, split
from ..wire.keys import lane_of
from ..wire.messages import Event, Task
from ..wire.settlement import Delivery, PermanentFailure, Requeue, Settlement
from ..wire.store import Store
from .checkpoints import over
from .limits import memory_limit_error, stop_error, time_limit_error
from .retries import hand_back, retry, retry_lost
from .slot import NO_ITEM, RunningTask, Stop


@dataclass(frozen=True)
class CrashReport:
    """How a worker died, and what it was doing.

    Attributes
    ----------
    certificate
        What the error of a lost task tells about it.
    running
        What it ran, outermost first; empty if that is not known.
    stopped
        Serial and number of the item that it was killed for, and why.
    is_planned
        Whether somebody asked for the end: then what ran goes back and is not charged.
    ran
        For how many seconds the outermost item of `running` had run.
    has_progress
        Whether that has stored a state meanwhile.
    """

    certificate: DeathCertificate
    running: Sequence[RunningTask] = ()
    stopped: tuple[int, int, Stop] = (0, 0, Stop.NONE)
    is_planned: bool = False
    ran: float = 0.0
    has_progress: bool = False


def cause_of(status: int) -> str:
    """Return the signal or exit code that a wait status says, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def tail(descriptor: int, size: int = 4000) -> str:
    """Return the end of a file."""
    end = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, max(0, end - size)).decode(errors="replace")


logger = logging.getLogger(__name__)

#: Shown in place of an item that may kill the process that unpickles it: clients must not try.
_NOT_LOOKED_AT = "(not shown: its worker died outside the call, as it unpickled or pickled)"


def requeue_from_dead_worker(
    store: Store, worker: str, lanes: Sequence[str], crash: CrashReport, *, known: bool
) -> None:
    """Requeue, or fail, what a dead worker held, and forget the worker.

    Parameters
    ----------
    known
        As in `settle_crash`.
    """
    lanes = (*lanes, *store.home_lanes())
    while not store.forget_worker(worker, lanes):
        held = store.held((lane_of(worker), *lanes), worker)
        settlements = settle_crash(held, crash, known=known)
        try:
            store.settle(settlements)
        except NbstreamqError:
            raise
        except Exception:  # noqa: BLE001 - sending each by itself shows which one can't be sent
            for settlement in settlements:
                _settle_by_itself(store, settlement, crash)
        store.drop_checkpoints(over(settlements))


def _settle_by_itself(store: Store, settlement: Settlement, crash: CrashReport) -> None:
    try:
        store.settle([settlement])
    except NbstreamqError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
        store.settle([_failed(settlement.delivery, crash, error)])


def _failed(delivery: Delivery, crash: CrashReport, error: Exception) -> Settlement:
    """Return a settlement that ends a delivery with an error of our own code."""
    logger.error("task %s can't be put back", delivery.task.id_of(0), exc_info=error)
    settlement = Settlement(delivery=delivery)
    _fail(settlement, delivery.task.span, crash, error)
    return settlement


def has_lost_its_supervisor(description: dict[str, Any]) -> bool:
    """Return whether the supervisor of a worker, as it was described, has died on this machine."""
    if description.get("host") != socket.gethostname():
        return False
    try:
        os.kill(description.get("supervisor", 0), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def settle_crash(held: Sequence[Delivery], crash: CrashReport, *, known: bool) -> list[Settlement]:
    """Return the settlements of what a dead worker held.

    The loss is charged to the items that ran. A task that waited for another one ran, too: each of
    the stack may have caused the crash. If a delivery was being unpickled, or its results pickled,
    all its items are charged; when they were lost too often, they are halved until the guilty item
    is alone. What did not run goes back as it was, and so does what ran if the end was planned.

    Of coroutines only the one ran whose code was on the processor. If that was none, the cause is a
    thread, or somebody outside: then each of them is charged, and runs alone the third time.

    What only this worker was to run fails: nobody else reads its own lane.

    Parameters
    ----------
    known
        Whether `crash.running` tells what ran. If not, because its machine fell silent, everything
        that it held is charged.
    """
    ran = {(running.lane, running.entry_id): running for running in crash.running}
    settlements = []
    for delivery in held:
        settlement = Settlement(delivery=delivery)
        running = ran.get((delivery.lane, delivery.entry_id))
        is_suspect = not ran and delivery.task.concurrency is not None
        try:
            if delivery.lane == lane_of(crash.certificate.worker):
                _settle_set_up(settlement, crash)
            elif crash.is_planned and not (running and _is_stopped(running, crash)):
                _settle_planned(settlement, running, crash)
            elif (running and running.item == NO_ITEM) or not known or is_suspect:
                _settle_unknown(settlement, crash)
            elif running and any(running.item in r for r in delivery.task.span):
                _settle_item(settlement, running, crash)
            else:
                settlement.successors.append(Requeue(task=delivery.task))
        except Exception as error:  # noqa: BLE001 - one must not hold up the others
            settlement = _failed(delivery, crash, error)
        settlements.append(settlement)
    return settlements


def _is_stopped(running: RunningTask, crash: CrashReport) -> bool:
    """Return whether the worker was killed because of the item that ran there."""
    serial, item, why = crash.stopped
    return (running.serial, running.item) == (serial, item) and why is not Stop.HANDED_BACK


def _settle_set_up(settlement: Settlement, crash: CrashReport) -> None:
    """Fail what `everywhere` asked of a worker: the next worker runs it anyway, as it joins."""
    task, certificate = settlement.delivery.task, crash.certificate
    error = WorkerLost(
        f"Worker {certificate.worker} ended ({certificate.cause}) before it was through with"
        f" {task.name}(), which every worker runs. A worker that takes its place runs it first, so"
        " nothing needs to be repeated.",
        task=task.id_of(task.span[0].start),
        certificate=certificate,
    )
    _finish(settlement, task.span, crash, error)


def _settle_planned(
    settlement: Settlement, running: RunningTask | None, crash: CrashReport
) -> None:
    """Put back what a worker held that had to end: nothing of it is charged."""
    task = settlement.delivery.task
    rest = task.span
    if running and running == crash.running[0] and any(running.item in r for r in rest):
        rest = ranges_of(i for i in items(rest) if i != running.item)
        stopped = {running.item: crash.has_progress}
        hand_back(settlement, stopped, worker=crash.certificate.worker, seconds=crash.ran)
    if rest:
        settlement.successors.append(Requeue(task=task.again(rest)))


def _settle_item(settlement: Settlement, running: RunningTask, crash: CrashReport) -> None:
    """Charge the item that ran; the rest of its chunk goes on."""
    task = settlement.delivery.task
    guilty: ItemRanges = (range(running.item, running.item + 1),)
    rest = ranges_of(i for i in items(task.span) if i != running.item)
    if rest:
        settlement.successors.append(Requeue(task=task.again(rest)))
    killed = _is_stopped(running, crash)
    if killed and crash.stopped[2] is Stop.CANCELLED:
        settlement.events.append(_event("cancelled", task, guilty, crash))
        settlement.count(cancelled=1)
    elif killed:
        _settle_over_limit(settlement, guilty, crash)
    else:
        _charge(settlement, task.again(guilty), crash)


def _settle_over_limit(settlement: Settlement, guilty: ItemRanges, crash: CrashReport) -> None:
    task, item = settlement.delivery.task, guilty[0].start
    has_used_memory = crash.stopped[2] is Stop.MEMORY_LIMIT
    if again := retry(task, guilty, has_used_memory=has_used_memory):
        settlement.successors.append(again)
    elif has_used_memory:
        _fail(settlement, guilty, crash, memory_limit_error(task, item, crash.certificate))
    elif crash.stopped[2] is Stop.TOO_DEEP:
        _fail(settlement, guilty, crash, stop_error(task, item, Stop.TOO_DEEP))
    else:
        _fail(settlement, guilty, crash, time_limit_error(task, item, crash.certificate))


def _settle_unknown(settlement: Settlement, crash: CrashReport) -> None:
    task = settlement.delivery.task
    n = size(task.span)
    if n == 1 or retry_lost(task):
        _charge(settlement, task, crash, item=_NOT_LOOKED_AT)
        return
    for half in split(task.span, (n + 1) // 2):
        settlement.successors.append(Requeue(task=task.again(half)))


def _charge(settlement: Settlement, task: Task, crash: CrashReport, *, item: str = "") -> None:
    """Run `task` again, or fail it when it was lost too often; the client adds an empty `item`."""
    if again := retry_lost(task):
        text = {"error": f"worker {crash.certificate.worker} died: {crash.certificate.cause}"}
        body = json.dumps(text).encode()
        settlement.events.append(_event("lost", task, task.span, crash, body))
        settlement.successors.append(again)
        return
    task_id = task.id_of(task.span[0].start)
    what = (
        f"Task {task_id} ({task.name}) lost its worker {task.losses + 1} times (last:"
        f" {crash.certificate.worker}, {crash.certificate.cause})."
    )
    advice = (
        " Often: out of memory, or a crash in compiled code. See the certificate in this error's"
        " .certificate."
    )
    certificate = replace(crash.certificate, item=item)
    error = WorkerLost(what + advice, task=task_id, certificate=certificate)
    _fail(settlement, task.span, crash, error)


def _fail(settlement: Settlement, span: ItemRanges, crash: CrashReport, error: Exception) -> None:
    reason = _finish(settlement, span, crash, error)
    task = settlement.delivery.task.again(span)
    settlement.given_up.append(PermanentFailure(task=task, reason=reason))


def _finish(settlement: Settlement, span: ItemRanges, crash: CrashReport, error: Exception) -> str:
    """End items with an error; return a summary of it."""
    task = settlement.delivery.task
    dumped = dump_error(error, task=task.id_of(span[0].start))
    n = size(span)
    body = dump_outcomes([None] * n, dict.fromkeys(range(n), dumped), lambda _: "")
    settlement.events.append(_event("finished", task, span, crash, body))
    settlement.count(failed=n)
    return summary(dumped)


def _event(kind: str, task: Task, span: ItemRanges, crash: CrashReport, body: bytes = b"") -> Event:
    return Event.about(task, span, kind=kind, worker=crash.certificate.worker, body=body)
