"""What a worker is doing, in memory that it shares with its supervisor: no messages, no locks.

A task that waits for its own tasks runs others meanwhile, so a worker has a stack of running tasks.
Only the worker writes, except in `ask_to_stop`, `set_lanes`, `set_cancelled`, `hand_back`,
`set_wear` and `set_watched`. It sends a signal to the supervisor when it begins a task that has
limits, and when it is about to leave.

::

    q[0] state   q[1] depth of the stack   q[2] serial to stop   q[3] why   q[4] item to stop
    q[5] which of the rare lanes are in use, one bit each; from bit 32: how often the lanes of homes
        in use have changed
    q[6] process id of the supervisor   q[7] whether that watches closely
    q[8] whether the worker leaves, and why
    q[9] whether its task waits for calls that only other workers can run
    q[10] serial of the last outermost slice that has stored a state
    q[11] how many cancellations the supervisor has heard of   q[12] how many coroutines there are
    q[13] whether they are to be given back
    q[14] after how many calls the worker leaves   q[15] above how many bytes; 0: never
    task k, from q[16 + 40 k]: item, serial, deadline (s), memory limit (bytes), whether it has
        limits, since when the code of a coroutine runs (s; 0: it is none), length of text, text:
        three lengths and n, then lane, entry id and job
    q[2016] length of the name of the limit that a task waits for, and from q[2017] that name
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from ..wire.keys import RARE

SLOT_BYTES = 16384
#: How many running tasks fit. Deeper ones run, but a death there is charged to the last that fits.
MAX_DEPTH = 50
#: In the place of an item: the delivery is being unpickled, or its results are being pickled.
NO_ITEM = -1
#: Which word holds what; see above.
STATE, DEPTH, _STOP_SERIAL, _STOP_REASON, _STOP_ITEM = range(5)
LANE_BITS, _SUPERVISOR, _WATCHED, _LEAVING, _WAITS, _PROGRESS = range(5, 11)
N_CANCELLED, _N_COROUTINES, HANDS_BACK = range(11, 14)
MAX_CALLS, MAX_MEMORY = 14, 15
_FIRST, _WORDS = 16, 40
_ITEM, SERIAL, _DEADLINE, _MEMORY, _LIMITED, _SINCE, _LENGTH, _TEXT = range(8)
_AWAITED = _FIRST + _WORDS * MAX_DEPTH
_RARE_BITS = 2**32 - 1
_TEXT_BYTES = (_WORDS - _TEXT) * 8
#: Before the text: the lengths of lane, entry id and job; n and run.
_HEADER = struct.Struct("<HHHQQ")
#: Slots that a supervisor maps at once. More use address space, fewer use descriptors.
_BLOCK = 64


class WorkerState(IntEnum):
    """What the worker does now."""

    STARTING = 0
    IDLE = 1
    BUSY = 2
    ENDING = 3  #: it has nothing in hand any more


class Leaving(IntEnum):
    """Why a worker leaves without being told to by its supervisor."""

    NO = 0
    ASKED = 1  #: somebody sent it a signal
    TORN = 2  #: an item was stopped where it may have left something half done
    WORN = 3  #: it has run many calls, or uses much memory


class Stop(IntEnum):
    """Why a running item is stopped."""

    NONE = 0
    CANCELLED = 1
    TIME_LIMIT = 2
    MEMORY_LIMIT = 3
    TOO_DEEP = 4  #: it waits for tasks that no worker is left to run
    HANDED_BACK = 5  #: its worker has to end, and another one runs it again


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """One running item, as the supervisor sees it.

    Attributes
    ----------
    serial
        Number of the slice, in this worker, that the item is part of.
    item
        Which item of the delivery; `NO_ITEM` before the first and after the last.
    deadline
        When the item must be over, by the monotonic clock; 0: no limit.
    memory_limit
        Bytes that the worker may use; 0: no limit.
    is_limited
        Whether it has a limit of time or memory.
    lane, entry_id, job, n, run
        Which delivery.
    since
        Since when the code of a coroutine runs without a pause; 0 for a plain function.
    """

    serial: int
    item: int
    deadline: float
    memory_limit: int
    is_limited: bool
    lane: str
    entry_id: bytes
    job: str
    n: int
    run: int
    since: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        """What no other item of this worker has."""
        return self.serial, self.item


class Slot:
    """The shared memory of one worker.

    Parameters
    ----------
    memory
        `SLOT_BYTES` zero bytes; or the descriptor of a file of slots.
    number
        Which slot of that file.
    """

    def __init__(self, memory: memoryview | int, number: int = 0) -> None:
        if isinstance(memory, int):
            memory = memoryview(mmap.mmap(memory, SLOT_BYTES, offset=number * SLOT_BYTES))
        self._bytes = memory
        self.words = memory.cast("q")
        self._times = memory.cast("d")

    # -- the worker writes ---------------------------------------------------------------------

    def set_state(self, state: WorkerState) -> None:
        self.words[STATE] = state

    def set_supervisor(self, process: int) -> None:
        """Say whom to wake."""
        self.words[_SUPERVISOR] = process

    def push(
        self,
        lane: str,
        entry_id: bytes,
        job: str,
        n: int,
        run: int = 0,
        *,
        memory_limit: int = 0,
        is_limited: bool = False,
    ) -> int:
        """Add a delivery to the stack; return where its words begin."""
        words, texts = self.words, (lane.encode(), entry_id, job.encode())
        text = (_HEADER.pack(*map(len, texts), n, run) + b"".join(texts))[:_TEXT_BYTES]
        depth = words[DEPTH]
        at = _FIRST + _WORDS * min(depth, MAX_DEPTH - 1)
        start = (at + _TEXT) * 8
        words[at + SERIAL] = 0
        self._bytes[start : start + len(text)] = text
        words[at + _LENGTH] = len(text)
        words[at + _MEMORY] = memory_limit
        words[at + _LIMITED] = is_limited
        self._times[at + _DEADLINE] = self._times[at + _SINCE] = 0.0
        words[at] = NO_ITEM
        words[at + SERIAL] = -1
        words[DEPTH] = depth + 1
        if is_limited and not words[_WATCHED]:
            self._wake_supervisor()
        return at

    def _wake_supervisor(self) -> None:
        if self.words[_SUPERVISOR]:
            with suppress(OSError):  # it may have just died, or a task may have changed the user
                os.kill(self.words[_SUPERVISOR], signal.SIGCHLD)

    def leave(self, why: Leaving) -> None:
        """Tell the supervisor that the worker takes no more tasks: it can be replaced now."""
        self.words[_LEAVING] = why
        self._wake_supervisor()

    def set_waits(self, waits: bool) -> None:
        """Say whether the task waits, and this worker can't run what it waits for."""
        if self.words[_WAITS] != waits:
            self.words[_WAITS] = waits
            self._wake_supervisor()

    def set_awaited(self, limit: str = "") -> None:
        """Say for which limit a task waits."""
        text = limit.encode()
        start = (_AWAITED + 1) * 8
        self.words[_AWAITED] = 0
        self._bytes[start : start + len(text)] = text
        self.words[_AWAITED] = len(text)

    def note_progress(self) -> None:
        """Say that the outermost slice has stored a state."""
        self.words[_PROGRESS] = self.words[_FIRST + SERIAL]

    def begin(self, at: int, serial: int) -> None:
        """Say that the items in ``words[at]`` run from now on."""
        self.words[at + SERIAL] = serial

    def set_since(self, at: int, since: float) -> None:
        """Say that the code of a coroutine runs from now on, by the monotonic clock."""
        self._times[at + _SINCE] = since

    def add_coroutines(self, n: int) -> None:
        """Say that there are so many coroutines more."""
        self.words[_N_COROUTINES] += n

    def set_deadline(self, at: int, deadline: float) -> None:
        """Say when the item in ``words[at]`` must be over, by the monotonic clock."""
        self._times[at + _DEADLINE] = deadline

    def rest(self, at: int) -> None:
        """Say that no item of the delivery runs now, though more may follow."""
        # The deadline first: else the next item would seem to be over its time.
        self._times[at + _DEADLINE] = 0.0
        self.words[at + _ITEM] = NO_ITEM

    def restore(self, depth: int) -> None:
        """Drop all but the outer `depth` tasks."""
        self.words[DEPTH] = depth

    def stop_request(self) -> tuple[int, int, Stop]:
        """Return serial and number of the item that the supervisor wants stopped, and why."""
        return self.words[_STOP_SERIAL], self.words[_STOP_ITEM], Stop(self.words[_STOP_REASON])

    def unused_lanes(self) -> frozenset[str]:
        """Return the rare lanes that are not in use, as far as the supervisor knows."""
        return _unused(self.words[LANE_BITS] & _RARE_BITS)

    def n_lane_changes(self) -> int:
        """Return how often the lanes of homes have changed, as far as the supervisor knows."""
        return self.words[LANE_BITS] >> 32

    # -- the supervisor reads ------------------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        return WorkerState(self.words[STATE])

    @property
    def leaving(self) -> Leaving:
        return Leaving(self.words[_LEAVING])

    @property
    def waits(self) -> bool:
        return bool(self.words[_WAITS])

    @property
    def awaited(self) -> str:
        """Name of the limit that a task waits for; empty if none does."""
        start = (_AWAITED + 1) * 8
        text = bytes(self._bytes[start : start + self.words[_AWAITED]])
        return text.decode(errors="replace")

    @property
    def is_busy(self) -> bool:
        """Whether a task runs, or coroutines wait."""
        return self.words[DEPTH] > 0 or self.has_coroutines

    @property
    def has_coroutines(self) -> bool:
        """Whether there are coroutines that are not over."""
        return self.words[_N_COROUTINES] > 0

    @property
    def n_running(self) -> int:
        return min(self.words[DEPTH], MAX_DEPTH)

    @property
    def n_begun(self) -> int:
        """How many slices have begun, up to the last outermost one; 0 or -1 while one is loaded."""
        return self.words[_FIRST + SERIAL]

    @property
    def has_progress(self) -> bool:
        """Whether the last outermost slice has stored a state."""
        return 0 < self.words[_PROGRESS] == self.words[_FIRST + SERIAL]

    def running(self) -> list[RunningTask]:
        """Return what runs, outermost first, without a task that is just being changed."""
        found = (self._running_task(_FIRST + _WORDS * k) for k in range(self.n_running))
        return [running for running in found if running]

    def _running_task(self, at: int) -> RunningTask | None:
        serial = self.words[at + SERIAL]
        start = (at + _TEXT) * 8
        length = self.words[at + _LENGTH]
        if not serial or length < _HEADER.size:
            return None
        # Copied at once: it may be changed at any moment.
        text = bytes(self._bytes[start : start + length])
        n_lane, n_id, n_job, n, run = _HEADER.unpack_from(text)
        end_lane, end_id = _HEADER.size + n_lane, _HEADER.size + n_lane + n_id
        if end_id + n_job != length:
            return None
        running = RunningTask(
            serial=serial,
            item=self.words[at + _ITEM],
            deadline=self._times[at + _DEADLINE],
            memory_limit=self.words[at + _MEMORY],
            is_limited=bool(self.words[at + _LIMITED]),
            since=self._times[at + _SINCE],
            lane=text[_HEADER.size : end_lane].decode(errors="replace"),
            entry_id=text[end_lane:end_id],
            job=text[end_id:].decode(errors="replace"),
            n=n,
            run=run,
        )
        return running if self.words[at + SERIAL] == serial else None

    def ask_to_stop(self, running: RunningTask, why: Stop) -> None:
        """Name the item that is to stop; a signal to the worker must follow."""
        self.words[_STOP_REASON], self.words[_STOP_ITEM] = why, running.item
        self.words[_STOP_SERIAL] = running.serial

    def set_cancelled(self, n: int) -> None:
        """Say how many cancellations there were: perhaps one is of a coroutine that waits."""
        self.words[N_CANCELLED] = n

    def hand_back(self) -> None:
        """Tell the worker to stop its coroutines, and to give them back."""
        self.words[HANDS_BACK] = True

    def set_wear(self, max_calls: int, max_memory: int) -> None:
        """Say after how many calls, and above how many bytes, it leaves; 0: never."""
        self.words[MAX_CALLS], self.words[MAX_MEMORY] = max_calls, max_memory

    def set_watched(self, watched: bool) -> None:
        """Say whether the supervisor looks often: then a task that begins need not wake it."""
        self.words[_WATCHED] = watched

    def set_lanes(self, used: Collection[str], n_changes: int) -> None:
        """Say which rare lanes are in use, and how often those of homes changed. Then signal."""
        bits = sum(1 << k for k, lane in enumerate(RARE) if lane in used)
        self.words[LANE_BITS] = n_changes << 32 | bits


