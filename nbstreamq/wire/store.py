"""The only access to Redis: one method per transition of a task, and per query."""

from __future__ import annotations

import json
import operator
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ..arguments import check_queue_name
from ..errors import DataLost, SecretMismatch, ServerRefused, SignatureError, VersionMismatch
from . import scripts
from .addresses import REPLY_TIMEOUT, Client
from .connection import SPIN, Command, MessageTooLarge, Wire, pack
from .item_ranges import EVERYTHING, ItemRanges, format_ranges, read_ranges, size
from .keys import (
    GROUP,
    LANES,
    MONTH,
    PREFIX,
    RARE,
    WEEK,
    Keys,
    base_lane,
    chunk_keys,
    home_of,
    is_home_lane,
    is_named,
    keys_of_job,
    lane_of,
    old_meta,
    owner_key,
    session_of,
    tail_of,
)
from .messages import HEADER, JOB, VERSION, ControlMessage, Event, Fields, Task
from .records import (
    Chunk,
    DeadEntry,
    JobRecord,
    ServerFacts,
    read_dead_entry,
    read_info,
    read_job,
    read_worker,
    server_facts,
)
from .replies import block_ms, count, mapping, printable, seconds, stream_entries
from .settlement import (
    CHUNKED,
    KEPT_BYTES,
    Delivery,
    Settlement,
    n_concurrent,
    return_command,
    settle_command,
)
from .signing import DIGEST_BYTES, ReplayCache, Signer

#: Seconds for which a session or job that was there is assumed to be there still. Until then
#: `cancelled` says which of its items must not run. Longer keeps that longer; shorter asks more
#: often.
TRUST = 30.0
#: Most owners that are remembered.
MOST_KNOWN = 10_000
#: Bytes that are read at a time of a value that is too large for one reply.
PIECE_BYTES = 2**18
#: About how many entries the dead stream keeps: the newest. More keeps evidence for longer.
DEAD_ENTRIES = 1000
#: Most bytes to show of a kind of message: others may have written it.
_KIND_BYTES = 200
#: Why a copy was refused.
REPLAYED = (
    "A message that was dealt with before was refused. Likely cause: somebody who can write to the"
    " server put a copy there."
)
#: Number of exchanges to time; the quickest counts.
N_PINGS = 5
#: Seconds that a large value may take to be sent or read.
LARGE_TIMEOUT = 60.0
#: Entries of an event stream that are read at a time.
PAGE = 1000
#: A clock that nobody sets, and that goes on while the machine sleeps; macOS's monotonic one does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
#: Entries that an event stream may hold after they were read; fewer cost more commands.
TRIM_EVERY = 100
#: Most entries that are dropped from a lane at a time: the server's other users wait meanwhile.
MOST_DROPPED = 100
#: How many commands that take tasks are kept packed.
MOST_READ_COMMANDS = 64
_MULTI, _EXEC = pack(("MULTI",)), pack(("EXEC",))
#: Most leases that a worker hears of at a time.
MOST_GRANTS = 100
#: Seconds after which a session renews its own lifetime and its queue's.
RENEW_EVERY = 3600.0


