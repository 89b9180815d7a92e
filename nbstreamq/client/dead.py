"""What was refused, or failed for good, as plain data; and how to try it again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import NbstreamqError
from ..protocol.dead import DeadEntry
from ..protocol.messages import Task
from ..protocol.spans import items
from ..protocol.store import Store
from .future import TaskFuture
from .ledger import Ledger
from .payload import Payload
from .replay import stored_function
from .session import Session
from .submission import submit

__all__ = ["DeadLetter", "DeadLetters", "dead_letters"]


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """Something that was refused, or a task that failed for good.

    Attributes
    ----------
    id
        Its own, on the server.
    when
        When it was set aside, by the server's clock.
    kind
        ``refused`` (it lacked this queue's signature) or ``failed`` (its worker died, too often).
    why
        What happened, in words.
    lane, task
        The lane it was in, and the id of the task, as in `TaskFuture.id`; empty if not known. Of
        what was refused, this is only what it claims.
    name
        Name of the function; empty if what was refused is not signed.
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
    can_retry: bool
    _session: Session = field(repr=False, compare=False)

    def retry(self) -> TaskFuture[Any] | list[TaskFuture[Any]]:
        """Put the task into its lane again, with all its attempts before it, and take it off here.

        Returns
        -------
        TaskFuture or list
            The future of the new run; one for each item, where the entry holds several.

        Raises
        ------
        NbstreamqError
            It can't be tried again: see `can_retry`; or somebody else has just done it.
        """
        session, entry_id = self._session, self.id.encode()
        found: DeadEntry | None = session.ask(lambda store: store.dead_entry(entry_id))
        if found is None:
            raise NbstreamqError(
                f"Entry {self.id} ({self.task or self.kind}) is in the dead stream no more: it was"
                " tried again, or is older than a week."
            )
        if not _can_retry(found) or found.task is None:
            raise NbstreamqError(
                f"Entry {self.id} can't be tried again: {self.why} Only a task that carries this"
                " queue's signature can. Submit the call anew."
            )
        result = _send(session, found.task, found.lane)
        with suppress(NbstreamqError):  # it is sent; at worst it is still listed
            session.ask(lambda store: store.forget_dead(entry_id))
        return result

    def __str__(self) -> str:
        where = " ".join(part for part in (self.task, self.name, self.lane) if part)
        return f"{self.when:%Y-%m-%d %H:%M:%S} {self.kind} {where or '(no task)'}: {self.why}"


class DeadLetters(list[DeadLetter]):
    """A list of `DeadLetter`, the newest last, that prints readably."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was refused, and nothing failed for good"


def dead_letters(session: Session) -> DeadLetters:
    """Return what was refused by a queue, or failed for good in it, the newest last."""
    found: Iterable[DeadEntry] = session.ask(Store.dead)
    return DeadLetters(_letter(entry, session) for entry in found)


def _letter(entry: DeadEntry, session: Session) -> DeadLetter:
    milliseconds = int(entry.entry_id.partition(b"-")[0])
    return DeadLetter(
        id=entry.entry_id.decode(),
        when=datetime.fromtimestamp(milliseconds / 1000, UTC),
        kind="failed" if entry.given_up else "refused",
        why=entry.reason,
        lane=entry.lane or entry.source,
        task=entry.claim,
        name=entry.task.name if entry.task else "",
        can_retry=_can_retry(entry),
        _session=session,
    )


def _can_retry(entry: DeadEntry) -> bool:
    # A worker's own lane goes with it.
    return entry.task is not None and not entry.lane.startswith("@")


def _send(session: Session, task: Task, lane: str) -> TaskFuture[Any] | list[TaskFuture[Any]]:
    """Submit the items of `task` again, as a job of this session."""
    session.check_open()
    session.start_workers()

    fn = stored_function(session, task.fn, task.name)
    ledger = session.open_ledger(fn, task.name, lane, Ledger)
    # The arguments stay as they are, so items keep their place; those before it are not part of it.
    ledger.add(Payload(0, task.span[-1].stop, task.call, task.args))
    chosen = list(items(task.span))
    ledger.cancel(sorted(set(range(len(ledger))) - set(chosen)))
    futures: list[TaskFuture[Any]] = []
    for item in chosen:
        futures.append(TaskFuture(session, ledger, item))
        ledger.attach(item, futures[-1])
    submit(session, ledger, replace(task, job=ledger.job, n=0, attempt=1, losses=0), 0.0)
    return futures if len(futures) > 1 else futures[0]
