"""What follows from a worker's death for the tasks it held."""

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
    MemoryLimitExceeded,
    NbstreamqError,
    TimeLimitExceeded,
    WorkerLost,
)
from ..objects.remote_errors import dump_error, summary
from ..objects.results import dump_outcomes
from ..wire.item_ranges import ItemRanges, items, ranges_of, size, split
from ..wire.messages import Event, Options, Task
from ..wire.settlement import Delivery, PermanentFailure, Requeue, Settlement
from ..wire.store import Store
from .retries import retry, retry_lost
from .slot import NO_ITEM, RunningTask, Stop


@dataclass(frozen=True)
class CrashReport:
    """How a worker ended.

    Attributes
    ----------
    certificate
        What is told of it.
    levels
        What it ran, the outermost first; empty if that is not known.
    stopped
        Serial and number of the item that it was killed for, and why.
    is_planned
        Whether somebody asked for the end: then what ran is handed back, and not charged with it.
    """

    certificate: DeathCertificate
    levels: Sequence[RunningTask] = ()
    stopped: tuple[int, int, Stop] = (0, 0, Stop.NONE)
    is_planned: bool = False


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

#: In the place of an item that may kill whoever unpickles it: the client must not try.
_NOT_LOOKED_AT = "(not shown: its worker died outside the call, as it unpickled or pickled)"


def bury(
    store: Store, worker: str, lanes: Sequence[str], death: CrashReport, *, known: bool
) -> None:
    """Put back, or fail, what a dead worker held, and forget it; `known` as in `settle_death`."""
    lanes = (*lanes, *store.home_lanes())
    while not store.forget_worker(worker, lanes):
        held = store.held((f"@{worker}", *lanes), worker)
        settlements = settle_death(held, death, known=known)
        try:
            store.settle(settlements)
        except NbstreamqError:
            raise
        except Exception:  # noqa: BLE001 - which of them can't be sent shows when each goes alone
            for settlement in settlements:
                _settle_alone(store, settlement, death)


def _settle_alone(store: Store, settlement: Settlement, death: CrashReport) -> None:
    try:
        store.settle([settlement])
    except NbstreamqError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one
        store.settle([_failed(settlement.delivery, death, error)])


def _failed(delivery: Delivery, death: CrashReport, error: Exception) -> Settlement:
    """Return a settlement that ends a delivery with an error of our own code."""
    logger.error("task %s can't be put back", delivery.task.id_of(0), exc_info=error)
    settlement = Settlement(delivery=delivery)
    _fail(settlement, delivery.task.span, death, error)
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


def settle_death(held: Sequence[Delivery], death: CrashReport, *, known: bool) -> list[Settlement]:
    """Return the settlements of what a dead worker held.

    The items that ran are charged with the loss: all of the stack, since each of them may be what
    led there again. Where a delivery was being unpickled, or its results pickled, all its items are
    charged, and halved when they were lost too often, until the guilty one is alone. What did not
    run goes back as it was, and so does what ran if the end was planned.

    Parameters
    ----------
    known
        Whether `death.levels` tells what ran. If not (its machine fell silent), all that was held
        is charged.
    """
    running = {(level.lane, level.entry_id): level for level in death.levels}
    settlements = []
    for delivery in held:
        settlement = Settlement(delivery=delivery)
        level = running.get((delivery.lane, delivery.entry_id))
        try:
            if death.is_planned and not (level and _is_stopped(level, death)):
                settlement.successors.append(Requeue(task=delivery.task))
            elif (level and level.item == NO_ITEM) or not known:
                _settle_unknown(settlement, death)
            elif level and any(level.item in r for r in delivery.task.span):
                _settle_item(settlement, level, death)
            else:
                settlement.successors.append(Requeue(task=delivery.task))
        except Exception as error:  # noqa: BLE001 - one must not hold up the others
            settlement = _failed(delivery, death, error)
        settlements.append(settlement)
    return settlements