class Store:
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
    replays
        What was read already, through any connection; None: nothing.
    """

    def __init__(
        self, client: Client, queue: str, signer: Signer, replays: ReplayCache | None = None
    ) -> None:
        self.keys = Keys(queue)
        self._client = client
        self._signer = signer
        #: Returns the stream fields of a task, for `submit`; in C, since each call needs it.
        self.encode_task: Callable[[Task], Fields] = operator.methodcaller("encode", signer)
        self._replays = replays or ReplayCache()
        #: The connection, for those that wait for what it brings.
        self.wire = Wire(client, self.keys.meta, scripts.texts())
        self._n_read, self._renewal = 0, time.monotonic() + RENEW_EVERY
        self._asked: dict[bytes, str] = {}
        self._ask_version = pack(("HGET", self.keys.cancelled, "#"))
        #: Number of the last change that was read, and job -> cancelled items.
        self._cancellations: tuple[bytes, dict[str, tuple[ItemRanges, int]]] = (b"", {})
        #: The lanes that were submitted to through this connection.
        self._told = set[str]()
        #: When this connection sent its last heartbeat, by `_CLOCK`.
        self._last_beat: float | None = None
        #: Commands that take tasks, by what they ask for; with key -> lane.
        self._read_commands: dict[tuple[Any, ...], tuple[bytes, dict[bytes, str]]] = {}
        #: When each session or named job was last found on the server.
        self._owners_seen: dict[str, float] = {}
        #: Those whose cancellations are dropped if they are still missing the next time.
        self._owners_missing = set[str]()
        #: Whether a task was refused since this was last set to false.
        self.has_refused = False
        #: Seconds of a round trip, if a worker takes tasks ahead through this connection.
        self.distance = 0.0
        self._tidied = time.monotonic()

    def clone(self) -> Store:
        """Return the same queue through another connection."""
        return Store(self._client, self.keys.queue, self._signer, self._replays)

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self.wire.close()

    # -- tasks: the client's side --------------------------------------------------------------

    def submit(
        self,
        session: str,
        batch: int,
        tasks: Sequence[tuple[str, float, Fields, str]],
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
            For each: lane, delay in seconds, what `encode_task` returned, and the job if it is a
            chunk, which may have to wait in the job's backlog; else "".
        again
            Whether this batch may have been sent before.
        meanwhile
            Called while the server is at it.

        Returns
        -------
        int
            The number of the last batch that the server knew before; 0: none.
        """
        lane, delay, fields, job = tasks[0]
        # The same without a script takes half the time.
        if not (again or len(tasks) > 1 or delay or job):
            add = ("XADD", self.keys.lane(lane), "*", *fields)
            write = ("SET", self.keys.session(session), batch, "EX", WEEK, "GET")
            replies = self.wire.call(_MULTI, add, write, _EXEC, spin=SPIN, meanwhile=meanwhile)
            last = replies[-1][-1]
            if lane not in self._told:
                self._tell_of_use([lane])
            return int(last) if isinstance(last, bytes) and last.isdigit() else 0
        table: dict[str, int] = {}  # each key -> its index in the script's KEYS
        index = table.setdefault
        args: list[Any] = []
        for lane, delay, fields, job in tasks:
            stream, *places = chunk_keys(self.keys, job, lane)
            args.append(index(stream, len(table)))
            args.append(index(self.keys.delayed(lane), len(table)))
            args.append(job)
            if job:
                args += [index(place, len(table)) for place in places]
            args += (int(delay * 1000), len(fields), *fields)
        command = scripts.submit(self.keys, session, batch, table, args)
        lanes = {lane for lane, *_ in tasks}
        return int(self._submit(lanes, command, meanwhile=meanwhile)[0])

    def _submit(self, lanes: Iterable[str], *commands: Command, **options: Any) -> list[Any]:
        """Send commands that put tasks into `lanes`."""
        replies = self.wire.call(*commands, **options)
        self._tell_of_use(lanes)
        return replies

    def _tell_of_use(self, lanes: Iterable[str]) -> None:
        """Tell supervisors of lanes that are used through this connection for the first time."""
        if new := set(lanes) - self._told:
            self._told |= new
            with suppress(ServerRefused):  # that does little harm: see `used_lanes`
                self.wire.call(*(("EXPIRE", self.keys.lane(lane), MONTH) for lane in new))
                self._tell(new & set(RARE))

    def _tell(self, lanes: set[str]) -> None:
        keys = self.keys
        if lanes and any(self.wire.call(*(("HSET", keys.lanes, lane, 1) for lane in lanes))):
            self._wake_supervisors()

    def cancel(
        self, job: str, span: ItemRanges, newly: ItemRanges, *, run: int | None = None
    ) -> bool:
        """Cancel items of a job, waiting or running.

        Parameters
        ----------
        span
            All cancelled items of the job, for the workers that take them.
        newly
            Those cancelled now, for the workers that run them.
        run
            How often a named job had been run again when this was asked. None: cancel every run.

        Returns
        -------
        bool
            False, and nothing is cancelled, if the job was run again since then.
        """
        event = b""
        if is_named(job):  # other clients follow it
            event = self._news("cancelled", job, span=newly, run=run or 0)
        message = ControlMessage(kind="cancel", job=job, span=newly, run=run)
        command = scripts.cancel(
            self.keys,
            job,
            format_ranges(span) + ("" if run is None else f"@{run}"),
            run if is_named(job) else None,
            event,
            message.encode(self._signer),
        )
        return bool(self.wire.call(command)[0])

    def everywhere(
        self, names: Sequence[str], tasks: Sequence[Task], others: Sequence[str] = ()
    ) -> bool:
        """Send a task to each of `names`, and the last of `tasks` to those that join later.

        Returns
        -------
        bool
            False, and nothing sent, if `names` and `others` are not exactly the registered workers.
        """
        messages = [self.encode_task(task) for task in tasks]
        # Of a kind of its own: no other task may become one that every new worker runs.
        messages[-1] = tasks[-1].encode(self._signer, b"setup")
        command = scripts.everywhere(self.keys, names, others, messages)
        # Otherwise a session that does nothing else would seem to be gone.
        there = ("SET", self.keys.session(session_of(tasks[-1].job)), 0, "EX", WEEK, "NX")
        # Most idle workers do not wait on their own lanes: their supervisors wake them.
        job = tasks[-1].job
        return bool(self.wire.call(command, there, *self._control("everywhere", job))[0])

    def await_events(self, session: str, after: dict[str, bytes], block: float) -> None:
        """Ask for the next events, for at most `block` seconds; `events` returns them.

        What was returned earlier is dropped from the session's stream, now and then.

        Parameters
        ----------
        after
            For the session, and each named job that is followed, the id of the last entry.
        """
        if self._n_read > TRIM_EVERY:
            # MINID keeps entries >= its argument, so this drops all before the last one read.
            self._n_read = 0
            self.wire.call(("XTRIM", self.keys.events(session), "MINID", after[session]))
        if time.monotonic() > self._renewal:
            # A client that waits for long still wants its results.
            self._renewal = time.monotonic() + RENEW_EVERY
            self.wire.call(("EXPIRE", self.keys.session(session), WEEK))
            self.renew()
        keys = list(map(self.keys.events, after))
        self._asked = dict(zip(map(str.encode, keys), after, strict=True))
        read = ("XREAD", "COUNT", "100", "BLOCK", max(1, int(block * 1000)), "STREAMS")
        self.wire.send((*read, *keys, *after.values()), may_be_large=True)

    def events(self, after: dict[str, bytes]) -> list[Event | SignatureError]:
        """Return the events that were asked for; `after` then names the last entries.

        One with a wrong signature, of another session, or that came before, comes as the error; its
        entry is set aside.
        """
        try:
            reply = self.wire.receive() or ()
        except MessageTooLarge:
            reply = self._read_large_events(after)
        found: list[Event | SignatureError] = []
        for key, entries in reply.items() if isinstance(reply, dict) else reply:
            home, forged = self._asked[key], None
            self._n_read += len(entries)
            for entry_id, flat in entries:
                after[home] = entry_id
                for k in range(0, len(flat), 2):
                    try:
                        found.append(self._event(flat[k : k + 2], home, entry_id, k))
                    except SignatureError as error:
                        found.append(forged := error)
                if forged and not self._refuse("event", key.decode(), entry_id, forged):
                    found[found.index(forged)] = SignatureError(str(self._mismatch()))
                forged = None
        return found

    def _read_large_events(self, after: dict[str, bytes]) -> dict[bytes, Any]:
        """Return the next entry of each stream that was asked for, as XREAD does."""
        found = {}
        for key, home in self._asked.items():
            if entry := self._read_pieces(key.decode(), b"(" + _full(after[home])):
                found[key] = [entry]
        return found

    def _event(self, field: Fields, home: str, *place: object) -> Event:
        """Return an event; `SignatureError` if it is not signed, a copy, or not sent to `home`.

        Parameters
        ----------
        place
            Where in that stream it was read.
        """
        event = Event.decode(field, self._signer)
        if event.job.partition(".")[0] != home:  # `session_of`, without the call
            raise SignatureError(f"An event of {event.job} was refused: it was sent to {home}.")
        # The first end of an item counts, and that of an earlier run does not: a copy is harmless.
        if event.kind != "finished":
            self._check_new(field[1], home, *place)
        return event

    def remembers(self, session: str, batch: int) -> bool:
        """Return whether the server still knows the queue, and that it took `batch`; 0: any.

        The session that asks is alive. So its key lives for another week, and is made again if it
        has expired.
        """
        key = self.keys.session(session)
        known, last, _ = self.wire.call(
            ("HEXISTS", self.keys.meta, "secret"), ("GET", key), ("EXPIRE", key, WEEK)
        )
        if known and not batch and last is None:
            self.wire.call(("SET", key, 0, "NX", "EX", WEEK))
        return bool(known) and count(last) >= batch

    def forget_session(self, session: str) -> None:
        """Drop what the server keeps for a client that is done."""
        self.drop_values(session)
        keys = self.keys
        owned = keys.events(session), keys.session(session), keys.checkpoints(session)
        self.wire.call(("DEL", *owned))

    # -- tasks: the worker's side --------------------------------------------------------------

    def take(
        self,
        settlements: Sequence[Settlement],
        lanes: Sequence[str],
        worker: str,
        count: int,
        *,
        block: float | None = None,
        spin: float = 0.0,
        on_settled: Callable[[list[int]], None] | None = None,
    ) -> list[Delivery]:
        """Settle what is over and return waiting tasks, in one round trip.

        Parameters
        ----------
        settlements
            What is over; sent before anything is waited for.
        lanes
            Where tasks are taken from; those of the first lane come first.
        worker, count
            Who takes them, and at most how many from each lane.
        block, spin
            Seconds to wait for a task if there is none, and the first of them in which not to
            sleep; None: do not wait.
        on_settled
            Called when what is over was settled, before anything is waited for; with 0 for each
            that was no longer ours.

        Raises
        ------
        DataLost
            The lanes are gone: `join` makes them again.
        SecretMismatch
            The queue has got another secret, and some task is signed with that: it was put back.
            Others that came with it are in `held`.
        """
        asked = (tuple(lanes), worker, count, block)
        read, names = self._read_commands.get(asked) or self._read_command(*asked)
        settle: tuple[Command, ...] = ()
        if settlements:
            settle = (settle_command(settlements, self.keys, self._signer, self.distance),)
        try:
            *settled, reply, version = self.wire.call(
                # `cancelled` is read after the wait, in the same request.
                *(*settle, read, self._ask_version),
                timeout=(block or 0) + REPLY_TIMEOUT,
                spin=spin,
                on_first=on_settled if settlements else None,
                may_be_large=True,
            )
        except ServerRefused as error:
            raise self._lanes_lost(error) from error
        if settled and 2 in settled[0]:  # not before: the read was under way
            self._note_copies(settlements, settled[0])
        if not reply:
            return []
        taken: list[tuple[str, list[tuple[bytes, Fields]]]] = []
        for key, entries in reply.items() if type(reply) is dict else reply:
            taken.append((names[key], entries))
        deliveries, is_trusted = self._deliver(taken, version)
        if not is_trusted:
            raise self._mismatch()
        return deliveries

    def begin_take(
        self, settlements: Sequence[Settlement], lanes: Sequence[str], worker: str, count: int
    ) -> Callable[[Store], tuple[list[int], list[Delivery]]]:
        """Send what `take` sends, without waiting for tasks; `count` may be 0: read none.

        Returns
        -------
        callable
            Waits for the reply, and returns what `settle` and `take` return. It is given a `Store`
            with another connection, for further questions: behind this request others may be sent.
        """
        read, names = self._read_command(tuple(lanes), worker, count, None)
        commands: list[Command] = [read, self._ask_version] if count else []
        if settlements:
            commands[:0] = [settle_command(settlements, self.keys, self._signer, self.distance)]
        self.wire.send(*commands, may_be_large=True)

        def receive(other: Store) -> tuple[list[int], list[Delivery]]:
            try:
                replies = self.wire.call(*commands, may_be_large=True, is_sent=True)
            except ServerRefused as error:
                raise self._lanes_lost(error) from error
            settled: list[int] = replies.pop(0) if settlements else []
            other._note_copies(settlements, settled)
            if not (count and replies[0]):
                return settled, []
            found = replies[0].items() if type(replies[0]) is dict else replies[0]
            taken, is_trusted = other._deliver([(names[k], v) for k, v in found], replies[1])
            if not is_trusted:
                raise self._mismatch()
            return settled, taken

        return receive

    def _lanes_lost(self, error: ServerRefused) -> Exception:
        """Return what a refused read says: that the lanes are gone, or what the server said."""
        if "NOGROUP" not in str(error):
            return error
        return DataLost(f"The server has lost the lanes of {self.keys.queue!r}.")

    def _read_command(
        self, lanes: tuple[str, ...], worker: str, count: int, block: float | None
    ) -> tuple[bytes, dict[bytes, str]]:
        """Return the command that takes tasks, and key -> lane.

        It is kept, since a worker often sends the same one.
        """
        names = {self.keys.lane(lane).encode(): lane for lane in lanes}
        wait = () if block is None else ("BLOCK", block_ms(block))
        streams = ("STREAMS", *names, *([">"] * len(names)))
        command = pack(("XREADGROUP", "GROUP", GROUP, worker, "COUNT", count, *wait, *streams))
        if len(self._read_commands) >= MOST_READ_COMMANDS:
            self._read_commands.clear()
        self._read_commands[lanes, worker, count, block] = command, names
        return command, names

    def settle(self, settlements: Sequence[Settlement]) -> list[int]:
        """Settle deliveries; returns 0 for each that was no longer ours, 2 for a copy, else 1."""
        command = settle_command(settlements, self.keys, self._signer)
        replies: list[int] = self.wire.call(command)[0]
        self._note_copies(settlements, replies)
        return replies

    def held(self, lanes: Sequence[str], worker: str) -> list[Delivery]:
        """Return what `worker` was given and has not settled."""
        keys, which = [self.keys.lane(lane) for lane in lanes], ("-", "+", 10_000, worker)
        try:
            pending = self.wire.call(*(("XPENDING", key, GROUP, *which) for key in keys))
        except ServerRefused:  # A lane is not there.
            pending = [self._pending(key, *which) for key in keys]
        found = [
            (lane, self._entries(key, [entry[0] for entry in entries]))
            for lane, key, entries in zip(lanes, keys, pending, strict=True)
        ]
        return self._deliver(found, self.wire.call(self._ask_version)[0])[0]

    def _entries(self, stream: str, ids: Sequence[bytes]) -> list[tuple[bytes, Fields]]:
        """Return those of the entries that are there."""
        if not ids:
            return []
        try:
            found = self.wire.call(*(("XRANGE", stream, i, i) for i in ids), may_be_large=True)
        except MessageTooLarge:
            pieces = (self._read_pieces(stream, i) for i in ids)
            return [entry for entry, i in zip(pieces, ids, strict=True) if entry and entry[0] == i]
        return [(entry[0][0], entry[0][1]) for entry in found if entry]

    def _deliver(
        self, taken: list[tuple[str, list[tuple[bytes, Fields]]]], version: bytes | None
    ) -> tuple[list[Delivery], bool]:
        """Check signatures, set the refused aside, and look up what was cancelled.

        Parameters
        ----------
        taken
            Lanes, each with its entries.
        version
            Number of the last change of `cancelled`; None: nothing was ever cancelled.

        Returns
        -------
        tuple
            The deliveries; and whether the queue's secret is still one of ours. If it is not,
            entries that others may be able to check are put back.
        """
        deliveries: list[Delivery] = []
        is_trusted, doubtful = True, set[str]()
        life = self.wire.life or self.wire.server_life()
        trusted_since = time.monotonic() - TRUST
        for lane, entries in taken:
            for entry_id, fields in entries:
                try:
                    task = Task.decode(fields, self._signer)
                except SignatureError as error:
                    is_trusted = self._refuse_task(lane, entry_id, fields, error) and is_trusted
                    continue
                digest = fields[HEADER][1][:DIGEST_BYTES]
                mark = int.from_bytes(digest) ^ life
                deliveries.append(
                    Delivery(lane=lane, entry_id=entry_id, task=task, digest=digest, mark=mark)
                )
                owner = session_of(task.job)
                if lane[0] != "@" and self._owners_seen.get(owner, 0.0) <= trusted_since:
                    doubtful.add(owner)
        if doubtful and (gone := self._missing_owners([*doubtful])):
            for d in deliveries:
                d.is_wanted = d.lane[0] == "@" or session_of(d.task.job) not in gone
        if version and deliveries:
            self._note_cancelled(deliveries, version)
        return deliveries, is_trusted

    def look_up_cancelled(self, deliveries: Sequence[Delivery]) -> None:
        """Note which items of these have been cancelled since they were taken."""
        if version := self.wire.call(self._ask_version)[0]:
            self._note_cancelled(deliveries, version)

    def _note_cancelled(self, deliveries: Sequence[Delivery], version: bytes) -> None:
        spans = self._cancelled(version)
        for d in deliveries:
            # A session that is gone has all its jobs cancelled, under its own name.
            found = spans.get(session_of(d.task.job)) or spans.get(d.task.job)
            if found and d.task.run <= found[1]:
                d.cancelled = found[0]

    def _refuse_task(
        self, lane: str, entry_id: bytes, fields: Fields, error: SignatureError
    ) -> bool:
        """Set an entry aside; put it back, and return False, if we lack the queue's secret."""
        self.has_refused = True
        is_trusted = self._refuse("task", self.keys.lane(lane), entry_id, error)
        if not is_trusted and lane.startswith(lane_of("")):  # Nobody else reads it.
            self._drop(lane, entry_id)
        elif not is_trusted:
            self.wire.call(return_command(self.keys, lane, entry_id, fields))
        elif len(fields) > JOB:  # It may be a chunk, signed with a secret that nobody accepts now.
            self._leave(lane, fields[JOB].decode(errors="replace"), entry_id)
        return is_trusted

    def _drop(self, lane: str, entry_id: bytes) -> None:
        key = self.keys.lane(lane)
        self.wire.call(("XACK", key, GROUP, entry_id), ("XDEL", key, entry_id))

    def _cancelled(self, version: bytes) -> dict[str, tuple[ItemRanges, int]]:
        """Return job or session -> its cancelled items, and the last run that this concerns.

        Asks the server only if that has changed.
        """
        known, spans = self._cancellations
        if known != version:
            written = mapping(self.wire.call(("HGETALL", self.keys.cancelled))[0])
            spans = {}
            for name, text in written.items():
                span, _, run = text.partition(b"@")
                if found := read_ranges(span):
                    last = int(run) if run.isdigit() and len(run) < 16 else sys.maxsize
                    spans[name.decode(errors="replace")] = (found, last)
            self._cancellations = (version, spans)
        return spans

    def publish(self, events: Sequence[Event], *, own: bool = False) -> None:
        """Send events that settle nothing (started, output, progress) to sessions that still exist.

        Parameters
        ----------
        own
            Whether their own session sends them.
        """
        option = () if own else ("NOMKSTREAM",)
        add, live_on = [], []
        for event in events:
            stream = self.keys.events(session_of(event.job))
            add.append(("XADD", stream, *option, "*", *event.encode(self._signer)))
            if not is_named(event.job):
                live_on.append(("EXPIRE", stream, WEEK))
        replies = self.wire.call(*add, *live_on)
        # A stream is also missing before its first event; that of a named job always exists.
        pairs = zip(events, replies, strict=False)
        unheard = [e for e, reply in pairs if reply is None and not is_named(e.job)]
        gone = self._missing_owners([*{session_of(e.job) for e in unheard}])
        if first := [e for e in unheard if session_of(e.job) not in gone]:
            self.publish(first, own=True)

    def drop_unwanted(self, lane: str) -> None:
        """Drop entries at the front of a home's lane that nobody wants and no worker may take.

        Their kernel has ended, or their named job was deleted.
        """
        key = self.keys.lane(lane)
        for _ in range(MOST_DROPPED):
            entries, version = self.wire.call(
                ("XRANGE", key, "-", "+", "COUNT", 1), self._ask_version
            )
            for d in self._deliver([(lane, entries)], version)[0]:
                is_over = d.cancelled == EVERYTHING and not is_named(d.task.job)
                if d.is_wanted and not is_over:
                    return
                self._drop(lane, d.entry_id)
                if d.task.call in CHUNKED:
                    self._leave(lane, d.task.job, d.entry_id)
            if not entries:
                return

    # -- sessions and jobs that may be gone ----------------------------------------------------

    def _missing_owners(self, owners: list[str]) -> set[str]:
        """Return those of `owners` that no longer exist; asks the server."""
        if not owners:
            return set()
        there = self.wire.call(*(("EXISTS", owner_key(self.keys, o)) for o in owners))
        if len(self._owners_seen) > MOST_KNOWN:
            self._owners_seen.clear()
        now = time.monotonic()
        found = list(zip(owners, there, strict=True))
        self._owners_seen.update((owner, now) for owner, exists in found if exists)
        return {owner for owner, exists in found if not exists}

    def forget_cancellations(self) -> None:
        """Forget, now and then, what was cancelled of sessions and jobs that are gone for long."""
        if time.monotonic() < self._tidied + 2 * TRUST:
            return
        # HGETALL, not HKEYS: the ACL rules that we document do not allow HKEYS.
        names = mapping(self.wire.call(("HGETALL", self.keys.cancelled))[0])
        jobs = {name.decode(errors="replace"): name for name in names if name != b"#"}
        missing = self._missing_owners([*{session_of(job) for job in jobs}])
        gone = missing & self._owners_missing
        old = [name for job, name in jobs.items() if session_of(job) in gone]
        if old:
            self.wire.call(("HDEL", self.keys.cancelled, *old))
        self._owners_missing, self._tidied = missing, time.monotonic()

    # -- named jobs ----------------------------------------------------------------------------

    def job_names(self) -> dict[str, str]:
        """Return name -> id, also of jobs that have expired."""
        known = mapping(self.wire.call(("HGETALL", self.keys.jobs))[0])
        return {
            name.decode(errors="replace"): job.decode(errors="replace")
            for name, job in known.items()
        }

    def find_job(self, name: str) -> JobRecord | None:
        """Return the job of that name, None if there is none.

        Raises
        ------
        SignatureError
            The name leads to the job of another name: somebody else wrote that, since a job's id
            begins with its name, and what is kept of it is bound to the id.
        """
        job = self.wire.call(("HGET", self.keys.jobs, name))[0]
        if job is None:
            return None
        record = self.job_record(job.decode(errors="replace"))
        if record is not None and record.name != name:
            raise SignatureError(
                f"The name {name!r} leads to the results of another job, {printable(record.id)}:"
                " somebody else who can write to the server has changed that. Look who can;"
                f" delete the field {name} of the hash {self.keys.jobs}, and make the job again."
            )
        return record

    def job_record(self, job: str) -> JobRecord | None:
        """Return what is kept of the job with that id; None if it was deleted, or has expired."""
        key = self.keys.job(job)
        reply, ttl = self.wire.call(("HGETALL", key), ("PTTL", key))
        known = mapping(reply)
        return read_job(job, known, ttl, self._signer) if b"about" in known else None

    def readable_record(self, job: str, name: str) -> JobRecord | None:
        """Return `job_record`; None also if somebody else wrote or damaged it, or its name."""
        try:
            record = self.job_record(job)
        except (ValueError, KeyError):
            return None
        return record if record is not None and record.name == name else None

    def has_open_jobs(self, homes: Collection[str] = ()) -> bool:
        """Return whether a named job, of one of `homes` or of any, has items that are not over."""
        jobs = {n: job for n, job in self.job_names().items() if not homes or home_of(job) in homes}
        records = (self.readable_record(job, name) for name, job in jobs.items())
        return any(record is not None and record.n_ended < record.n_items for record in records)

    def job_bytes(self, job: str) -> int | None:
        """Return how much memory the server needs for a job; None if it does not tell."""
        try:
            keys = keys_of_job(self.keys, job)
            usage = self.wire.call(*(("MEMORY", "USAGE", key) for key in keys))
            return sum(n or 0 for n in usage)
        except ServerRefused:
            return None

    def history(self, job: str, after: bytes) -> tuple[bytes, list[Event]]:
        """Return the next events of a job after the entry `after`, and the id of the last entry.

        Those with a wrong signature, of another job, or that came before, are left out and set
        aside.
        """
        begin = b"-" if after == b"0" else b"(" + after
        key = self.keys.events(job)
        entries = self.wire.call(("XRANGE", key, begin, "+", "COUNT", PAGE))[0]
        events = []
        for entry_id, flat in entries:
            for k in range(0, len(flat), 2):
                try:
                    events.append(self._event(flat[k : k + 2], job, entry_id, k))
                except SignatureError as error:
                    self._refuse("event", key, entry_id, error)
        return (entries[-1][0] if entries else after), events

    def job_inputs(self, job: str, first: int) -> bytes | None:
        """Return the pickled items of the chunk that begins with item `first`."""
        sealed = self.wire.call(("HGET", self.keys.inputs(job), first))[0]
        return None if sealed is None else self._signer.unseal(b"inputs", _name(job, first), sealed)

    def open_job(self, name: str, job: str, about: dict[str, Any], *, instead_of: str) -> bool:
        """Make a named job; False if the name is that of another one than `instead_of`, an id.

        That one is deleted; cancel its tasks that are in a lane now.
        """
        owner = self.job_names().get(name, "")
        if owner not in (job, instead_of) and self.job_record(owner) is not None:
            return False
        sealed, event = self._about(job, about), self._news("opened", job)
        command = scripts.open_job(self.keys, name, owner, job, sealed, event)
        return bool(self.wire.call(command)[0])

    def append_chunk(
        self, job: str, chunk: Chunk, args: bytes, *, lane: str, delay: float, task: Fields
    ) -> bool:
        """Add a chunk to a job and submit it; False if the job does not end where it begins."""
        command = scripts.append_chunk(
            self.keys,
            job,
            lane,
            first=chunk.first,
            number=chunk.n_items,
            mark=f"{chunk.n_items}:{chunk.digest}",
            arguments=self._signer.seal(b"inputs", _name(job, chunk.first), args),
            delay=delay,
            task=task,
        )
        return bool(self._submit([lane], command)[0])

    def close_job(self, job: str, n_items: int) -> bool:
        """Mark a job as complete; False if it does not have `n_items` items."""
        event = self._news("closed", job, n=n_items)
        return bool(self.wire.call(scripts.close_job(self.keys, job, n_items, event))[0])

    def rerun(
        self,
        record: JobRecord,
        span: ItemRanges,
        tasks: list[Fields],
        *,
        lane: str,
        n_cancelled: int,
        token: str,
    ) -> int:
        """Put ended items of a job into their lane again.

        Parameters
        ----------
        record
            The job as it was found, with its new description in `about`.
        span
            The items: failed ones, and if `n_cancelled` is not 0 all that are cancelled.
        tasks
            What `encode_task` returned for them.
        token
            Identifies this call, so that the server does it once.

        Returns
        -------
        int
            1; 0 if another client has run it again, or it is gone; -1 while cancelled items are
            still in a lane, until a worker drops them.
        """
        command = scripts.rerun(
            self.keys,
            record.id,
            lane,
            last=record.n_reruns,
            about=self._about(record.id, record.about),
            n_failed=size(span) - n_cancelled,
            n_cancelled=n_cancelled,
            event=self._news("rerun", record.id, span=span, run=record.n_reruns + 1),
            token=token,
            messages=tasks,
        )
        return int(self._submit([lane], command)[0])

    def keep_job(self, job: str) -> None:
        """Keep a job, and the queue's secret, for ever."""
        keys = *keys_of_job(self.keys, job), self.keys.jobs, self.keys.meta
        self.wire.call(*(("PERSIST", key) for key in keys))

    def delete_job(self, name: str, job: str) -> None:
        """Forget a job; cancel its tasks that are in a lane first."""
        keys = self.keys
        self.wire.call(scripts.delete_job(keys, name, job))
        others = self.job_names().values()
        if -1 not in (self.wire.call(*(("PTTL", keys.job(j)) for j in others)) if others else ()):
            # No job that is left is kept for ever.
            self.wire.call(*(("EXPIRE", key, MONTH) for key in (keys.jobs, keys.meta)))

    def _about(self, job: str, about: dict[str, Any]) -> bytes:
        return self._signer.seal(b"job", job.encode(), json.dumps(about).encode())

    def _news(self, kind: str, job: str, **details: Any) -> bytes:
        return Event(**{"kind": kind, "job": job, "n": 0, "worker": "", **details}).seal(
            self._signer
        )

    # -- functions and values ------------------------------------------------------------------

    def put_function(self, digest: str, data: bytes) -> None:
        """Keep a pickled function for a week from now."""
        self._put(self.keys.function(digest), b"function", digest, data)

    def get_function(self, digest: str) -> bytes | None:
        """Return a pickled function; None if the server does not hold it.

        Raises
        ------
        SignatureError
            It is not signed with this queue's secret.
        SecretMismatch
            The queue has got another secret since.
        """
        return self._get(self.keys.function(digest), b"function", digest)

    def put_value(self, digest: str, data: bytes) -> None:
        """Keep a pickled value for a week from now."""
        self._put(self.keys.value(digest), b"value", digest, data)

    def get_value(self, digest: str) -> bytes | None:
        """Return a pickled value; None if the server does not hold it; raises as `get_function`."""
        return self._get(self.keys.value(digest), b"value", digest)

    def value_name(self, content: bytes) -> str:
        """Return the name of a value with this digest, for all who have this queue's secret.

        After the secret was changed it is another name: the old value can't be read any longer.
        """
        return self._signer.sign(b"value name", content).hex()

    def renew_values(self, digests: Sequence[str], function: str = "") -> bool:
        """Keep values for a week from now, and a function; return whether all values are there."""
        keys = [self.keys.value(digest) for digest in digests]
        if function:
            keys.append(self.keys.function(function))
        found = self.wire.call(*(("EXPIRE", key, WEEK) for key in keys))
        return all(found[: len(digests)])

    def put_environment(self, digest: str, data: bytes) -> None:
        """Keep what some workers have installed for a week from now; see `Environment`."""
        self._put(self.keys.environment(digest), b"environment", digest, data)

    def get_environment(self, digest: str) -> bytes | None:
        """Return what `put_environment` kept; raises as `get_function`."""
        return self._get(self.keys.environment(digest), b"environment", digest)

    def put_result(self, session: str, digest: str, data: bytes) -> None:
        """Keep a result as `put_value` does; the session deletes it, read or not, when it ends."""
        # The name first: a worker may die between the two.
        key = self.keys.results(session)
        self.wire.call(("HSET", key, digest, ""), ("EXPIRE", key, WEEK))
        self.put_value(digest, data)

    def drop_values(self, session: str, digests: Iterable[str] | None = None) -> None:
        """Forget values of a session; None: all results that it has not read."""
        key = self.keys.results(session)
        if digests is None:
            unread = mapping(self.wire.call(("HGETALL", key))[0])
            digests = [name.decode(errors="replace") for name in unread]
        if names := list(digests):
            self.wire.call(("DEL", *map(self.keys.value, names)), ("HDEL", key, *names))

    def _put(self, key: str, kind: bytes, digest: str, data: bytes) -> None:
        sealed = self._signer.seal(kind, digest.encode(), data)
        self.wire.call(("SET", key, sealed, "EX", WEEK), timeout=LARGE_TIMEOUT)

    def _get(self, key: str, kind: bytes, digest: str) -> bytes | None:
        sealed = self._read_value(key)
        try:
            return None if sealed is None else self._signer.unseal(kind, digest.encode(), sealed)
        except SignatureError as error:
            self.check_secret(write=False)
            self._set_aside(kind.decode(), key, [b"value", sealed or b""], str(error))
            raise

    def _read_value(self, key: str) -> bytes | None:
        try:
            sealed: bytes | None = self.wire.call(
                ("GET", key), timeout=LARGE_TIMEOUT, may_be_large=True
            )[0]
        except MessageTooLarge:
            whole = bytearray()
            while part := self.wire.call(
                ("GETRANGE", key, len(whole), len(whole) + PIECE_BYTES - 1)
            )[0]:
                whole += part
            return bytes(whole) or None
        return sealed

    # -- states of tasks -----------------------------------------------------------------------

    def put_checkpoint(self, job: str, task: str, data: bytes) -> None:
        """Keep the state of a task of `job` for a week from now, instead of the last one."""
        key = self.keys.checkpoints(session_of(job))
        sealed = self._signer.seal(b"checkpoint", task.encode(), data)
        self.wire.call(("HSET", key, task, sealed), ("EXPIRE", key, WEEK), timeout=LARGE_TIMEOUT)

    def get_checkpoint(self, job: str, task: str) -> bytes | None:
        """Return the last state of a task; None if there is none.

        Raises
        ------
        SignatureError
            It is not signed with this queue's secret.
        """
        get = ("HGET", self.keys.checkpoints(session_of(job)), task)
        sealed = self.wire.call(get, timeout=LARGE_TIMEOUT, may_be_large=True)[0]
        return sealed and self._signer.unseal(b"checkpoint", task.encode(), sealed)

    def drop_checkpoints(self, tasks: Iterable[str]) -> None:
        """Forget the states of some tasks, which are given by their ids."""
        jobs = {task: session_of(task.rpartition("-")[0]) for task in tasks}
        drops = [("HDEL", self.keys.checkpoints(job), task) for task, job in jobs.items()]
        if drops:
            self.wire.call(*drops)

    # -- limits --------------------------------------------------------------------------------

    def set_limit(self, name: str, concurrent: int | None, rate: float | None) -> None:
        """Set what a limit allows from now on; None: any number."""
        self.wire.call(scripts.set_limit(self.keys, name, _text(concurrent), _text(rate)))

    def acquire(
        self,
        name: str,
        concurrent: int | None,
        rate: float | None,
        worker: str,
        leases: Iterable[str],
    ) -> list[tuple[float, str]]:
        """Ask for leases of a limit, or ask again.

        Parameters
        ----------
        concurrent, rate
            What the limit allows, if the server has forgotten that.

        Returns
        -------
        list
            For each lease that is granted, 0 and the lease; for the next one, if its time is known,
            the seconds until then. `grants` returns later ones.
        """
        numbers = _text(concurrent), _text(rate)
        return list(
            map(
                _note,
                self.wire.call(scripts.acquire(self.keys, name, *numbers, worker, leases))[0],
            )
        )

    def release(self, name: str, worker: str, leases: Iterable[str]) -> None:
        """Give leases of a limit back, or no longer wait for them."""
        self.wire.call(scripts.release(self.keys, name, worker, leases))

    def await_grants(self, worker: str, block: float) -> None:
        """Ask, for at most `block` seconds, what has become of leases; `grants` returns it."""
        key = self.keys.granted(worker)
        self.wire.send(("BLMPOP", block, 1, key, "LEFT", "COUNT", MOST_GRANTS))

    def grants(self) -> list[tuple[float, str]]:
        """Return what `acquire` would, of leases that were asked for before."""
        reply = self.wire.receive()
        return list(map(_note, reply[1])) if reply else []

    def new_lease(self, worker: str, number: int) -> str:
        """Return a lease to ask for; a worker gives each of its own another number."""
        return f"{worker} {number} {self.keys.granted(worker)}"

    def limits(self) -> list[dict[str, Any]]:
        """Return for each limit its name, what it allows, and how many hold it and wait for it."""
        keys, found = self.keys, []
        for name in self._limit_names():
            about, n_leases, n_waiting = self.wire.call(
                ("HGETALL", keys.limit(name)),
                ("HLEN", keys.leases(name)),
                ("ZCARD", keys.waiting(name)),
            )
            known = mapping(about)
            if known:  # else it has expired
                concurrent, rate = known.get(b"concurrent", b""), known.get(b"rate", b"")
                found.append(
                    {
                        "limit": name,
                        "concurrent": count(concurrent) if concurrent else None,
                        "rate": seconds(rate) if rate else None,
                        "running": n_leases,
                        "waiting": n_waiting,
                    }
                )
        return found

    def _limit_names(self) -> list[str]:
        known = mapping(self.wire.call(("HGETALL", self.keys.limits))[0])
        return sorted(printable(name) for name in known)

    # -- lanes ---------------------------------------------------------------------------------

    def lanes(self, lanes: Iterable[str]) -> list[dict[str, Any]]:
        """Return for each of `lanes` its name, and its numbers of waiting and running entries.

        With those of its homes.
        """
        homes = self.home_lanes()
        found = []
        for lane in lanes:
            parts = [lane, *(home for home in homes if base_lane(home) == lane)]
            counts = [self._counts(part) for part in parts]
            found.append({"lane": lane, **{k: sum(c[k] for c in counts) for k in counts[0]}})
        return found

    def _counts(self, lane: str) -> dict[str, int]:
        running = sum(self._pending(self.keys.lane(lane))[:1])
        key = self.keys.lane(lane)
        n, delayed, jobs = self.wire.call(
            ("XLEN", key), ("ZCARD", self.keys.delayed(lane)), ("HGETALL", self.keys.backlogs(lane))
        )
        names = (name.decode(errors="replace") for name in mapping(jobs))
        backlogs = [chunk_keys(self.keys, name, lane)[1] for name in names]
        kept = sum(self.wire.call(*(("LLEN", key) for key in backlogs))) if backlogs else 0
        # Not counted at the same moment: some may have been done in between.
        counts = {"waiting": max(0, n - running) + kept, "running": running, "delayed": delayed}
        return {**counts, "over": max(0, self._n_added(key) - n)}

    def _n_added(self, key: str) -> int:
        """Return how many entries were ever added to a stream; 0 if it is not there."""
        try:
            about = mapping(self.wire.call(("XINFO", "STREAM", key))[0])
        except ServerRefused as error:
            if "no such key" in str(error):
                return 0
            raise
        return int(about[b"entries-added"])

    def _pending(self, key: str, *which: Any) -> Any:
        """Return what XPENDING says of a lane; nothing if it is not there."""
        try:
            return self.wire.call(("XPENDING", key, GROUP, *which))[0]
        except ServerRefused as error:
            if "NOGROUP" in str(error):
                return []
            raise

    def has_tasks(self, lanes: Iterable[str]) -> bool:
        """Return whether anything waits, runs or is delayed in `lanes`."""
        keys = self.keys
        asked = [
            (("XLEN", keys.lane(n)), ("ZCARD", keys.delayed(n)), ("HLEN", keys.backlogs(n)))
            for n in lanes
        ]
        return any(self.wire.call(*(command for three in asked for command in three)))

    def ensure_lanes(self, lanes: Iterable[str]) -> None:
        """Create the lanes, and their consumer group, that do not exist."""
        for lane in lanes:
            key = self.keys.lane(lane)
            try:
                self.wire.call(("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM"))
                self.wire.call(("EXPIRE", key, MONTH))
            except ServerRefused as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def renew(self, lanes: Iterable[str] = LANES) -> None:
        """Keep the queue, `lanes` and those of homes for a month, unless they never expire."""
        keys = self.keys
        wanted = [keys.meta, keys.jobs, keys.setup, keys.lanes]
        for lane in (*lanes, *self.home_lanes()):
            wanted += keys.lane(lane), keys.delayed(lane)
        self.wire.call(*(("EXPIRE", key, MONTH, "XX") for key in wanted))

    def used_lanes(self) -> frozenset[str]:
        """Return the lanes of homes, and those of `RARE` that were submitted to or hold anything.

        A lane may hold something that the server has not noted. If it refuses to say, all of `RARE`
        are returned.
        """
        keys = self.keys
        lengths = (("XLEN", keys.lane(lane)) for lane in RARE)
        try:
            known, *held = self.wire.call(("HGETALL", keys.lanes), *lengths)
        except ServerRefused:
            return frozenset(RARE)
        used = {name.decode(errors="replace") for name in mapping(known)}
        rare = (lane for lane, n in zip(RARE, held, strict=True) if n or lane in used)
        return frozenset((*rare, *filter(is_home_lane, used)))

    def home_lanes(self) -> list[str]:
        """Return the lanes of homes that may hold anything; none if the server refuses to say."""
        try:
            known = mapping(self.wire.call(("HGETALL", self.keys.lanes))[0])
        except ServerRefused:
            return []
        return sorted(filter(is_home_lane, (name.decode(errors="replace") for name in known)))

    def known_lanes(self) -> list[str]:
        """Return the usual lanes, those that registered workers serve, and those of homes."""
        served = {lane for d in self.workers().values() for lane in d.get("lanes", ())}
        return [*LANES, *sorted(served - set(LANES)), *self.home_lanes()]

    def use_lanes(self, lanes: Collection[str]) -> None:
        """Tell supervisors which lanes of homes tasks were or will be put into."""
        keys = self.keys
        tell = [("HSET", keys.lanes, lane, 1) for lane in lanes]
        # A retired lane would be gone in a day, with its tasks.
        lasting = [("EXPIRE", keys.lane(lane), MONTH) for lane in lanes]
        if any(self.wire.call(*tell, *lasting)[: len(tell)]):
            self._wake_supervisors()

    def retire_lanes(self, lanes: Iterable[str]) -> None:
        """Forget those of `lanes`, all of homes, that hold nothing."""
        if retire := [scripts.retire_lane(self.keys, lane) for lane in lanes]:
            self.wire.call(*retire)

    def _control(self, kind: str, job: str) -> tuple[Command, ...]:
        """Return the commands that send supervisors a message about a whole job."""
        fields = ControlMessage(kind=kind, job=job, span=EVERYTHING).encode(self._signer)
        control = self.keys.control
        return ("XADD", control, "MAXLEN", "~", 1000, "*", *fields), ("EXPIRE", control, WEEK)

    def _wake_supervisors(self) -> None:
        keys = self.keys
        wake = ("XADD", keys.control, "MAXLEN", "~", 1000, "*", "kind", "lane")
        lasting = ("EXPIRE", keys.control, WEEK), ("EXPIRE", keys.lanes, MONTH)
        self.wire.call(wake, *lasting)

    def top_up(self, lanes: Collection[str]) -> None:
        """Move chunks that wait in backlogs into `lanes`, where there is room for them.

        There may be more workers than before, or somebody else has deleted what they follow.
        """
        asked = [("HGETALL", self.keys.backlogs(lane)) for lane in lanes]
        with suppress(ServerRefused):  # others may have spoilt these keys
            found = zip(lanes, self.wire.call(*asked) if asked else (), strict=True)
            jobs = [(lane, name) for lane, names in found for name in mapping(names)]
            homes = self.home_lanes() if jobs else []
            commands = [
                self._top_up(lane, name.decode(errors="replace"), homes) for lane, name in jobs
            ]
            if commands:
                self.wire.call(*commands)

    def ask_for_more(self, delivery: Delivery) -> None:
        """Move chunks of the same job into its lane, as many as each worker can run at a time."""
        task = delivery.task
        if task.call in CHUNKED and (n_each := n_concurrent(task)) > 1:
            with suppress(ServerRefused):  # as above
                lane, homes = delivery.lane, self.home_lanes()
                self.wire.call(self._top_up(lane, task.job, homes, n_each=n_each))

    def _top_up(
        self, lane: str, job: str, homes: Iterable[str], gone: bytes = b"", n_each: int = 1
    ) -> Command:
        """Return the call of ``top_up.lua`` for a job, once the entry `gone` has left its lane."""
        parts = [home for home in homes if base_lane(home) == base_lane(lane)]
        return scripts.top_up(self.keys, job, lane, parts, gone, n_each)

    def _leave(self, lane: str, job: str, entry_id: bytes) -> None:
        """Have the next chunk follow an entry that has left its lane, but was not settled."""
        with suppress(ServerRefused):  # as above
            self.wire.call(self._top_up(lane, job, self.home_lanes(), entry_id))

    # -- supervision ---------------------------------------------------------------------------

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the registered workers: id -> description.

        Descriptions are not signed, since nothing of them is ever run; malformed ones are dropped.
        """
        described = mapping(self.wire.call(("HGETALL", self.keys.workers))[0])
        found = {}
        for name, text in described.items():
            try:
                worker, description = read_worker(name, text)
                found[worker] = description
            except (ValueError, RecursionError):
                if self.wire.call(("HDEL", self.keys.workers, name))[0]:
                    problem = "A worker's description could not be read."
                    self._set_aside(
                        "worker", self.keys.workers, [b"value", name + b" " + text], problem
                    )
        return found

    def living_workers(self, silence: float) -> dict[str, dict[str, Any]]:
        """Return the registered workers of machines heard within `silence` seconds.

        Workers of a lost machine stay registered until another supervisor misses it.
        """
        beats, now = self.wire.call(("ZRANGE", self.keys.nodes, 0, -1, "WITHSCORES"), ("TIME",))
        earliest = (int(now[0]) - silence) * 1000
        heard = {
            node.decode(errors="replace")
            for node, at in mapping(beats).items()
            if float(at) >= earliest
        }
        return {w: about for w, about in self.workers().items() if about.get("node") in heard}

    def join(self, worker: str, description: dict[str, Any]) -> list[Task]:
        """Register a worker, and return the set-up tasks that it must run first."""
        keys = self.keys
        entries = self.wire.call(scripts.join(keys, worker, json.dumps(description)))[0]
        self.top_up(description.get("lanes", LANES))
        tasks = []
        for entry_id, fields in entries:
            try:
                task = Task.decode(fields, self._signer, b"setup")
                self._check_new(fields[HEADER][1], keys.setup, entry_id)
                tasks.append(task)
            except SignatureError as error:
                self._refuse("setup", keys.setup, entry_id, error)
        return tasks

    def heartbeat(
        self, node: str, workers: dict[str, dict[str, Any]]
    ) -> tuple[float, dict[str, float]]:
        """Say that `node` and its workers live.

        Returns
        -------
        tuple
            By how many seconds the server's clock went back since this connection's last heartbeat,
            0 if it did not: see `hasten`; and the last heartbeat of each node, by that clock.
        """
        descriptions = {worker: json.dumps(about) for worker, about in workers.items()}
        before, self._last_beat = self._last_beat, time.clock_gettime(_CLOCK)
        elapsed = 0.0 if before is None else self._last_beat - before
        command = scripts.heartbeat(self.keys, node, elapsed, descriptions)
        step, *flat = self.wire.call(command)[0]
        beats = {}
        for name, beat in mapping(flat).items():
            try:
                beats[name.decode()] = float(beat)
            except ValueError:  # not UTF-8
                self.wire.call(("ZREM", self.keys.nodes, name))
        return int(step) / 1000, beats

    def hasten(self, seconds: float, lanes: Iterable[str]) -> None:
        """Make delayed tasks due earlier by as much as the server's clock went back."""
        self.wire.call(scripts.hasten(self.keys, lanes, seconds))

    def promote(self, lanes: Iterable[str]) -> float | None:
        """Move due tasks into their lanes; return seconds until the next is due, None if none."""
        waits = self.wire.call(*(scripts.promote(self.keys, lane) for lane in lanes))
        due = [wait / 1000 for wait in waits if wait >= 0]
        return min(due) if due else None

    def forget_worker(self, worker: str, lanes: Iterable[str]) -> bool:
        """Forget a dead worker; False if it still holds entries, which `held` then returns.

        Its leases of limits go to others at once.
        """
        self._release_all(worker)
        if not self.wire.call(scripts.forget_worker(self.keys, worker, lanes))[0]:
            return False
        self._release_all(worker)  # Until then it could get others.
        return True

    def _release_all(self, worker: str) -> None:
        with suppress(ServerRefused):
            for name in self._limit_names():
                with suppress(ServerRefused):  # Others may have spoilt the keys of this one.
                    self.release(name, worker, ())
            self.wire.call(("DEL", self.keys.granted(worker)))

    def forget_node(self, node: str) -> None:
        """Drop a node whose workers are all buried."""
        self.wire.call(("ZREM", self.keys.nodes, node), ("HDEL", self.keys.troubles, node))

    def tell_trouble(self, node: str, text: str) -> None:
        """Publish what is wrong with the workers of `node`; empty: nothing."""
        key = self.keys.troubles
        if not text:
            self.wire.call(("HDEL", key, node))
            return
        sealed = self._signer.seal(b"trouble", node.encode(), text.encode())
        self.wire.call(("HSET", key, node, sealed), ("EXPIRE", key, WEEK))

    def troubles(self) -> list[str]:
        """Return what supervisors say is wrong with their workers; unsigned words are left out."""
        said = mapping(self.wire.call(("HGETALL", self.keys.troubles))[0])
        found = []
        for node, sealed in sorted(said.items()):
            with suppress(SignatureError):
                found.append(self._signer.unseal(b"trouble", node, sealed).decode())
        return found

    def await_control(self, after: bytes, block: float = 30.0) -> None:
        """Ask, for at most `block` seconds, for the control entries after `after`.

        `controls` returns them.
        """
        read = ("XREAD", "BLOCK", block_ms(block), "STREAMS", self.keys.control, after)
        self.wire.send(read, may_be_large=True)

    def controls(self, after: bytes) -> tuple[bytes, list[ControlMessage]]:
        """Return the id of the last control entry, and those that carry an order."""
        entries = stream_entries(self.wire.receive())
        orders = []
        for _, entry_id, fields in entries:
            if fields[::2] == [b"kind"]:  # a mere wake-up
                continue
            try:
                order = ControlMessage.decode(fields, self._signer)
                self._check_new(fields[3], self.keys.control, entry_id)
                orders.append(order)
            except SignatureError as error:
                self._refuse("control", self.keys.control, entry_id, error)
        return (entries[-1][1] if entries else after), orders

    def last_control(self) -> bytes:
        """Return the id of the newest control entry, where a new supervisor starts to listen."""
        newest = self.wire.call(("XREVRANGE", self.keys.control, "+", "-", "COUNT", 1))[0]
        return newest[0][0] if newest else b"0"

    # -- what is refused -----------------------------------------------------------------------

    def check_secret(self, *, write: bool = True) -> None:
        """Raise `SecretMismatch` unless the queue was made with this secret, or is new.

        Parameters
        ----------
        write
            Whether to write our first secret to a new queue, or to one that has an older of ours.
        """
        self._check_version()
        mine, *others = self._signer.fingerprints()
        command = scripts.check_secret(self.keys, int(write), mine, others)
        if not self.wire.call(command)[0]:
            raise self._mismatch()

    def _check_version(self) -> None:
        """Raise `VersionMismatch` if only an earlier version has data of this queue."""
        keys = self.keys
        try:
            has_data, has_old = self.wire.call(
                ("HEXISTS", keys.meta, "secret"), ("HEXISTS", old_meta(keys.queue), "secret")
            )
        except ServerRefused:  # the rules for this user do not allow it
            return
        if has_old and not has_data:
            raise VersionMismatch(
                f"Queue {keys.queue!r} holds data of an earlier version of nbstreamq, which"
                f" {VERSION} can't read: let that version finish its calls, then delete the queue"
                f" with `nbstreamq queues delete {keys.queue}`, or use another name."
            )

    def _mismatch(self) -> SecretMismatch:
        return SecretMismatch(
            f"Queue {self.keys.queue!r} has another secret than this process: it was made with"
            " another, or has got a new one. Set NBSTREAMQ_SECRET to the same value here and where"
            " the queue is used. If nobody needs what the queue holds, delete it:"
            f" `nbstreamq queues delete {self.keys.queue}`, with the server's URL if you gave one."
        )

    def refused(self) -> dict[str, int]:
        """Return kind of message -> how many were refused, by all clients and workers."""
        counts = mapping(self.wire.call(("HGETALL", self.keys.refused))[0])
        return {
            printable(kind[:_KIND_BYTES]): count(n) for kind, n in counts.items() if n.isdigit()
        }

    def _refuse(self, kind: str, stream: str, entry_id: bytes, error: Exception) -> bool:
        """Move an entry of `stream` to the dead stream, unless another process just did.

        Returns
        -------
        bool
            False, and nothing is done, if the queue has a new secret that others may know.
        """
        if str(error) == REPLAYED:
            kind = f"replayed {kind}"
        ours = self._signer.fingerprints()
        command = scripts.refuse(self.keys, stream, entry_id, str(error), kind, ours)
        # The server may be full, or forbid it: sound messages must not wait for that.
        with suppress(ServerRefused):
            return bool(self.wire.call(command)[0] >= 0)
        return True

    def refuse_copy(self, delivery: Delivery) -> None:
        """Move a copy of a task that has been run to the dead stream."""
        lane, task, entry_id = delivery.lane, delivery.task, delivery.entry_id
        self._refuse("task", self.keys.lane(lane), entry_id, SignatureError(REPLAYED))
        if task.call in CHUNKED:  # the copy may have been settled instead of this
            self._leave(lane, task.job, entry_id)

    def _check_new(self, signature: bytes, *place: object) -> None:
        if self._replays.is_copy(signature, *place):
            raise SignatureError(REPLAYED)

    def _note_copies(self, settlements: Sequence[Settlement], replies: list[int]) -> None:
        """Note in the dead stream which messages a named job had settled before: a reply of 2."""
        for settlement, reply in zip(settlements, replies, strict=True):
            if reply == 2:
                task = settlement.delivery.task.with_changes(args=b"")  # the job has them
                lane = self.keys.lane(settlement.delivery.lane)
                self._set_aside("replayed task", lane, task.encode(self._signer), REPLAYED)

    def _set_aside(self, kind: str, source: str, fields: Fields, error: str) -> None:
        """Note in the dead stream that `fields`, which are in no stream, were refused."""
        dead, counts = self.keys.dead, self.keys.refused
        kept = [part[:KEPT_BYTES] for part in fields]
        why = ("refused", error, "from", tail_of(source), *kept)
        with suppress(ServerRefused):
            self.wire.call(
                ("XADD", dead, "MAXLEN", "~", DEAD_ENTRIES, "*", *why),
                ("EXPIRE", dead, WEEK),
                ("HINCRBY", counts, kind, 1),
                ("EXPIRE", counts, WEEK),
            )

    def _read_pieces(self, stream: str, start: bytes) -> tuple[bytes, Fields] | None:
        """Return the first entry of a stream from `start` on, which one reply can't carry."""
        found = self.wire.call(scripts.read_piece(stream, start, 0, PIECE_BYTES))[0]
        if not found:
            return None
        entry_id, lengths, data = found
        whole = bytearray(data)
        while len(whole) < sum(lengths):
            more = scripts.read_piece(stream, entry_id, len(whole), PIECE_BYTES)
            found = self.wire.call(more)[0]
            if not found or found[0] != entry_id:  # it was deleted meanwhile
                return None
            whole += found[2]
        fields, at = [], 0
        for n_bytes in lengths:
            fields.append(bytes(whole[at : at + n_bytes]))
            at += n_bytes
        return entry_id, fields

    # -- the dead stream -----------------------------------------------------------------------

    def dead(self) -> list[DeadEntry]:
        """Return what was refused or failed for good, the newest last."""
        found = self.wire.call(("XRANGE", self.keys.dead, "-", "+"))[0]
        return [read_dead_entry(entry, self._signer) for entry in found]

    def dead_entry(self, entry_id: bytes) -> DeadEntry | None:
        """Return one entry; None if it no longer exists."""
        found = self.wire.call(("XRANGE", self.keys.dead, entry_id, entry_id))[0]
        return read_dead_entry(found[0], self._signer) if found else None

    def letters_of(self, job: str) -> list[DeadEntry]:
        """Return what failed for good of a job, as far as it is still listed."""
        ids = self.wire.call(("LRANGE", self.keys.letters(session_of(job)), 0, -1))[0]
        dead = self.keys.dead
        found = self.wire.call(*(("XRANGE", dead, one, one) for one in ids)) if ids else []
        entries = [read_dead_entry(one[0], self._signer) for one in found if one]
        return [e for e in entries if e.has_failed and e.task and e.task.job == job]

    def forget_dead(self, entries: Iterable[DeadEntry]) -> None:
        """Drop entries that somebody took care of."""
        for entry in entries:
            letters = self.keys.letters(session_of(entry.task.job if entry.task else ""))
            drop = ("XDEL", self.keys.dead, entry.entry_id), ("LREM", letters, 0, entry.entry_id)
            self.wire.call(*drop)

    # -- the server and its queues -------------------------------------------------------------

    def server_facts(self) -> ServerFacts:
        """Return what the server reports about itself; managed ones may not tell all."""
        try:
            info = read_info(_joined_text(self.wire.call(("INFO",))[0]))
        except ServerRefused:
            return ServerFacts()
        return server_facts(info, saves=self._saves(info.get("aof_enabled")))

    def _saves(self, aof_enabled: str | None) -> bool | None:
        """Return whether there is an AOF, or there are save points, which only CONFIG tells."""
        if aof_enabled == "1":
            return True
        try:
            reply = self.wire.call(("CONFIG", "GET", "save"))[0]
        except ServerRefused:
            return None
        values = list(reply.values()) if isinstance(reply, dict) else reply[1:2]
        if not values:
            return None
        return bool(_joined_text(values[0])) or (None if aof_enabled is None else False)

    def ping(self) -> float:
        """Return the seconds that an exchange takes, at best."""
        times = []
        for _ in range(N_PINGS):
            began = time.perf_counter()
            self.wire.call(("PING",))
            times.append(time.perf_counter() - began)
        return min(times)

    def clock_skew(self) -> float:
        """Return by how many seconds the server's clock is ahead of ours."""
        before = time.time()
        seconds, micros = self.wire.call(("TIME",))[0]
        return int(seconds) + int(micros) / 1e6 - (before + time.time()) / 2

    def queue_names(self, having: str = "meta") -> list[str]:
        """Return the names of the queues on the server that have a key of this kind: all.

        Of a cluster, only those on this queue's node.
        """
        start, end = f"{PREFIX}:{{", f"}}:{having}"
        found = self._scan(f"{start}*{end}")
        names = (key.decode(errors="replace")[len(start) : -len(end)] for key in found)
        return sorted(filter(_is_queue_name, names))  # others may have written any key

    def delete_queue(self) -> int:
        """Delete all keys of the queue, of earlier versions too; return how many there were."""
        found: list[bytes] = []
        for meta in (self.keys.meta, old_meta(self.keys.queue)):
            literal = re.sub(r"([][*?^\\-])", r"\\\1", meta.removesuffix("meta"))
            found += self._scan(f"{literal}*")
        return sum(self.wire.call(("UNLINK", *found))) if found else 0

    def _scan(self, pattern: str) -> list[bytes]:
        cursor, found = b"0", set[bytes]()
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            cursor, keys = self.wire.call(scan)[0]
            found.update(keys)
            if cursor == b"0":
                return sorted(found)


def _text(number: float | None) -> str:
    return "" if number is None else repr(number)


def _note(text: bytes) -> tuple[float, str]:
    """Return what has become of a lease: in how many seconds it may be granted, and the lease."""
    wait, _, lease = text.decode(errors="replace").partition(" ")
    return (int(wait) / 1000 if wait.isdigit() else 0.0), lease


def _joined_text(reply: Any) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)


def _is_queue_name(text: str) -> bool:
    try:
        check_queue_name("name", text)
    except ValueError:
        return False
    return True


def _name(job: str, first: int) -> bytes:
    return f"{job}/{first}".encode()


def _full(entry_id: bytes) -> bytes:
    """Return an entry's id as XRANGE takes it behind a bracket."""
    return entry_id if b"-" in entry_id else entry_id + b"-0"
