"""What runs again: items that raised, and items whose worker died or had to end."""

from __future__ import annotations

import json
import math

from ..wire.item_ranges import ItemRanges, items, ranges_of
from ..wire.messages import Event, Options, Task
from ..wire.settlement import Requeue, Settlement

#: How many workers one item may kill. More survives more bad luck; fewer wastes less on a bad item.
MAX_LOSSES = 3
#: After how many hand-backs in a row without progress an item's output says so.
MANY_HAND_BACKS = 5


def retry(task: Task, failed: ItemRanges, *, has_used_memory: bool = False) -> Requeue | None:
    """Return what tries the failed items of `task` again; None after their last attempt.

    Parameters
    ----------
    has_used_memory
        Whether they were over their limit of memory: then there is an attempt for each limit, even
        without retries.
    """
    options = Options.decode(task.opts)
    n_limits = len(options.memory_limits) if has_used_memory else 1
    if task.attempt > max(options.retries, n_limits - 1):
        return None
    again = task.again(failed, attempt=1)
    return Requeue(task=again, delay=options.pause_after(task.attempt))


def retry_lost(task: Task) -> Requeue | None:
    """Return what runs `task` again after its worker died; None if it has lost too many."""
    if task.losses + 1 >= MAX_LOSSES:
        return None
    return Requeue(task=task.again(task.span, losses=1))


def hand_back(
    settlement: Settlement, stopped: dict[int, bool], *, worker: str, seconds: float
) -> None:
    """Put items back that their worker can't finish. They are not charged.

    Parameters
    ----------
    stopped
        The items, and whether they have stored a state meanwhile.
    seconds
        How long they have run.
    """
    task = settlement.delivery.task
    for has_progress in {*stopped.values()}:
        span = ranges_of(sorted(i for i, has in stopped.items() if has is has_progress))
        again = task.again(span).with_changes(
            hand_backs=0 if has_progress else task.hand_backs + 1,
            ran=0 if has_progress else max(task.ran, math.ceil(seconds)),
        )
        settlement.successors.append(Requeue(task=again))
        settlement.events.append(
            Event.about(task, span, kind="handed_back", worker=worker, seconds=seconds)
        )
        if again.hand_backs >= MANY_HAND_BACKS:
            text = (
                f"nbstreamq: {again.hand_backs} workers that had to end have handed this call back,"
                f" after {again.ran} s at most, and it has stored no state. Let workers live longer"
                " (--lifetime, --drain), split the call, or store its state with"
                " nbstreamq.checkpoint().\n"
            )
            body = json.dumps([[item, "stderr", text] for item in items(span)]).encode()
            settlement.events.append(
                Event.about(task, span, kind="output", worker=worker, body=body)
            )
