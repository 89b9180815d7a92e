"""Named jobs: the server keeps them, and any client finds them by name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

from ..errors import JobChanged, JobNotFound, NbstreamqError
from ..objects.functions import FunctionPickle
from ..objects.pickling import load
from ..objects.stable_hash import inputs_hash, part_hashes
from ..wire.messages import Options, State
from ..wire.records import Chunk, JobRecord
from ..wire.replies import printable
from ..wire.store import Store
from .future import stored_function
from .job import Job
from .session import Session
from .table import JobTable


class NamedJob:
    """The job of a name, as the server has it.

    Parameters
    ----------
    session
        Asks the server.
    name
        The name.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._found = session.ask(Store.find_job, name)

    @property
    def _record(self) -> JobRecord:
        """What the server keeps of it; `JobNotFound` if there is nothing."""
        if self._found is None:
            raise JobNotFound(f"Job {self._name!r} was deleted while it was being made. Try again.")
        return self._found

    def open(
        self,
        fn: Callable[..., Any],
        function: FunctionPickle,
        items: Iterable[Any],
        *,
        call: str,
        lane: str,
        options: Options,
        replace: bool | Literal["auto"],
    ) -> tuple[JobTable, Iterator[Any], int]:
        """Return its table, the items that it does not have yet, and how many it has.

        The job is made if there is none, or with `replace`. What failed in it, or was cancelled,
        runs again.

        Raises
        ------
        JobChanged
            It has another function, other inputs or another seed, and `replace` is False.
        """
        session = self._session
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
        if replace is True or self._found is None:
            self._make(about)
        if replace == "auto":
            items = list(items)  # they may be compared twice
        try:
            rest = self._compare(about, items)
        except JobChanged:
            if replace != "auto":
                raise
            self._make(about)
            rest = self._compare(about, items)
        table = self._table(fn)
        table.lane, table.options = lane, options
        # First: what fails from now on has had its turn.
        if self._record.n_items:
            Job[Any](session, table)._rerun({State.FAILED, State.CANCELLED}, fn, options)
        return table, rest, self._record.n_items

    def attach(self, where_is: Callable[[str], list[str]]) -> Job[Any]:
        """Return it as it is now.

        Parameters
        ----------
        where_is
            Given the name, returns how to attach the jobs of that name that other queues have.

        Raises
        ------
        JobNotFound
            There is no job of that name.
        """
        session, name = self._session, self._name
        if self._found is None:
            raise self._not_found(where_is(name))
        fn = stored_function(session, self._found.about["fn"], f"of job {name!r}")
        table = self._table(fn)
        if not table.is_over:
            session.workers.start()
        return Job(session, table)

    def _not_found(self, elsewhere: list[str]) -> JobNotFound:
        ask = self._session.ask
        queue, names = ask(lambda store: (store.keys.queue, sorted(store.job_names())))
        text = f"There is no job {self._name!r} on queue {queue!r}."
        if elsewhere:
            return JobNotFound(f"{text} Another queue has one: {', or '.join(elsewhere)}.")
        known = "There are none."
        if names:
            known = f"There are: {', '.join(map(printable, names[:20]))}."
        return JobNotFound(
            f"{text} {known} A job is forgotten a week after its last call, unless job.keep() was"
            " called. The jobs of all queues: q.jobs(all=True)."
        )

    def _make(self, about: dict[str, Any]) -> None:
        """Make it, instead of the one there was; or find one that another client made meanwhile."""
        session, name, old = self._session, self._name, self._found
        new = f"{name}:{session.workers.homes[1]}{secrets.token_hex(4)}"
        is_made = session.ask(Store.open_job, name, new, about, instead_of=old.id if old else "")
        if is_made and old:
            session.forget_job(old.id)
        self._found = session.ask(Store.find_job, name)

    def _compare(self, about: dict[str, Any], items: Iterable[Any]) -> Iterator[Any]:
        """Compare the job with what a call says of it; return the items that it does not have."""
        self._check_function(about)
        record, inputs = self._record, iter(items)
        for chunk in record.chunks:
            piece = list(islice(inputs, chunk.n_items))
            if len(piece) < chunk.n_items:
                n = chunk.first + len(piece)
                raise self._changed(f"it has at least {record.n_items} inputs, but {n} are given")
            if inputs_hash(piece) != chunk.digest:
                raise self._changed(self._other_input(chunk, piece))
        if record.total is not None and next(inputs, record) is not record:
            raise self._changed(f"it has {record.total} inputs, but more are given")
        return inputs

    def _check_function(self, about: dict[str, Any]) -> None:
        """Compare what a call says of its function with what the job's client wrote down."""
        changed, old = [], self._record.about
        (now,), known = about["identities"], old["identities"]
        if now not in known:
            changed.append(_other_function(known[-1], now, old["function"]))
        if about["call"] != old["call"]:
            changed.append("its calls had another number of arguments")
        # As JSON has it: of a tuple, a list.
        then, seed = old.get("seed"), json.loads(json.dumps(about["seed"]))
        if then != seed:
            changed.append(f"its seed is {then}, but {seed} is given")
        if changed:
            raise self._changed(" and ".join(changed))

    def _other_input(self, chunk: Chunk, piece: list[Any]) -> str:
        """Return which of a chunk's inputs is the first that is another one."""
        data = self._inputs(chunk.first)
        then = load(data) if data else []
        for number, (old, new) in enumerate(zip(then, piece, strict=False), chunk.first):
            if inputs_hash([old]) != inputs_hash([new]):
                return f"its input {number} was another one"
        last = chunk.first + chunk.n_items - 1
        return f"some of its inputs {chunk.first} to {last} have changed"

    def _changed(self, what: str) -> JobChanged:
        name = self._name
        return JobChanged(
            f"There is a job {name!r} already, and {what}. To get its results: q.attach({name!r})."
            f" To run what failed with another function: q.attach({name!r}).retry_failed(function)."
            " To compute all of it again: the same call with replace=True, or with another name."
            ' replace="auto" does that whenever something has changed.'
        )

    def _inputs(self, first: int) -> bytes | None:
        """Return the pickled inputs of a chunk, by its first item; None if they can't be had."""
        job, data = self._record.id, None
        with suppress(NbstreamqError):
            data = self._session.ask(Store.job_inputs, job, first)
        return data

    def _table(self, fn: Callable[..., Any]) -> JobTable:
        """Return the table that this client has already, or one that knows all that happened."""
        session, record = self._session, self._record
        known = session.table(record.id)
        if known is not None and not known.is_over:
            return known  # one that is over may only have failed here
        about = record.about
        table = session.new_table(fn, about["function"], about["lane"], record.id)
        table.title, table.about, table.call = record.name, about, about["call"]
        table.options = Options.decode(about["opts"].encode())
        table.fetch, table.growing = self._inputs, True
        table.set_chunks(record.chunks)
        session.catch_up(table)
        if not table.is_over:
            session.register(table)
        return table


def _other_function(then: dict[str, str], now: dict[str, str], name: str) -> str:
    if "" in then or "" in now:
        return f"its function {name}() has changed"
    parts = [part for part in {**then, **now} if then.get(part) != now.get(part)]
    return f"this has changed in its function {name}(): {', '.join(parts)}"
