"""What was refused, or failed for good, as plain data; and how to try it again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import JobNotFound, NbstreamqError
from ..protocol.dead import DeadEntry
from ..protocol.keys import is_named
from ..protocol.messages import Task
from ..protocol.refusal import REPLAYED
from ..protocol.settlement import KEPT_BYTES
from ..protocol.spans import items
from ..protocol.states import State
from ..protocol.store import Store
from ..protocol.unsigned import MAX_TIME, printable
from .future import TaskFuture
from .ledger import Ledger
from .payload import Payload
from .replay import stored_function
from .rerun import rerun
from .session import LOOK_PATIENCE, Session
from .submission import submit

__all__ = ["DeadLetter", "DeadLetters", "dead_letters"]


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """Something that was refused, or calls that failed for good.

    Attributes
    ----------
    id
        Its own, on the server.
    when
        When it was set aside, by the server's clock.
    kind
        ``refused`` (it lacked this queue's signature, or was a copy) or ``failed`` (its last
        attempt raised, was over a limit, or lost its worker).
    why
        What happened, in words: the error, shortened. Where several items failed together, the most
        frequent errors; all of them are in `Job.errors`.
    lane, task
        The lane it was in, and the id of the task, as in `TaskFuture.id`; empty if not known. Of
        what was refused, this is only what it claims.
    name, job, items
        Name of the function, id of the job, and which items of it; empty if it is not signed.
    attempts
        How often they were tried, lost workers included; 0 if not known.
    can_retry
        Whether `retry` works: it is whole, and signed with this queue's secret.
    """

    id: str
    when: datetime
    kind: str
    why: str
    lane: str
    task: str
    name: str
    job: str
    items: tuple[int, ...]
    attempts: int
    can_retry: bool
    _session: Session = field(repr=False, compare=False)

    def retry(self) -> TaskFuture[Any] | list[TaskFuture[Any]]:
        """Run it again, with all its attempts before it, and take it off here.

        What is of a named job becomes part of that again, for all that follow it. Any other call
        becomes a new job of this client: its old future has told how it ended, and stays so.

        Returns
        -------
        TaskFuture or list
            The future of the new run; one for each item, where the entry holds several.

        Raises
        ------
        NbstreamqError
            It can't be tried again: see `can_retry`; or somebody else has just done it.
        JobNotFound
            The named job that it was part of was deleted, or replaced, or has expired.
        """
        session, entry_id = self._session, self.id.encode()
        found: DeadEntry | None = session.ask(lambda store: store.dead_entry(entry_id))
        if found is None:
            raise NbstreamqError(
                f"Entry {self.id} ({self.task or self.kind}) is in the dead stream no more: it was"
                " tried again, or is older than a week."
            )
        if (obstacle := _obstacle(found)) or found.task is None:
            raise NbstreamqError(f"Entry {self.id} can't be tried again: {self.why} {obstacle}")
        futures = (
            _again_in_job(session, found, found.task)
            if is_named(self.job)
            else _anew(session, found.task, found.lane)
        )
        with suppress(NbstreamqError):  # it is sent; at worst it is still listed
            session.ask(lambda store: store.forget_dead(found))
        return futures if len(futures) > 1 else futures[0]

    @property
    def task_text(self) -> str:
        """The task's id, and how many more of its job there are."""
        return self.task + (f" and {len(self.items) - 1:,} more" if len(self.items) > 1 else "")

    def __str__(self) -> str:
        where = " ".join(part for part in (self.task_text, self.name, self.lane) if part)
        said = f"{self.when:%Y-%m-%d %H:%M:%S} {self.kind} {where or '(no task)'}: {self.why}"
        return printable(said)


class DeadLetters(list[DeadLetter]):
    """A list of `DeadLetter`, the newest last, that prints readably."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was refused, and nothing failed for good"


def dead_letters(session: Session) -> DeadLetters:
    """Return what was refused by a queue, or failed for good in it, the newest last."""
    found: Iterable[DeadEntry] = session.ask(Store.dead, patience=LOOK_PATIENCE)
    return DeadLetters(_letter(entry, session) for entry in found)


def _letter(entry: DeadEntry, session: Session) -> DeadLetter:
    milliseconds, task = int(entry.entry_id.partition(b"-")[0]), entry.task
    return DeadLetter(
        id=entry.entry_id.decode(),
        when=datetime.fromtimestamp(min(milliseconds / 1000, MAX_TIME), UTC),
        kind="failed" if entry.has_failed else "refused",
        why=entry.reason,
        lane=entry.lane or entry.source,
        task=entry.claim,
        name=task.name if task else "",
        job=task.job if task else "",
        items=entry.items,
        attempts=task.attempt + task.losses if task else 0,
        can_retry=not _obstacle(entry),
        _session=session,
    )


def _obstacle(entry: DeadEntry) -> str:
    """Return why an entry can't be tried again; empty if it can."""
    task = entry.task
    if task is None:
        return "Only a task that carries this queue's signature can. Submit the call anew."
    if entry.reason == REPLAYED:
        return "It was run. Submit the call anew."
    if entry.lane.startswith("@"):
        return "It was meant for one worker, and its lane goes with that."
    if not task.args and not is_named(task.job):
        return (
            f"Its arguments are larger than the {KEPT_BYTES // 1024} KiB that are kept. Use"
            " job.retry_failed(), where the job is, or submit the call anew."
        )
    return ""


def _again_in_job(session: Session, entry: DeadEntry, task: Task) -> list[TaskFuture[Any]]:
    """Put items of a named job into their lane again, as part of it."""
    from .named import attach  # needs cloudpickle: slow to import

    # A job of that name on another queue is none that this entry belongs to.
    job = attach(session, task.job.rpartition(":")[0], lambda _: [])
    chosen = entry.items
    if job.id != task.job:
        raise JobNotFound(f"Job {task.job!r} was replaced by another one of its name.")
    if entry.has_failed:
        rerun(session, job.ledger, {State.FAILED}, only=chosen)
    else:  # it never was in a worker's hands
        submit(session, job.ledger, task, 0.0)
    return [job[item] for item in chosen]


def _anew(session: Session, task: Task, lane: str) -> list[TaskFuture[Any]]:
    """Submit the items of `task` again, as a job of this session."""
    session.check_open()
    session.start_workers()

    fn = stored_function(session, task.fn, task.name)
    ledger = session.new_ledger(fn, task.name, lane, Ledger)
    # The arguments stay as they are, so items keep their place; those before it are not part of it.
    ledger.add(Payload(0, task.span[-1].stop, task.call, task.args))
    session.register(ledger)
    chosen = list(items(task.span))
    ledger.cancel(sorted(set(range(len(ledger))) - set(chosen)))
    futures: list[TaskFuture[Any]] = []
    for item in chosen:
        futures.append(TaskFuture(session, ledger, item))
        ledger.attach(item, futures[-1])
    submit(session, ledger, replace(task, job=ledger.job, n=0, attempt=1, losses=0), 0.0)
    return futures
