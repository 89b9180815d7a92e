"""What runs again: items that raised, and items whose worker died."""

from __future__ import annotations

from ..wire.item_ranges import ItemRanges
from ..wire.messages import Options, Task
from ..wire.settlement import Requeue

#: How many workers one item may kill. More survives more bad luck; fewer wastes less on a bad item.
MAX_LOSSES = 3


def retry(task: Task, failed: ItemRanges) -> Requeue | None:
    """Return what tries the failed items of `task` again; None after their last attempt."""
    options = Options.decode(task.opts)
    if task.attempt > options.retries:
        return None
    again = task.again(failed, attempt=1)
    return Requeue(task=again, delay=options.pause_after(task.attempt))


def retry_lost(task: Task) -> Requeue | None:
    """Return what runs `task` again after its worker died; None if it has lost too many."""
    if task.losses + 1 >= MAX_LOSSES:
        return None
    return Requeue(task=task.again(task.span, losses=1))
