"""Named jobs: the server keeps them, and any client finds them by name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

from ..errors import JobChanged, JobNotFound, NbstreamqError
from ..objects.functions import FunctionPickle
from ..objects.pickling import dump, load
from ..objects.stable_hash import inputs_hash, part_hashes
from ..wire.messages import Options, State
from ..wire.records import Chunk, JobRecord
from ..wire.replies import printable
from ..wire.store import Store
from .channel import Command
from .error_notes import Payload
from .future import stored_function
from .job import Job
from .session import Session
from .submit import Pace, call_of, chunks, task_of
from .table import JobTable


def check_function(record: JobRecord, about: dict[str, Any]) -> None:
    """Compare what a call says of its function with what the job's client wrote down."""
    changed = []
    (now,), known = about["identities"], record.about["identities"]
    if now not in known:
        changed.append(_other_function(known[-1], now, record.about["function"]))
    if about["call"] != record.about["call"]:
        changed.append("its calls had another number of arguments")
    # As JSON has it: of a tuple, a list.
    then, seed = record.about.get("seed"), json.loads(json.dumps(about["seed"]))
    if then != seed:
        changed.append(f"its seed is {then}, but {seed} is given")
    if changed:
        raise _changed(record, " and ".join(changed))


def _other_function(then: dict[str, str], now: dict[str, str], name: str) -> str:
    if "" in then or "" in now:
        return f"its function {name}() has changed"
    parts = [part for part in {**then, **now} if then.get(part) != now.get(part)]
    return f"this has changed in its function {name}(): {', '.join(parts)}"


def check_inputs(session: Session, record: JobRecord, source: Iterator[Any]) -> None:
    """Take from `source` what the job has already, and compare."""
    for chunk in record.chunks:
        piece = list(islice(source, chunk.n_items))
        if len(piece) < chunk.n_items:
            n = chunk.first + len(piece)
            raise _changed(record, f"it has at least {record.n_items} inputs, but {n} are given")
        if inputs_hash(piece) != chunk.digest:
            raise _changed(record, _other_input(session, record, chunk, piece))
    if record.total is not None and next(source, record) is not record:
        raise _changed(record, f"it has {record.total} inputs, but more are given")


def _other_input(session: Session, record: JobRecord, chunk: Chunk, piece: list[Any]) -> str:
    """Return which of a chunk's inputs is the first that is another one."""
    data = session.ask(lambda store: store.job_inputs(record.id, chunk.first))
    then = load(data) if data else []
    for number, (old, new) in enumerate(zip(then, piece, strict=False), chunk.first):
        if inputs_hash([old]) != inputs_hash([new]):
            return f"its input {number} was another one"
    last = chunk.first + chunk.n_items - 1
    return f"some of its inputs {chunk.first} to {last} have changed"


def _changed(record: JobRecord, what: str) -> JobChanged:
    name = record.name
    return JobChanged(
        f"There is a job {name!r} already, and {what}. To get its results: q.attach({name!r})."
        f" To run what failed with another function: q.attach({name!r}).retry_failed(function)."
        " To compute all of it again: the same call with replace=True, or with another name."
        ' replace="auto" does that whenever something has changed.'
    )


T = TypeVar("T")


class JobSpec(NamedTuple):
    """What else makes a named job: its name, lane and options; and when results are due here."""

    name: str
    lane: str
    options: Options
    deadline: float | None


def map_named(
    session: Session,
    fn: Callable[..., T],
    function: FunctionPickle,
    iterables: tuple[Iterable[Any], ...],
    definition: JobSpec,
    *,
    pace: Pace,
    replace: bool | Literal["auto"],
) -> Job[T]:
    """Make the job of that name, or find it and submit what of it is missing, failed or cancelled.

    Raises
    ------
    JobChanged
        The job has another function, other inputs or another seed, and `replace` is False.
    """
    name, lane, options, deadline = definition
    call, items = call_of(iterables)
    about = {
        "function": function.name,
        "fn": function.digest,
        "identities": [part_hashes(fn)],
        "call": call,
        "lane": lane,
        "opts": options.encode().decode(),
        "seed": options.seed,
        "folder": session.home.folder,
        "python": session.home.python,
    }
    record = session.ask(lambda store: store.find_job(name))
    if record is None or replace is True:
        record = _open(session, name, about, record)
    if replace == "auto":
        items = list(items)  # to take them twice
    source = iter(items)
    try:
        check_function(record, about)
        check_inputs(session, record, source)
    except JobChanged:
        if replace != "auto":
            raise
        record, source = _open(session, name, about, record), iter(items)
    table = _table_of(session, record, fn)
    table.lane = lane
    job: Job[T] = Job(session, table, deadline=deadline)
    # First: what fails from now on has had its turn.
    if record.n_items:
        job._rerun({State.FAILED, State.CANCELLED}, fn, options)
    for pickled in _missing(record, source, pace, function):
        _append(session, table, function, pickled, options)
    if record.total is None:
        _close(session, table)
    return job


