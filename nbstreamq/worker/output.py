"""Capture what tasks print, in its order, whether Python, C code or a subprocess prints it.

::

    print() ─> Stream.write ─┐
    C code, subprocesses ────┴─> descriptor 1 or 2 ─> a file ─> Output.collect ─> event

The file is shared with the supervisor, which reads its end when the worker dies and cuts it when
foreign code fills it.
"""

from __future__ import annotations

import builtins
import codecs
import ctypes
import io
import logging
import os
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..settings import LOG_FORMAT
from ..wire.messages import Task
from ..wire.settlement import Delivery


@dataclass(frozen=True, eq=False, slots=True)
class CoroutineItem:
    """An item of a task that runs as a coroutine.

    Attributes
    ----------
    current
        The one whose code runs; None while a plain function runs. Also known in the threads that
        it starts with `asyncio.to_thread`.
    """

    current: ClassVar[ContextVar[CoroutineItem | None]] = ContextVar("item", default=None)

    delivery: Delivery
    item: int

    @property
    def task(self) -> Task:
        """The task that it belongs to."""
        return self.delivery.task


#: Most bytes that are kept of what an item prints; a note says so. More costs server memory.
ITEM_LIMIT_BYTES = 2**20
#: Size at which the supervisor cuts a file that its worker does not read.
FILE_LIMIT_BYTES = 64 * 2**20
#: Seconds of items that share a look at the output of C code and subprocesses, after a look that
#: found nothing: what comes then is attributed to the last of them. Shorter costs more.
PAUSE = 0.005
#: Seconds for which the beginning of a line waits for its end. Longer shows a prompt later.
LINE_PATIENCE = 1.0
_DROPPED = f"\n[more than {ITEM_LIMIT_BYTES // 2**20} MB printed: the rest is dropped]\n"


@dataclass(frozen=True)
class Piece:
    """Text that an item of a task printed."""

    task: Task
    item: int
    stream: str
    text: str


@dataclass
class _CapturedFile:
    """The file of stdout or stderr, and how far it was read."""

    name: str
    descriptor: int
    position: int = 0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def read(self, limit: int) -> tuple[bytes, int]:
        """Return up to `limit` new bytes, and how many more there were."""
        size = os.lseek(self.descriptor, 0, os.SEEK_END)
        if size < self.position:  # The supervisor cut it.
            self.position = 0
        new = size - self.position
        data = os.pread(self.descriptor, min(new, limit), self.position) if limit else b""
        self.position = size
        if size > ITEM_LIMIT_BYTES:
            os.ftruncate(self.descriptor, 0)
            self.position = 0
        return data, new - len(data)