class Slots:
    """The slots of all workers of a supervisor: one file, and one descriptor for many workers.

    Parameters
    ----------
    descriptor
        Of an empty file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._blocks: list[memoryview] = []
        self._free: list[int] = []

    def take(self) -> tuple[int, Slot]:
        """Return the number of a free slot, and the slot, all zero."""
        if not self._free:
            n = len(self._blocks)
            os.ftruncate(self.descriptor, (n + 1) * _BLOCK * SLOT_BYTES)
            block = mmap.mmap(self.descriptor, _BLOCK * SLOT_BYTES, offset=n * _BLOCK * SLOT_BYTES)
            self._blocks.append(memoryview(block))
            self._free = list(range((n + 1) * _BLOCK - 1, n * _BLOCK - 1, -1))
        number = self._free.pop()
        at = number % _BLOCK * SLOT_BYTES
        memory = self._blocks[number // _BLOCK][at : at + SLOT_BYTES]
        memory[:] = bytes(SLOT_BYTES)
        return number, Slot(memory)

    def give_back(self, number: int) -> None:
        """Say that the worker that had this slot has ended."""
        self._free.append(number)


@cache
def _unused(bits: int) -> frozenset[str]:
    return frozenset(lane for k, lane in enumerate(RARE) if not bits >> k & 1)
