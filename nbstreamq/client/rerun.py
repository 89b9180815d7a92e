"""Running items of a job again: the same job, the same order, perhaps a corrected function."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from ..errors import JobChanged, JobNotFound, NbstreamqError
from ..objects.functions import FunctionPickle
from ..wire.item_ranges import EVERYTHING, ranges_of
from ..wire.messages import Event, Options, State, Task
from ..wire.records import DeadEntry, JobRecord
from ..wire.store import Store
from .error_notes import Payload
from .session import Session
from .submit import task_of
from .table import JobTable, NamedTable


def keep(session: Session, table: JobTable) -> None:
    """Have a job stay until it is deleted."""
    _check_kept(session, table)
    session.ask(lambda store: store.keep_job(table.job))


def delete(session: Session, table: JobTable) -> None:
    """Forget a job here and on the server."""
    _check_kept(session, table)
    # First: it makes room on a full server, which could not even note what is cancelled.
    session.ask(lambda store: store.delete_job(table.title, table.job))
    session.cancel(table, range(len(table)))
    forget(session, table.job)


def forget(session: Session, job: str) -> None:
    """Let nothing run any more of a job that is deleted, and drop its dead letters."""
    session.ask(lambda store: store.cancel(job, EVERYTHING, EVERYTHING))
    session.ask(lambda store: store.forget_dead(*store.letters_of(job)))
    if table := session.table(job):
        session.cancel(table, range(len(table)))
        session.stop_growing(table)


def _check_kept(session: Session, table: JobTable) -> None:
    if not table.title:
        raise NbstreamqError(
            f"Job {table.job} has no name, so it is not kept. q.map(..., name='...') makes one"
            " that is."
        )
    if session.ask(lambda store: store.job_record(table.job)) is None:
        raise JobNotFound(
            f"Job {table.title!r} is not there any more: it was deleted or replaced, or has"
            " expired. q.jobs() lists those there are."
        )


#: Seconds in which workers drop what was cancelled, and news of a rerun come back.
PATIENCE = 10.0
#: Seconds between two looks whether they have.
PAUSE = 0.02


class ItemFilter(NamedTuple):
    """Which items are run again: those in one of `states`; of them `only` these, if given."""

    states: set[State]
    only: Sequence[int] | None

    def of(self, table: JobTable) -> list[int]:
        among = range(len(table)) if self.only is None else self.only
        return [i for i in among if table.state(i) in self.states]


def rerun(
    session: Session,
    table: JobTable,
    states: set[State],
    fn: Callable[..., Any] | None = None,
    options: Options | None = None,
    *,
    only: Sequence[int] | None = None,
) -> None:
    """Submit those items again that are in one of `states`; their dead letters are dropped.

    Parameters
    ----------
    states
        FAILED; of a named job also CANCELLED.
    fn
        In place of the job's function; None: the same.
    options
        Of a named job from now on; None: the same. Its lane is the table's.
    only
        Of these items; None: of all.

    Raises
    ------
    NbstreamqError
        An item's arguments are not there any more; nothing was submitted.
    JobChanged
        Another client did the same; `attach` again.
    """
    choice = ItemFilter(states, only)
    if isinstance(table, NamedTable):
        _rerun_named(session, table, choice, fn, options)
    elif chosen := choice.of(table):
        letters = _letters(session, table, chosen)
        _rerun_here(session, table, chosen, fn or table.fn)
        session.ask(lambda store: store.forget_dead(*letters))


def _letters(session: Session, table: JobTable, chosen: Sequence[int]) -> list[DeadEntry]:
    """Return the dead letters of a job that are about nothing else once `chosen` run again."""
    found: list[DeadEntry] = session.ask(lambda store: store.letters_of(table.job))
    left = set(ItemFilter({State.FAILED}, None).of(table)) - set(chosen)
    return [e for e in found if left.isdisjoint(e.items)]


def _rerun_here(
    session: Session, table: JobTable, chosen: Sequence[int], fn: Callable[..., Any]
) -> None:
    function, options = session.pickle_function(fn), table.options
    tasks = list(_tasks(table, function, options, chosen))
    table.fn = fn
    table.rerun(chosen)
    session.register(table)
    for task in tasks:
        session.submit(table, task, 0.0)


def _rerun_named(
    session: Session,
    table: NamedTable,
    choice: ItemFilter,
    fn: Callable[..., Any] | None,
    options: Options | None,
) -> None:
    record = session.ask(lambda store: store.job_record(table.job))
    if record is None:
        raise JobNotFound(f"Job {table.title!r} was deleted, or has expired.")
    about = record.about | {"lane": table.lane}
    if options is not None:
        about["opts"] = options.encode().decode()
    record, function = _with_function(session, replace(record, about=about), fn)
    deadline = time.monotonic() + PATIENCE
    before = session.ask(lambda store: store.last_event(table.job))
    while (answer := _try(session, table, record, function, choice)) == -1:
        if time.monotonic() > deadline:
            raise NbstreamqError(
                f"What was cancelled of job {table.title!r} still waits: no worker has come to"
                " drop it. Start some (q.run(2)), and try again."
            )
        time.sleep(PAUSE)
    if answer is None:
        return
    if answer == 0:
        name = table.title
        raise JobChanged(
            f"Job {name!r} was run again by another client. Call q.attach({name!r}) again."
        )
    if fn is not None:
        table.fn = fn
    _follow(session, table, before, record.n_reruns)


def _follow(session: Session, table: NamedTable, before: bytes, n_reruns: int) -> None:
    """Have the table hear of its rerun, which comes behind the entry `before`."""

    def is_settled() -> bool:
        return table.n_reruns > n_reruns or session.table(table.job) is not table

    session.wait_until(table, is_settled, PATIENCE)
    if table.n_reruns == n_reruns:
        # It was over; or it ended just before, and what came behind that was not delivered.
        table.position = catch_up(session, table, before)
        if not table.is_over:
            session.register(table, table.position)


def _try(
    session: Session,
    table: NamedTable,
    record: JobRecord,
    function: FunctionPickle,
    choice: ItemFilter,
) -> int | None:
    """Submit the items that are to be now; return what `Store.rerun` does.

    None if there are none.
    """
    if session.table(table.job) is not table:  # it gets no events
        table.position = catch_up(session, table, table.position)
    chosen = choice.of(table)
    if not chosen:
        return None
    if record.n_reruns != table.n_reruns:
        return 0
    letters = _letters(session, table, chosen)
    options = Options.decode(record.about["opts"].encode())
    tasks = [session.encode_task(t) for t in _tasks(table, function, options, chosen)]
    n_cancelled = sum(table.state(i) is State.CANCELLED for i in chosen)
    span, lane = ranges_of(chosen), table.lane
    again = functools.partial(
        Store.rerun,
        record=record,
        span=span,
        tasks=tasks,
        lane=lane,
        n_cancelled=n_cancelled,
        token=secrets.token_hex(8),
    )
    answer: int = session.ask(again)
    if answer == 1:
        session.ask(lambda store: store.forget_dead(*letters))
    return answer


def _with_function(
    session: Session, record: JobRecord, fn: Callable[..., Any] | None
) -> tuple[JobRecord, FunctionPickle]:
    """Return the record with the new function, and that function."""
    about = record.about
    if fn is None:
        return record, FunctionPickle(about["fn"], b"", about["function"])
    from ..objects.stable_hash import part_hashes  # needs cloudpickle, which is slow to import

    function = session.pickle_function(fn, durable=True)
    # Now, since the tasks do not wait for what the sender has before them.
    session.ask(lambda store: store.put_function(function.digest, function.data))
    now, known = part_hashes(fn), about["identities"]
    changes = {
        "fn": function.digest,
        "function": function.name,
        "identities": known if now in known else [*known, now],
    }
    return replace(record, about=about | changes), function


def _tasks(
    table: JobTable, function: FunctionPickle, options: Options, chosen: Sequence[int]
) -> Iterator[Task]:
    """Yield the messages for the chosen items: one for each chunk that has some.

    No two reruns send the same message: that is how a copy is known.
    """
    options = replace(options, rerun=table.n_reruns + 1)

    def chunk_of(item: int) -> Payload:
        payload = table.payload(item)
        if payload is None:
            raise NbstreamqError(
                f"The arguments of item {item} of job {table.job} are not kept any more."
                " Call the function with them instead."
            )
        return payload

    for payload, found in groupby(chosen, chunk_of):
        span = ranges_of(i - payload.n for i in found)
        yield task_of(table, function, payload, options, span)


def catch_up(session: Session, table: NamedTable, after: bytes = b"0") -> bytes:
    """Tell the table what happened after the entry `after`; return the id of the last entry."""
    while True:
        last, events = session.ask(functools.partial(_history, table.job, after))
        for event in events:
            if table.expects(event):
                table.apply(event)
        if last == after:
            return after
        after = last


def _history(job: str, after: bytes, store: Store) -> tuple[bytes, list[Event]]:
    return store.history(job, after)