class Output:
    """Captures what this process prints, and knows which item of which task printed it.

    What Python code prints is caught at once. What other code writes to the descriptors is looked
    for after each delivery, after its first item, and then after each item as long as that finds
    something, else every few milliseconds: a look costs two system calls.

    Attributes
    ----------
    item
        The item of the current task that runs now.
    looked
        When it was last looked for, by the monotonic clock.
    pause
        Seconds until it is worth another look.
    """

    def __init__(self) -> None:
        self.item = 0
        self.looked = self.pause = 0.0
        self._tasks: list[Task] = []
        #: The tasks whose coroutines run, in no order.
        self._coroutines: list[Task] = []
        #: What `sys.stdout` and `sys.stderr` were before each of the tasks began: a task that waits
        #: for others may have redirected them.
        self._outer: list[tuple[Any, Any]] = []
        self._last: tuple[Task | None, int] = (None, 0)
        self._files: list[_CapturedFile] = []
        self._flush_c = ctypes.CDLL(None).fflush
        self._pieces: list[Piece] = []
        #: When the last line began, if it has no end yet.
        self._unfinished_since = 0.0
        self._streams: tuple[Stream, Stream] | None = None
        self._lock = threading.RLock()
        self._reporting = threading.Lock()
        self._seen: dict[tuple[int, int], int] = {}
        #: Whether C code or a subprocess printed since the thread of the running task looked.
        self._found = False

    def install(self, stdout: int, stderr: int) -> None:
        """Redirect what this process prints to the files with these descriptors.

        What nbstreamq itself logs also goes where the supervisor logs.
        """
        log = logging.StreamHandler(os.fdopen(os.dup(2), "w", errors="backslashreplace"))
        log.setFormatter(logging.Formatter(LOG_FORMAT))
        logging.getLogger("nbstreamq").addHandler(log)
        for target, (name, file) in enumerate((("stdout", stdout), ("stderr", stderr)), start=1):
            os.dup2(file, target)
            self._files.append(_CapturedFile(name, file))
        self._streams = Stream(self, "stdout", 1), Stream(self, "stderr", 2)
        self.put_streams_back()
        builtins.display = display  # type: ignore[attr-defined]  # as in a notebook
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
        logging.getLogger().handlers = [handler]  # instead of those of the supervisor

    def put_streams_back(self) -> None:
        """Set `sys.stdout` and `sys.stderr` again, in case an item has set others."""
        if self._streams is not None:
            sys.stdout, sys.stderr = self._streams

    def forked(self) -> None:
        """Only write, in a process that a task has forked: its parent reads it."""
        self._files = []
        # Another thread of the parent may have held the old ones.
        self._lock, self._reporting = threading.RLock(), threading.Lock()

    def enter(self, task: Task, item: int) -> None:
        """Attribute what is printed from now on to `item` of `task`."""
        if self._tasks:
            self.look()
        self.item = item
        self._tasks.append(task)
        self._outer.append((sys.stdout, sys.stderr))
        if self._streams is not None:  # As `put_streams_back`, without the call.
            sys.stdout, sys.stderr = self._streams
        self.pause = 0.0

    def restore(self, depth: int) -> None:
        """Drop all but the outer `depth` tasks: an error has ended those inside of them."""
        with self._lock:
            if len(self._tasks) > depth:
                self._last = self._owner()
                sys.stdout, sys.stderr = self._outer[depth]
                del self._tasks[depth:], self._outer[depth:]

    def leave(self) -> list[Piece]:
        """End the current task; return what was printed since the last `collect`."""
        with self._reporting, self._lock:
            self._take_in()
            self._found, self.pause = False, 0.0
            self._last = (self._tasks.pop(), self.item)
            sys.stdout, sys.stderr = self._outer.pop()
            if self._seen:
                open_tasks = {id(task) for task in (*self._tasks, *self._coroutines)}
                self._seen = {k: n for k, n in self._seen.items() if k[0] in open_tasks}
            pieces, self._pieces = self._pieces, []
            return pieces

    def begin_coroutines(self, task: Task) -> None:
        """Count what coroutines of `task` print, until `end_coroutines`."""
        self._coroutines.append(task)

    def end_coroutines(self, task: Task) -> list[Piece]:
        """End a task whose coroutines are over; return what was printed since the last look."""
        with self._reporting, self._lock:
            self._take_in()
            self._coroutines = [other for other in self._coroutines if other is not task]
            self._seen = {key: n for key, n in self._seen.items() if key[0] != id(task)}
            pieces, self._pieces = self._pieces, []
            return pieces

    def ran(self, item: CoroutineItem) -> None:
        """Attribute to a coroutine what C code and subprocesses print until another one runs."""
        self._last = (item.task, item.item)

    def reporting(self) -> threading.Lock:
        """Return a context in which no task can end: what it printed comes before its result."""
        return self._reporting

    def collect(self) -> list[Piece]:
        """Return what was printed since the last call, without a line that has just begun.

        Otherwise a line that is printed in parts would be shown as two.
        """
        with self._lock:
            self._take_in()
            pieces, self._pieces = self._pieces, self._unfinished()
            if self._pieces:
                begun, last = self._pieces[0], pieces.pop()
                if text := last.text.removesuffix(begun.text):
                    pieces.append(replace(last, text=text))
            return pieces

    def _unfinished(self) -> list[Piece]:
        """Return the last line, if it has no end yet and one may follow soon."""
        last = self._pieces[-1] if self._pieces else None
        end = 0 if last is None else 1 + max(last.text.rfind("\n"), last.text.rfind("\r"))
        if last is None or end == len(last.text):
            self._unfinished_since = 0.0
            return []
        if end or not self._unfinished_since:
            self._unfinished_since = self.looked
        if self.looked - self._unfinished_since > LINE_PATIENCE:
            self._unfinished_since = 0.0
            return []
        return [replace(last, text=last.text[end:])]

    def look(self) -> None:
        """Read what was written to the descriptors, and attribute it to the running item."""
        with self._lock:
            self._take_in()
            self.pause = 0.0 if self._found else PAUSE
            self._found = False

    def _take_in(self) -> None:
        self.looked = time.monotonic()
        self._flush_c(None)
        for file in self._files:
            # Something was written, or the file was cut. lseek takes a third of fstat's time.
            if os.lseek(file.descriptor, 0, os.SEEK_END) != file.position:
                self._found |= self._read(self._owner()) > 0
                return

    def write(self, descriptor: int, text: str) -> None:
        """Write `text` for the running item."""
        data = text.encode(errors="backslashreplace")
        with self._lock:
            owner = self._owner()
            while data and self._n_seen(owner) <= ITEM_LIMIT_BYTES:
                n = os.write(descriptor, data[:ITEM_LIMIT_BYTES])
                data = data[n:]
                self._found |= self._read(owner) > n

    def _owner(self) -> tuple[Task | None, int]:
        if (coroutine := CoroutineItem.current.get()) is not None:
            return coroutine.task, coroutine.item
        return (self._tasks[-1], self.item) if self._tasks else self._last

    def _n_seen(self, owner: tuple[Task | None, int]) -> int:
        return self._seen.get((id(owner[0]), owner[1]), 0)

    def _read(self, owner: tuple[Task | None, int]) -> int:
        """Move what the files hold to the pieces; return how many bytes."""
        n_read = 0
        for file in self._files:
            seen = self._n_seen(owner)
            data, dropped = file.read(max(0, ITEM_LIMIT_BYTES - seen))
            if data:
                # A look may come in the middle of a character.
                self._keep(owner, file.name, file.decoder.decode(data))
            if dropped and seen <= ITEM_LIMIT_BYTES:
                self._keep(owner, "stderr", _DROPPED)
            if data or dropped:
                self._seen[id(owner[0]), owner[1]] = seen + len(data) + dropped
            n_read += len(data) + dropped
        return n_read

    def _keep(self, owner: tuple[Task | None, int], stream: str, text: str) -> None:
        task, item = owner
        if task is None:
            return
        last = self._pieces[-1] if self._pieces else None
        if last and last.task is task and last.item == item and last.stream == stream:
            self._pieces[-1] = Piece(task, item, stream, last.text + text)
        else:
            self._pieces.append(Piece(task, item, stream, text))


def display(*values: object, **_: object) -> None:
    """Print values as a notebook without a browser shows them."""
    for value in values:
        sys.stdout.write(f"{value!r}\n")


class Stream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a worker."""

    def __init__(self, output: Output, name: str, descriptor: int) -> None:
        self._output = output
        self._name = name
        self._descriptor = descriptor
        self.buffer = _Bytes(self)

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        """Stay open: later tasks print here, too."""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self._output.write(self._descriptor, text)
        return len(text)


class _Bytes(io.RawIOBase):
    """The bytes side of a `Stream`, for ``sys.stdout.buffer.write``."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def close(self) -> None:
        """Stay open: later tasks print here, too."""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        raw = bytes(memoryview(data))  # type: ignore[arg-type]
        self._stream.write(raw.decode(errors="replace"))
        return len(raw)