def attach(session: Session, name: str, where_is: Callable[[str], list[str]]) -> Job[Any]:
    """Return the job of that name.

    Parameters
    ----------
    where_is
        Given the name, returns how to attach the jobs of that name that other queues have.

    Raises
    ------
    JobNotFound
        There is no job of that name.
    """
    record = session.ask(lambda store: store.find_job(name))
    if record is None:
        raise _not_found(session, name, where_is(name))
    fn = stored_function(session, record.about["fn"], f"of job {name!r}")
    table = _table_of(session, record, fn)
    if not table.is_over:
        session.start_workers()
    return Job(session, table)


def _not_found(session: Session, name: str, elsewhere: list[str]) -> JobNotFound:
    queue, names = session.ask(lambda store: (store.keys.queue, sorted(store.job_names())))
    text = f"There is no job {name!r} on queue {queue!r}."
    if elsewhere:
        return JobNotFound(f"{text} Another queue has one: {', or '.join(elsewhere)}.")
    known = f"There are: {', '.join(map(printable, names[:20]))}." if names else "There are none."
    return JobNotFound(
        f"{text} {known} A job is forgotten a week after its last call, unless job.keep() was"
        " called. The jobs of all queues: q.jobs(all=True)."
    )


def _open(session: Session, name: str, about: dict[str, Any], old: JobRecord | None) -> JobRecord:
    """Make the job, instead of `old`; or find the one that another client made at the same time."""
    new, instead_of = f"{name}:{session.homes[1]}{secrets.token_hex(4)}", old.id if old else ""
    is_made = session.ask(lambda store: store.open_job(name, new, about, instead_of=instead_of))
    if is_made and old:
        session.forget_job(old.id)
    record = session.ask(lambda store: store.find_job(name))
    if record is None:
        raise JobNotFound(f"Job {name!r} was deleted while it was being made. Make it again.")
    found: JobRecord = record
    return found


def _table_of(session: Session, record: JobRecord, fn: Callable[..., Any]) -> JobTable:
    """Return the table that this client has already, or one that knows all that happened."""
    known = session.table(record.id)
    if known is not None and not known.is_over:
        return known  # one that is over may only have failed here

    def fetch(first: int) -> bytes | None:
        try:
            data: bytes | None = session.ask(lambda store: store.job_inputs(record.id, first))
        except NbstreamqError:
            return None
        return data

    table = session.new_table(fn, record.about["function"], record.about["lane"], record.id)
    table.title, table.about, table.call = record.name, record.about, record.about["call"]
    table.options = Options.decode(record.about["opts"].encode())
    table.fetch, table.growing = fetch, True
    table.add_chunks(record.chunks)
    session.catch_up(table)
    if not table.is_over:
        session.register(table)
    return table


# -- what is missing ----------------------------------------------------------------------------


def _missing(
    record: JobRecord, source: Iterator[Any], pace: Pace, function: FunctionPickle
) -> Iterator[tuple[Chunk, bytes]]:
    """Yield the chunks of what is left of `source`, with their items pickled."""
    first = record.n_items
    for piece in chunks(source, pace):
        data = dump(piece, f"an item of {function.name}()", first=first)
        yield Chunk(first, len(piece), inputs_hash(piece)), data
        pace.sent(len(piece), len(data))
        first += len(piece)


def _append(
    session: Session,
    table: JobTable,
    function: FunctionPickle,
    pickled: tuple[Chunk, bytes],
    options: Options,
) -> None:
    chunk, data = pickled
    payload = Payload(chunk.first, chunk.n_items, table.call, data)
    table.add(payload._replace(args=b""))
    fields = session.encode_task(task_of(table, function, payload, options))

    def carry_out(store: Store) -> None:
        kept = store.append_chunk(
            table.job, chunk, data, lane=table.lane, delay=options.delay, task=fields
        )
        if kept:
            return
        # Another client was first, or this is the second time; or it can't be there at all.
        there = store.job_record(table.job)
        if there is None:
            raise JobNotFound(f"Job {table.title!r} was deleted while it was being submitted.")
        if there.n_items < chunk.first:
            raise NbstreamqError(f"What comes before item {chunk.first} was refused.")

    def fail(error: BaseException) -> None:
        # All of it here, so that the next call looks what the server has, and goes on from there.
        table.fail(error)
        session.stop_growing(table)

    session.send(Command(carry_out, fail, 2 * len(data) + 500))


def _close(session: Session, table: JobTable) -> None:
    n_items = len(table)

    def carry_out(store: Store) -> None:
        store.close_job(table.job, n_items)

    session.send(Command(carry_out, lambda _: None))
