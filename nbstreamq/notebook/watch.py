"""The view of a queue: tables that are made anew each second, while somebody may look at them."""

from __future__ import annotations

import threading
import time
import weakref
from datetime import datetime
from typing import Any

from IPython.display import display

from ..client.queue import TaskQueue
from ..client.status import QueueStatus
from ..errors import NbstreamqError
from .reprs import jobs_html, status_html

__all__ = ["show_queue"]

#: Seconds between two pictures.
FRAME = 1.0
#: Seconds after which nobody looks any more. Longer keeps a forgotten view asking.
SPAN = 600.0

#: Queue -> what ends its view; a new view ends the old one.
_ends: weakref.WeakKeyDictionary[TaskQueue, threading.Event] = weakref.WeakKeyDictionary()


def show_queue(queue: TaskQueue) -> None:
    """Display a queue here, and keep the picture current for ten minutes, in the background."""
    end = threading.Event()
    if previous := _ends.get(queue):
        previous.set()
    _ends[queue] = end
    view = _View(queue)
    handle = display(view.picture(), raw=True, display_id=True)
    name, args = f"nbstreamq-watch-{queue.name}", (view, handle, end)
    threading.Thread(target=_follow, args=args, name=name, daemon=True).start()


def _follow(view: _View, handle: Any, end: threading.Event) -> None:
    until = time.monotonic() + SPAN
    while not end.wait(FRAME) and time.monotonic() < until and not view.queue.closed:
        try:
            handle.update(view.picture(), raw=True)
        except NbstreamqError:  # its server is gone: the last word stays
            return


class _View:
    """Looks at a queue again and again."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self._before: tuple[float, int] | None = None

    def picture(self) -> dict[str, str]:
        """Return what there is to show now."""
        status = self.queue.status()
        html = status_html(status, self._rate(status), f"as of {datetime.now():%H:%M:%S}")
        jobs = self.queue.jobs()
        return {"text/html": html + (jobs_html(jobs) if jobs else ""), "text/plain": str(status)}

    def _rate(self, status: QueueStatus) -> float | None:
        """Return the messages a second since the last look."""
        now = time.monotonic(), sum(lane.over for lane in status.lanes)
        before, self._before = self._before, now
        return None if before is None else max(0, now[1] - before[1]) / (now[0] - before[0])
