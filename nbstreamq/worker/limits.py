"""Limits of time and memory: which item is over its limit, and the error that it ends with."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DeathCertificate, MemoryLimitExceeded, NestedTooDeep, TimeLimitExceeded
from ..wire.messages import Options, Task
from .slot import NO_ITEM, RunningTask, Stop
from .usage import memory_of

#: Most workers that a supervisor starts because tasks wait for tasks of theirs in other threads or
#: in asyncio. More allow deeper recursion; each is a process.
MOST_STAND_INS = 32


#: Seconds for which the code of a coroutine may run before a stop interrupts it. Its own worker
#: stops it when it pauses, which harms no other one.
LONG_STEP = 0.1


def over_memory(pid: int, running: Sequence[RunningTask]) -> RunningTask | None:
    """Return the innermost running item whose memory limit its worker exceeds."""
    limited = [task for task in running if task.memory_limit and task.item != NO_ITEM]
    used = memory_of(pid) if limited else 0
    return next((task for task in reversed(limited) if used > task.memory_limit), None)


def time_limit_error(
    task: Task, item: int, certificate: DeathCertificate | None = None
) -> TimeLimitExceeded:
    """Return the error of an item that was stopped, or killed with its worker, after its time."""
    task_id, limit = task.id_of(item), Options.decode(task.opts).time_limit
    what = f"Task {task_id} ({task.name}) ran longer than its time_limit of {limit:g} s"
    advice = "Raise the limit, or split the work."
    if certificate is None:
        return TimeLimitExceeded(f"{what} and was stopped. {advice}", task=task_id)
    return TimeLimitExceeded(
        f"{what}, did not react when it was stopped, and was killed with its worker. {advice}\n"
        f"{certificate}",
        task=task_id,
    )


def stop_error(task: Task, item: int, why: Stop) -> TimeLimitExceeded | NestedTooDeep:
    """Return the error of an item that was stopped for a reason other than a cancellation."""
    if why is not Stop.TOO_DEEP:
        return time_limit_error(task, item)
    task_id = task.id_of(item)
    return NestedTooDeep(
        f"Task {task_id} ({task.name}) waits for tasks that it has submitted, and every worker does"
        f" the same. At most {MOST_STAND_INS} more workers are started for tasks that wait in"
        " asyncio or in other threads, or that are nested hundreds of levels deep. Pass futures as"
        " arguments in place of waiting for them, wait with future.result() in the task's main"
        " thread, or run more workers.",
        task=task_id,
    )


def memory_limit_error(task: Task, item: int, certificate: DeathCertificate) -> MemoryLimitExceeded:
    """Return the error of an item that was killed with its worker, which used too much memory."""
    task_id, options = task.id_of(item), Options.decode(task.opts)
    *others, limit = [f"{n:,}" for n in options.memory_limits[: task.attempt]]
    last = f", after {' and '.join(others)} in earlier attempts" if others else ""
    return MemoryLimitExceeded(
        f"Task {task_id} ({task.name}) was killed with its worker, which used more memory than its"
        f" memory_limit of {limit} bytes{last}. Raise the limit, or split the work."
        f"\n{certificate}",
        task=task_id,
    )
