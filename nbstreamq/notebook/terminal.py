"""Jobs in a terminal: as text, and as a line that moves while something is waited for."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from ..client.progress import FRAME, Display
from .html import describe
from .view import JobPicture, WaitView, view_of_wait

if TYPE_CHECKING:
    from ..client.progress import Loop, Waits
    from ..client.session import Session
    from ..client.table import Outstanding

#: Characters of the bar in a terminal, and where there is little room.
BAR_WIDTH, MIN_BAR_WIDTH = 30, 10
#: Characters of a line; and of a long name where there is no room.
LINE_WIDTH, NAME_WIDTH = 120, 20
_ERASE = "\r\x1b[2K"
#: Seconds that a wait lasts which is not worth a line. Shorter costs calls in a row more.
BRIEF = 0.002
_one_at_a_time = threading.Lock()


def job_text(picture: JobPicture) -> str:
    """Return a bar, the numbers and the first errors of a job, coloured for terminals."""
    from rich.text import Text

    lines: list[Any] = [_line(picture, LINE_WIDTH)]
    if picture.obstacle:
        lines.append(Text(f"{picture.obstacle_kind}: {picture.obstacle}", style="yellow"))
    if picture.note:
        lines.append(Text(picture.note, style="yellow"))
    lines += [Text(f"✗ item {e.item}: {e.summary}", style="red") for e in picture.errors]
    return _rendered(lines, LINE_WIDTH)


def line_text(picture: JobPicture, width: int) -> str:
    """Return a bar and the numbers of a job in one line of `width` characters at most."""
    return _rendered([_line(picture, width)], width)


def _line(picture: JobPicture, width: int) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    name, words = Text(picture.name, style="bold"), Text(describe(picture))
    room = width - MIN_BAR_WIDTH - 2  # for the name and the words
    if len(name) + len(words) > room:
        words = Text(describe(picture, briefly=True))
    name.truncate(max(NAME_WIDTH, room - len(words)), overflow="ellipsis")
    words.truncate(max(1, room - len(name)), overflow="ellipsis")
    line = Table.grid(padding=(0, 1))
    for _ in range(3):
        line.add_column(no_wrap=True)
    bar_width = min(BAR_WIDTH, width - len(name) - len(words) - 2)
    n_over = picture.n_over if picture.has_total else 0
    bar = ProgressBar(total=max(1, picture.n), completed=n_over, width=bar_width)
    line.add_row(name, bar, words)
    return line


def _rendered(lines: list[Any], width: int) -> str:
    from rich.console import Console, Group

    file = io.StringIO()
    Console(file=file, force_terminal=True, width=width).print(Group(*lines))
    return file.getvalue().rstrip("\n")


# -- while something is waited for ---------------------------------------------------------------


def show_in_terminal(
    session: Session, what: Outstanding | Loop, waits: Waits | None
) -> Display | None:
    """Return a line that shows how far something is, if standard error is a terminal."""
    is_terminal = _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
    return ProgressLine(view_of_wait(session, what, waits)) if is_terminal else None


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


class ProgressLine(Display):
    """The last line of the terminal while something is waited for, below all that is printed."""

    def __init__(self, view: WaitView) -> None:
        self._view = view
        self._text, self._text_at = "", -math.inf
        self._terminal = sys.stderr
        self._lock = threading.RLock()
        self._has_terminal = self._is_drawn = False
        #: Whether the last thing that was printed is a part of a line.
        self._is_held = False
        self._streams: dict[str, Any] = {}

    def draws_after(self) -> float:
        return BRIEF

    def draw(self) -> None:
        if not self._has_terminal and not self._take_terminal():
            return
        now = time.monotonic()
        if now >= self._text_at + FRAME:
            width = shutil.get_terminal_size().columns - 1
            self._text, self._text_at = line_text(self._view.picture(), width), now
        with self._lock:
            if not self._is_held:
                self._terminal.write(_ERASE + self._text)
                self._terminal.flush()
                self._is_drawn = True

    def _take_terminal(self) -> bool:
        """Have what is printed go above the line, unless another thread has one there."""
        self._has_terminal = _one_at_a_time.acquire(blocking=False)
        self._is_held = False
        for name in ("stdout", "stderr") if self._has_terminal else ():
            stream = getattr(sys, name)
            if _is_terminal(stream):
                self._streams[name] = above = _Above(stream, self)
                setattr(sys, name, above)
        return self._has_terminal

    def end(self) -> None:
        if not self._has_terminal:
            return
        for name, above in self._streams.items():
            if getattr(sys, name) is above:
                setattr(sys, name, above.stream)
        with self._lock:
            self._erase()
        self._has_terminal = False
        _one_at_a_time.release()

    def print_above(self, stream: TextIO, text: str) -> int:
        """Write `text` to a stream of the same terminal, in place of the line."""
        with self._lock:
            self._erase()
            self._is_held = not text.endswith("\n")
            return stream.write(text)

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._terminal.write(_ERASE)
            self._terminal.flush()


class _Above:
    """A stream that writes above the line."""

    def __init__(self, stream: TextIO, line: ProgressLine) -> None:
        self.stream = stream
        self._line = line

    def write(self, text: str) -> int:
        return self._line.print_above(self.stream, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
