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
from .ledger import Ledger, NamedLedger
from .session import Session
from .submit import task_of


def keep(session: Session, ledger: Ledger) -> None:
    """Have a job stay until it is deleted."""
    _check_kept(session, ledger)
    session.ask(lambda store: store.keep_job(ledger.job))


def delete(session: Session, ledger: Ledger) -> None:
    """Forget a job here and on the server."""
    _check_kept(session, ledger)
    # First: it makes room on a full server, which could not even note what is cancelled.
    session.ask(lambda store: store.delete_job(ledger.title, ledger.job))
    session.cancel(ledger, range(len(ledger)))
    forget(session, ledger.job)


def forget(session: Session, job: str) -> None:
    """Let nothing run any more of a job that is deleted, and drop its dead letters."""
    session.ask(lambda store: store.cancel(job, EVERYTHING, EVERYTHING))
    session.ask(lambda store: store.forget_dead(*store.letters_of(job)))
    if ledger := session.ledger(job):
        session.cancel(ledger, range(len(ledger)))
        session.stop_growing(ledger)


def _check_kept(session: Session, ledger: Ledger) -> None:
    if not ledger.title:
        raise NbstreamqError(
            f"Job {ledger.job} has no name, so it is not kept. q.map(..., name='...') makes one"
            " that is."
        )
    if session.ask(lambda store: store.job_record(ledger.job)) is None:
        raise JobNotFound(
            f"Job {ledger.title!r} is not there any more: it was deleted or replaced, or has"
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

    def of(self, ledger: Ledger) -> list[int]:
        among = range(len(ledger)) if self.only is None else self.only
        return [i for i in among if ledger.state(i) in self.states]


def rerun(
    session: Session,
    ledger: Ledger,
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
        Of a named job from now on; None: the same. Its lane is the ledger's.
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
    if isinstance(ledger, NamedLedger):
        _rerun_named(session, ledger, choice, fn, options)
    elif chosen := choice.of(ledger):
        letters = _letters(session, ledger, chosen)
        _rerun_here(session, ledger, chosen, fn or ledger.fn)
        session.ask(lambda store: store.forget_dead(*letters))


def _letters(session: Session, ledger: Ledger, chosen: Sequence[int]) -> list[DeadEntry]:
    """Return the dead letters of a job that are about nothing else once `chosen` run again."""
    found: list[DeadEntry] = session.ask(lambda store: store.letters_of(ledger.job))
    left = set(ItemFilter({State.FAILED}, None).of(ledger)) - set(chosen)
    return [e for e in found if left.isdisjoint(e.items)]


def _rerun_here(
    session: Session, ledger: Ledger, chosen: Sequence[int], fn: Callable[..., Any]
) -> None:
    function, options = session.pickle_function(fn), ledger.options
    tasks = list(_tasks(ledger, function, options, chosen))
    ledger.fn = fn
    ledger.rerun(chosen)
    session.register(ledger)
    for task in tasks:
        session.submit(ledger, task, 0.0)


def _rerun_named(
    session: Session,
    ledger: NamedLedger,
    choice: ItemFilter,
    fn: Callable[..., Any] | None,
    options: Options | None,
) -> None:
    record = session.ask(lambda store: store.job_record(ledger.job))
    if record is None:
        raise JobNotFound(f"Job {ledger.title!r} was deleted, or has expired.")
    about = record.about | {"lane": ledger.lane}
    if options is not None:
        about["opts"] = options.encode().decode()
    record, function = _with_function(session, replace(record, about=about), fn)
    deadline = time.monotonic() + PATIENCE
    before = session.ask(lambda store: store.last_event(ledger.job))
    while (answer := _try(session, ledger, record, function, choice)) == -1:
        if time.monotonic() > deadline:
            raise NbstreamqError(
                f"What was cancelled of job {ledger.title!r} still waits: no worker has come to"
                " drop it. Start some (q.run(2)), and try again."
            )
        time.sleep(PAUSE)
    if answer is None:
        return
    if answer == 0:
        name = ledger.title
        raise JobChanged(
            f"Job {name!r} was run again by another client. Call q.attach({name!r}) again."
        )
    if fn is not None:
        ledger.fn = fn
    _follow(session, ledger, before, record.n_reruns)


def _follow(session: Session, ledger: NamedLedger, before: bytes, n_reruns: int) -> None:
    """Have the ledger hear of its rerun, which comes behind the entry `before`."""

    def is_settled() -> bool:
        return ledger.n_reruns > n_reruns or session.ledger(ledger.job) is not ledger

    session.wait_until(ledger, is_settled, PATIENCE)
    if ledger.n_reruns == n_reruns:
        # It was over; or it ended just before, and what came behind that was not delivered.
        ledger.position = catch_up(session, ledger, before)
        if not ledger.is_over:
            session.register(ledger, ledger.position)


def _try(
    session: Session,
    ledger: NamedLedger,
    record: JobRecord,
    function: FunctionPickle,
    choice: ItemFilter,
) -> int | None:
    """Submit the items that are to be now; return what `Store.rerun` does.

    None if there are none.
    """
    if session.ledger(ledger.job) is not ledger:  # it gets no events
        ledger.position = catch_up(session, ledger, ledger.position)
    chosen = choice.of(ledger)
    if not chosen:
        return None
    if record.n_reruns != ledger.n_reruns:
        return 0
    letters = _letters(session, ledger, chosen)
    options = Options.decode(record.about["opts"].encode())
    tasks = [session.encode_task(t) for t in _tasks(ledger, function, options, chosen)]
    n_cancelled = sum(ledger.state(i) is State.CANCELLED for i in chosen)
    span, lane = ranges_of(chosen), ledger.lane
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
    ledger: Ledger, function: FunctionPickle, options: Options, chosen: Sequence[int]
) -> Iterator[Task]:
    """Yield the messages for the chosen items: one for each chunk that has some.

    No two reruns send the same message: that is how a copy is known.
    """
    options = replace(options, rerun=ledger.n_reruns + 1)

    def chunk_of(item: int) -> Payload:
        payload = ledger.payload(item)
        if payload is None:
            raise NbstreamqError(
                f"The arguments of item {item} of job {ledger.job} are not kept any more."
                " Call the function with them instead."
            )
        return payload

    for payload, found in groupby(chosen, chunk_of):
        span = ranges_of(i - payload.n for i in found)
        yield task_of(ledger, function, payload, options, span)


def catch_up(session: Session, ledger: NamedLedger, after: bytes = b"0") -> bytes:
    """Tell the ledger what happened after the entry `after`; return the id of the last entry."""
    while True:
        last, events = session.ask(functools.partial(_history, ledger.job, after))
        for event in events:
            if ledger.expects(event):
                ledger.apply(event)
        if last == after:
            return after
        after = last


def _history(job: str, after: bytes, store: Store) -> tuple[bytes, list[Event]]:
    return store.history(job, after)