def _is_stopped(level: RunningTask, death: CrashReport) -> bool:
    """Return whether the worker was killed because of the item that ran there."""
    return (level.serial, level.item) == death.stopped[:2]


def _settle_item(settlement: Settlement, level: RunningTask, death: CrashReport) -> None:
    """Charge the item that ran; the rest of its chunk goes on."""
    task = settlement.delivery.task
    guilty: ItemRanges = (range(level.item, level.item + 1),)
    rest = ranges_of(i for i in items(task.span) if i != level.item)
    if rest:
        settlement.successors.append(Requeue(task=task.again(rest)))
    killed = _is_stopped(level, death)
    if killed and death.stopped[2] is Stop.CANCELLED:
        settlement.events.append(_event("cancelled", task, guilty, death))
        settlement.count(cancelled=1)
    elif killed:
        _settle_over_limit(settlement, guilty, death)
    else:
        _charge(settlement, task.again(guilty), death)


def _settle_over_limit(settlement: Settlement, guilty: ItemRanges, death: CrashReport) -> None:
    task = settlement.delivery.task
    options = Options.decode(task.opts)
    if again := retry(task, guilty):
        settlement.successors.append(again)
        return
    task_id = task.id_of(guilty[0].start)
    error: NbstreamqError
    if death.stopped[2] is Stop.MEMORY_LIMIT:
        error = MemoryLimitExceeded(
            f"Task {task_id} ({task.name}) was killed with its worker, which used more memory than"
            f" its memory_limit of {options.memory_limit or 0:,} bytes. Raise the limit, or split"
            f" the work.\n{death.certificate}",
            task=task_id,
        )
    else:
        error = TimeLimitExceeded(
            f"Task {task_id} ({task.name}) ran longer than its time_limit of"
            f" {options.time_limit:g} s, did not react, and was killed with its worker.\n"
            f"{death.certificate}",
            task=task_id,
        )
    _fail(settlement, guilty, death, error)


def _settle_unknown(settlement: Settlement, death: CrashReport) -> None:
    task = settlement.delivery.task
    n = size(task.span)
    if n == 1 or retry_lost(task):
        _charge(settlement, task, death, item=_NOT_LOOKED_AT)
        return
    for half in split(task.span, (n + 1) // 2):
        settlement.successors.append(Requeue(task=task.again(half)))


def _charge(settlement: Settlement, task: Task, death: CrashReport, *, item: str = "") -> None:
    """Run `task` again, or fail it when it was lost too often; the client adds an empty `item`."""
    if again := retry_lost(task):
        text = {"error": f"worker {death.certificate.worker} died: {death.certificate.cause}"}
        body = json.dumps(text).encode()
        settlement.events.append(_event("lost", task, task.span, death, body))
        settlement.successors.append(again)
        return
    task_id = task.id_of(task.span[0].start)
    what = (
        f"Task {task_id} ({task.name}) lost its worker {task.losses + 1} times (last:"
        f" {death.certificate.worker}, {death.certificate.cause})."
    )
    advice = (
        " Often: out of memory, or a crash in compiled code. See the certificate in this error's"
        " .certificate."
    )
    certificate = replace(death.certificate, item=item)
    error = WorkerLost(what + advice, task=task_id, certificate=certificate)
    _fail(settlement, task.span, death, error)


def _fail(settlement: Settlement, span: ItemRanges, death: CrashReport, error: Exception) -> None:
    task = settlement.delivery.task
    dumped = dump_error(error, task=task.id_of(span[0].start))
    n = size(span)
    body = dump_outcomes([None] * n, dict.fromkeys(range(n), dumped), lambda _: "")
    settlement.given_up.append(PermanentFailure(task=task.again(span), reason=summary(dumped)))
    settlement.events.append(_event("finished", task, span, death, body))
    settlement.count(failed=n)


def _event(kind: str, task: Task, span: ItemRanges, death: CrashReport, body: bytes = b"") -> Event:
    return Event.about(task, span, kind=kind, worker=death.certificate.worker, body=body)
