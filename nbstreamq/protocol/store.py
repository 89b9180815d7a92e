"""The only door to Redis: one method per transition of a task, and per question about a queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from socket import socket
from typing import Any

from ..errors import DataLost, ServerRefused, SignatureError
from . import scripts
from .clients import REPLY_TIMEOUT, Client
from .connection import SPIN, Command, MessageTooLarge, Wire
from .jobs import NamedJobs
from .keys import GROUP, WEEK, Keys, is_named, session_of
from .messages import Control, Event, Fields, Task
from .owners import Owners
from .replies import block_ms, mapping, stream_entries
from .seen import Seen
from .settlement import Delivery, Settlement, encode_return, encode_settlements
from .signing import Signer
from .spans import EVERYTHING, Span, format_span, read_span
from .supervision import Supervision
from .unsigned import count
from .values import Values

__all__ = ["RENEW_EVERY", "Store"]

#: Entries that an event stream may hold though they were read; fewer cost more commands.
TRIM_EVERY = 100
#: Most entries that are dropped from a lane at a time: the server's other users wait meanwhile.
MOST_DROPPED = 100
#: Seconds after which a session says again that it is there, and that its queue is used.
RENEW_EVERY = 3600.0


class Store(NamedJobs, Supervision, Values):
    """A queue on a server, through one connection. Not for two threads at once: see `clone`.

    Every method raises `ServerUnreachable` when the connection fails and `ServerRefused` when
    the server answers with an error.

    Parameters
    ----------
    client
        Of redis-py; see `open_client`.
    queue
        Name of the queue.
    signer
        Signs what is written and checks what is read.
    seen
        What was read already, through whichever connection; None: nothing.
    """

    def __init__(
        self, client: Client, queue: str, signer: Signer, seen: Seen | None = None
    ) -> None:
        self.keys = Keys(queue)
        self._client = client
        self._signer = signer
        self._seen = seen or Seen()
        self._n_read, self._renewal = 0, time.monotonic() + RENEW_EVERY
        self._asked: dict[bytes, str] = {}
        self._ask_version: Command = ("HGET", self.keys.cancelled, "#")
        #: Number of the last change that was read, and job -> cancelled items.
        self._cancellations: tuple[bytes, dict[str, Span]] = (b"", {})
        self._told = set[str]()
        self._last_beat = None
        self._lane_names: dict[tuple[str, ...], dict[bytes, str]] = {}
        self._wire = Wire(client, self.keys.meta, scripts.texts())
        self.owners = Owners(self._wire, self.keys)

    def clone(self) -> Store:
        """Return the same queue through another connection."""
        return Store(self._client, self.keys.queue, self._signer, self._seen)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._wire.close()

    def wait(self, seconds: float | None, *others: socket, soon: bool = False) -> bool:
        """Wait until `events` or `controls` returns at once; False if one of `others` woke us."""
        return self._wire.wait(seconds, *others, soon=soon)

    def sockets(self) -> list[socket]:
        """Return what can be read when that is so; nothing while not connected."""
        return self._wire.sockets()

    # -- client --------------------------------------------------------------------------------

    def encode_task(self, task: Task) -> Fields:
        """Return the stream fields of `task`, for `submit`."""
        return task.encode(self._signer)

    def submit(
        self,
        session: str,
        batch: int,
        tasks: Sequence[tuple[str, float, Fields]],
        *,
        again: bool = True,
        meanwhile: Callable[[], object] | None = None,
    ) -> int:
        """Put tasks into their lanes; sending the same batch again does nothing.

        Parameters
        ----------
        session
            Who submits.
        batch
            Its number, from 1, ascending.
        tasks
            For each: lane, delay in seconds, and what `encode_task` returned.
        again
            Whether this batch may have been sent before.
        meanwhile
            Called, if it is a single task, while the server is at it.

        Returns
        -------
        int
            The number of the last batch that the server knew before; 0: none.
        """
        key = self.keys.session(session)
        lane, delay, fields = tasks[0]
        if not again and len(tasks) == 1 and not delay:  # the same without a script: half the time
            add = ("XADD", self.keys.lane(lane), "*", *fields)
            write = (("MULTI",), add, ("SET", key, batch, "EX", WEEK, "GET"), ("EXEC",))
            replies = self._submit([lane], *write, soon=SPIN, meanwhile=meanwhile)
            last = replies[-1][-1]
            return int(last) if isinstance(last, bytes) and last.isdigit() else 0
        index: dict[str, int] = {}
        args: list[Any] = []
        for lane, delay, fields in tasks:
            at = index.setdefault(lane, len(index))
            args += (at, int(delay * 1000), len(fields), *fields)
        lanes = [name for lane in index for name in (self.keys.lane(lane), self.keys.delayed(lane))]
        return int(
            self._submit(index, scripts.submit(key, self.keys.control, lanes, batch, args))[0]
        )

    def await_events(self, session: str, after: dict[str, bytes], block: float) -> None:
        """Ask for the next events, for at most `block` seconds; `events` returns them.

        What was returned earlier is dropped from the session's stream, now and then.

        Parameters
        ----------
        after
            For the session, and each named job that is followed, the id of the last entry.
        """
        if self._n_read > TRIM_EVERY:
            # MINID keeps entries >= its argument: what lies before the last one that was read.
            self._n_read = 0
            self._wire.call(("XTRIM", self.keys.events(session), "MINID", after[session]))
        if time.monotonic() > self._renewal:
            # What waits for long is wanted still.
            self._renewal = time.monotonic() + RENEW_EVERY
            self._wire.call(("EXPIRE", self.keys.session(session), WEEK))
            self.renew()
        keys = [self.keys.events(name) for name in after]
        self._asked = dict(zip(map(str.encode, keys), after, strict=True))
        read: Command = ("XREAD", "COUNT", 100, "BLOCK", block_ms(block), "STREAMS")
        self._wire.send((*read, *keys, *after.values()))

    def events(self, after: dict[str, bytes]) -> list[Event | SignatureError]:
        """Return the events that were asked for; `after` then names the last entries.

        One with a wrong signature, of another session, or that came before, comes as the error; its
        entry is set aside.
        """
        entries = self._received(after)
        self._n_read += len(entries)
        found: list[Event | SignatureError] = []
        for key, entry_id, flat in entries:
            home, forged = self._asked[key], None
            after[home] = entry_id
            for k in range(0, len(flat), 2):
                try:
                    found.append(self._event(flat[k : k + 2], home, entry_id, k))
                except SignatureError as error:
                    found.append(forged := error)
            if forged and not self._refuse("event", key.decode(), entry_id, forged):
                found[found.index(forged)] = SignatureError(str(self._mismatch()))
        return found

    def _received(self, after: dict[str, bytes]) -> list[tuple[bytes, bytes, Fields]]:
        """Return (stream, id, fields) for each entry of the reply that is there."""
        try:
            return stream_entries(self._wire.receive())
        except MessageTooLarge:
            entries = []
            for key, home in self._asked.items():
                entry = self._entry_in_pieces(key.decode(), b"(" + _full(after[home]))
                entries += [(key, *entry)] if entry else []
            return entries

    def forget_session(self, session: str) -> None:
        """Drop what the server keeps for a client that is done."""
        self.drop_values(session)
        self._wire.call(("DEL", self.keys.events(session), self.keys.session(session)))

    def remembers(self, session: str, batch: int) -> bool:
        """Return whether the server still knows the queue, and that it took `batch`; 0: any.

        Who asks is there: its calls are wanted for another week, and what comes of them, though its
        number may have expired.
        """
        key = self.keys.session(session)
        known, last, _ = self._wire.call(
            ("HEXISTS", self.keys.meta, "secret"), ("GET", key), ("EXPIRE", key, WEEK)
        )
        if known and not batch and last is None:
            self._wire.call(("SET", key, 0, "NX", "EX", WEEK))
        return bool(known) and count(last) >= batch

    def cancel(self, job: str, span: Span, newly: Span, *, run: int | None = None) -> bool:
        """Cancel items of a job, waiting or running.

        Parameters
        ----------
        span
            All cancelled items of the job, for the workers that take them.
        newly
            Those cancelled now, for the workers that run them.
        run
            Of a named job: how often it had been run again when this was asked. None: whatever
            runs of it.

        Returns
        -------
        bool
            False, and nothing is cancelled, if the job was run again since then.
        """
        keys, event = self.keys, b""
        if is_named(job):  # other clients follow it
            event = Event(kind="cancelled", job=job, n=0, span=newly, worker="").seal(self._signer)
        command = scripts.cancel(
            keys.cancelled,
            keys.control,
            keys.job(job),
            keys.events(job),
            this_job=job,
            span=format_span(span),
            run=run,
            event=event,
            message=Control(kind="cancel", job=job, span=newly).encode(self._signer),
        )
        return bool(self._wire.call(command)[0])

    def everywhere(
        self, names: Sequence[str], tasks: Sequence[Task], others: Sequence[str] = ()
    ) -> bool:
        """Send a task to each of `names`, and the last of `tasks` to those that join later.

        Returns
        -------
        bool
            False, and nothing sent, if `names` and `others` are not exactly the registered workers.
        """
        lanes = [self.keys.lane(f"@{name}") for name in names]
        messages = [self.encode_task(task) for task in tasks]
        # Of a kind of its own: no other task may become one that every new worker runs.
        messages[-1] = tasks[-1].encode(self._signer, b"setup")
        keys = self.keys
        everybody = (*names, *others)
        command = scripts.everywhere(keys.workers, keys.setup, lanes, everybody, messages)
        # Else a session that does nothing else would look as if it were gone.
        there = ("SET", keys.session(session_of(tasks[-1].job)), 0, "EX", WEEK, "NX")
        return bool(self._wire.call(command, there)[0])

    # -- worker --------------------------------------------------------------------------------

    def take(
        self,
        settlements: Sequence[Settlement],
        lanes: Sequence[str],
        worker: str,
        count: int,
        *,
        block: float | None = None,
        soon: float = 0.0,
        on_settled: Callable[[], None] | None = None,
    ) -> list[Delivery]:
        """Settle what is over and return waiting tasks, in one round trip.

        Parameters
        ----------
        settlements
            What is over; sent before anything is waited for.
        lanes
            Where tasks are taken from; those of the first lane come first.
        worker
            Who takes them.
        count
            Most entries from each lane.
        block
            Seconds to wait for a task, if there is none; None: do not wait.
        soon
            The first of them, in which sleep would cost too much.
        on_settled
            Called when what is over was settled, before anything is waited for.

        Raises
        ------
        DataLost
            The lanes are gone: `join` makes them again.
        SecretMismatch
            The queue has got another secret, and some task is signed with that: it was put back.
            Others that came with it are in `held`.
        """
        names = self._names_of(lanes)
        read: Command = ("XREADGROUP", "GROUP", GROUP, worker, "COUNT", count)
        if block is not None:
            read += ("BLOCK", block_ms(block))
        read += ("STREAMS", *names, *([">"] * len(names)))
        settle = (self._settle(settlements),) if settlements else ()
        # What is cancelled is asked after the wait, in the same breath.
        how: dict[str, Any] = {"timeout": (block or 0) + REPLY_TIMEOUT, "soon": soon}
        how |= {"on_first": on_settled if settlements else None, "may_be_large": True}
        try:
            *settled, reply, version = self._wire.call(*settle, read, self._ask_version, **how)
        except ServerRefused as error:
            raise self._lanes_lost(error) from error
        if settled and 2 in settled[0]:  # not before: the read was under way
            self._note_copies(settlements, settled[0])
        entries = [(names[key], i, fields) for key, i, fields in stream_entries(reply)]
        deliveries, is_trusted = self._deliver(entries, version)
        if not is_trusted:
            raise self._mismatch()
        return deliveries

    def _lanes_lost(self, error: ServerRefused) -> Exception:
        """Return what a refused read says: that the lanes are gone, or what the server said."""
        if "NOGROUP" not in str(error):
            return error
        return DataLost(f"The server has lost the lanes of {self.keys.queue!r}.")

    def held(self, lanes: Sequence[str], worker: str) -> list[Delivery]:
        """Return what `worker` was given and has not settled."""
        entries = []
        for lane in lanes:
            key = self.keys.lane(lane)
            pending = [entry[0] for entry in self._pending(key, "-", "+", 10_000, worker)]
            entries += [(lane, *entry) for entry in self._entries(key, pending)]
        return self._deliver(entries, self._wire.call(self._ask_version)[0])[0]

    def drop_unwanted(self, lane: str) -> None:
        """Drop what lies at the front of a home's lane and nobody wants, for nobody may take it.

        Its kernel has ended, or its named job was deleted.
        """
        key = self.keys.lane(lane)
        for _ in range(MOST_DROPPED):
            entries, version = self._wire.call(
                ("XRANGE", key, "-", "+", "COUNT", 1), self._ask_version
            )
            found = [(lane, entry_id, fields) for entry_id, fields in entries]
            for d in self._deliver(found, version)[0]:
                is_over = d.cancelled == EVERYTHING and not is_named(d.task.job)
                if d.is_wanted and not is_over:
                    return
                self._wire.call(("XACK", key, GROUP, d.entry_id), ("XDEL", key, d.entry_id))
            if not entries:
                return

    def _entries(self, stream: str, ids: Sequence[bytes]) -> list[tuple[bytes, Fields]]:
        """Return those of the entries that are there."""
        if not ids:
            return []
        try:
            found = self._wire.call(*(("XRANGE", stream, i, i) for i in ids), may_be_large=True)
        except MessageTooLarge:
            pieces = (self._entry_in_pieces(stream, i) for i in ids)
            return [entry for entry, i in zip(pieces, ids, strict=True) if entry and entry[0] == i]
        return [(entry[0][0], entry[0][1]) for entry in found if entry]

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Settle deliveries; False for each that was no longer ours."""
        replies = self._wire.call(self._settle(settlements))[0]
        self._note_copies(settlements, replies)
        return [reply == 1 for reply in replies]

    def _settle(self, settlements: Sequence[Settlement]) -> Command:
        keys, args = encode_settlements(settlements, self.keys, self._signer)
        return scripts.settle(self.keys.control, keys, args)

    def _names_of(self, lanes: Sequence[str]) -> dict[bytes, str]:
        """Return key -> lane; kept, since a worker asks for the same ones again and again."""
        found = self._lane_names.get(lanes := tuple(lanes))
        if found is None:
            found = {self.keys.lane(lane).encode(): lane for lane in lanes}
            self._lane_names[lanes] = found
        return found

    def _deliver(
        self, entries: list[tuple[str, bytes, Fields]], version: bytes | None
    ) -> tuple[list[Delivery], bool]:
        """Check signatures, set the refused aside, and look up what was cancelled.

        Also tells whether the queue's secret is still one of ours; else what others may know is put
        back.
        """
        deliveries: list[Delivery] = []
        is_trusted, life = True, self._wire.server_life() if entries else 0
        for lane, entry_id, fields in entries:
            try:
                deliveries.append(Delivery.read(lane, entry_id, fields, self._signer, life))
            except SignatureError as error:
                if not self._refuse("task", self.keys.lane(lane), entry_id, error):
                    is_trusted = False
                    settle = encode_return(self.keys.lane(lane), entry_id)
                    self._wire.call(scripts.settle(self.keys.control, *settle))
        if gone := self.owners.gone(d.task.job for d in deliveries if d.lane[0] != "@"):
            for d in deliveries:
                d.is_wanted = d.lane[0] == "@" or session_of(d.task.job) not in gone
        if version and deliveries:
            spans = self._cancelled(version)
            for d in deliveries:
                # A session that is gone has all its jobs cancelled, under its own name.
                d.cancelled = spans.get(session_of(d.task.job)) or spans.get(d.task.job, ())
        return deliveries, is_trusted

    def _cancelled(self, version: bytes) -> dict[str, Span]:
        """Return what is cancelled; asks the server only if that was changed since."""
        known, spans = self._cancellations
        if known != version:
            written = mapping(self._wire.call(("HGETALL", self.keys.cancelled))[0])
            spans = {n.decode(errors="replace"): read_span(s) for n, s in written.items()}
            self._cancellations = (version, spans)
        return spans

    def publish(self, events: Sequence[Event], *, own: bool = False) -> None:
        """Send events that settle nothing: started, output, progress; not to those who are gone.

        Parameters
        ----------
        own
            Whether it is their session that sends them.
        """
        option = () if own else ("NOMKSTREAM",)
        add, live_on = [], []
        for event in events:
            stream = self.keys.events(session_of(event.job))
            add.append(("XADD", stream, *option, "*", *event.encode(self._signer)))
            if not is_named(event.job):
                live_on.append(("EXPIRE", stream, WEEK))
        replies = self._wire.call(*add, *live_on)
        # What is not there may also be a stream that this is the first event of; a job's is there.
        pairs = zip(events, replies, strict=False)
        unheard = [e for e, reply in pairs if reply is None and not is_named(e.job)]
        gone = self.owners.missing([*{session_of(e.job) for e in unheard}])
        if first := [e for e in unheard if session_of(e.job) not in gone]:
            self.publish(first, own=True)


def _full(entry_id: bytes) -> bytes:
    """Return an entry's id as XRANGE takes it behind a bracket."""
    return entry_id if b"-" in entry_id else entry_id + b"-0"
