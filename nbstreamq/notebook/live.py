"""What a shell shows of jobs and queues: live views in a notebook, text in a terminal."""

from __future__ import annotations

import contextvars
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import DisplayHandle, display

from ..client.exit import drop_calls_at_exit
from ..client.future import CallFuture, TaskFuture
from ..client.job import Job
from ..client.progress import Display, Loop, Waits, show_waits
from ..client.queue import TaskQueue
from ..client.session import Session
from ..client.status import QueueStatus
from ..client.table import JobTable, Outstanding
from ..client.units import Units
from ..errors import NbstreamqError
from .html import (
    HTML_OF,
    describe,
    future_html,
    job_html,
    saved_html,
    status_html,
    units_html,
)
from .outputs import EndOfCall, Output, cell_now, is_only_saved
from .terminal import job_text
from .view import JobPicture, JobView, WaitView, view_of_wait

#: Seconds between two pictures of a job. Shorter costs browser and kernel more than eyes can see.
FRAME = 0.1
#: Share of the time that drawing may take. Larger is smoother, and takes more from the kernel.
MAX_DRAWING = 0.1
#: Most jobs that are over whose HTML is kept for pages that are not open.
MAX_ENDED = 100
#: Seconds between two pictures of a single call.
FUTURE_FRAME = 0.2
#: Seconds between two pictures of a queue.
REFRESH = 1.0
#: Seconds after which the view of a queue ends. Longer keeps a forgotten view asking the server.
QUEUE_VIEW_SECONDS = 600.0


def show_by_default(shell: Any) -> None:
    """Have `shell` show jobs and queues live, and futures, refs and statuses as tables."""
    formatter = shell.display_formatter
    html = formatter.formatters["text/html"]
    for kind, html_of in HTML_OF.items():
        html.for_type(kind, html_of)
    if hasattr(shell, "kernel"):
        drop_calls_at_exit()
        show_waits(show_wait, cell_now)
        formatter.ipython_display_formatter.for_type(TaskQueue, show_queue)
        formatter.ipython_display_formatter.for_type(Units, show_units)
        formatter.ipython_display_formatter.for_type(Job, show_job)
        formatter.ipython_display_formatter.for_type(TaskFuture, show_future)
    else:
        formatter.formatters["text/plain"].for_type(Job, _print_job)


def _print_job(job: Job[Any], printer: Any, _cycle: bool) -> None:
    printer.text(job_text(JobView(job).picture()))


# -- a job in a notebook ------------------------------------------------------------------------


class JobWidget(anywidget.AnyWidget):
    """The live view in the browser; see ``static/job.js``."""

    _esm = Path(__file__).parent / "static" / "job.js"
    _css = Path(__file__).parent / "static" / "job.css"
    #: The picture, as `job_html` returns it.
    html = traitlets.Unicode().tag(sync=True)
    #: Whether an item has failed that may be run again.
    can_retry = traitlets.Bool().tag(sync=True)
    #: Class of the element of the HTML that may hold a button.
    place = traitlets.Unicode().tag(sync=True)
    #: Whether a page may have put the button there already.
    offered = traitlets.Bool().tag(sync=True)
    #: What replaces the view when the job is over: ``data``, its last picture; ``id``, by which
    #: pages know the view; ``title`` and ``body`` of a notification. Empty until then.
    final = traitlets.Dict().tag(sync=True)
    #: Why a button could not do what it says.
    trouble = traitlets.Unicode().tag(sync=True)


#: What is displayed here, by the job that it shows. Its views agree, and follow what happens next.
_views: weakref.WeakKeyDictionary[JobTable, list[LiveJob]] = weakref.WeakKeyDictionary()
_ended: deque[LiveJob] = deque()


def show_job(job: Job[Any]) -> None:
    """Display a job here; the view follows it, in the background, until it is over."""
    view = JobView(job)
    picture = view.picture()
    handle = Output()
    if picture.is_over and not picture.counts["failed"]:  # not job.done(): it may be since then
        handle.display(_data(picture))
        return
    live = LiveJob(job, handle, picture)
    _views.setdefault(job._table, []).append(live)
    if picture.is_over:
        handle.display(_data(picture, live.place))
    else:
        data, metadata = live.bundle(picture)
        handle.display(data, metadata)
        live.follow(job, view)


def catch_up(*_: object) -> None:
    """Bring all views up to date at the end of a cell, as `outputs.end_cell` does it for calls.

    Jobs that are over get their last picture, and those that were run again are followed again.
    Where a program runs the notebook, this may be the last cell: then the picture says that.
    """
    for live in [live for views in list(_views.values()) for live in views]:
        live.catch_up()
    while _calls_of_cell:
        _calls_of_cell.pop().finish()


class LiveJob:
    """A job's output in the notebook; it keeps neither the job nor its results alive."""

    def __init__(self, job: Job[Any], handle: Output, picture: JobPicture) -> None:
        self._session, self._table = job._session, weakref.ref(job._table)
        self._handle = handle
        self._lock = threading.RLock()
        #: What draws the pictures, as long as the job is followed.
        self._view: JobView | None = None
        self._run = job._table.run
        self._is_kept = True  # whether a page has HTML in place of the view, if there was one
        # A restarted kernel shows the same job, and the page may still know the old one's view.
        self.place = f"nbstreamq-retry-{secrets.token_hex(8)}"
        self.widget = JobWidget(place=self.place)
        self.widget.on_msg(lambda _, message, __: self.obey(message))
        self._draw(picture)
        weakref.finalize(job._table, self._let_go).atexit = False

    def bundle(self, picture: JobPicture) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return data and metadata of the live view.

        What shows no widgets, such as GitHub, shows the HTML beside it. Google Colab wants
        metadata, which anywidget provides there.
        """
        if is_only_saved():
            return _data(picture), {}
        self._is_kept = False
        data, metadata = self.widget._repr_mimebundle_() or ({}, {})
        return {**data, **_data(picture)}, metadata

    def follow(self, job: Job[Any], view: JobView) -> None:
        """Have the view follow the job from now on, unless it does."""
        with self._lock:
            if self._view is not None:
                return
            self._view, self._run = view, job._table.run
        name = f"nbstreamq-view-{job.id}"
        threading.Thread(target=self._follow, args=(job, view), name=name, daemon=True).start()

    def catch_up(self) -> None:
        """Show that the job is over, or that it was run again, if it was."""
        job = self._job()
        if job is None:
            return
        if self._view is None and self._run != job._table.run:
            self._revive(job)
        self._end_if_over(job)
        with self._lock:
            if self._view is not None and is_only_saved():
                self._handle.update(_data(self._view.picture()))

    def obey(self, message: Any) -> None:
        """Do what a button says, or say why that failed."""
        if message == "kept":
            self.kept()
        job = self._job()
        if job is None:
            return
        self.widget.trouble = ""
        try:
            if message == "cancel":
                job.cancel()
            elif message == "add":
                self._session.workers.add_local()
            elif message == "retry":
                job.retry_failed()
                for live in list(_views.get(job._table, [self])):
                    live.catch_up()
        except NbstreamqError as error:
            self.widget.trouble = str(error)
        _answer_anywhere(self.widget)

    def kept(self) -> None:
        """Note that a page has the HTML, or that none will come for it."""
        if self.widget.final:  # else it was the HTML of before a retry
            self._is_kept = True
            self._let_go()

    def _job(self) -> Job[Any] | None:
        table = self._table()
        return None if table is None else Job(self._session, table)

    def _follow(self, job: Job[Any], view: JobView) -> None:
        # The view shows what the items print.
        job._table.show = lambda *_: None
        while self._view is view:
            self._watch(job, view)
            self._end_if_over(job)  # unless somebody has just run it again

    def _watch(self, job: Job[Any], view: JobView) -> None:
        """Draw what goes on, until the job is over."""
        over = threading.Event()
        job.add_done_callback(lambda _: over.set())
        pause = FRAME
        while not over.wait(pause):
            began = time.thread_time()
            with self._lock:
                self._draw(view.picture())
            pause = max(FRAME, (time.thread_time() - began) / MAX_DRAWING)

    def _draw(self, picture: JobPicture) -> None:
        html = job_html(picture)
        if html != self.widget.html:
            self.widget.html = html
            self.widget.can_retry = picture.counts["failed"] > 0
            _answer_anywhere(self.widget)

    def _end_if_over(self, job: Job[Any]) -> None:
        with self._lock:
            view = self._view
            if view is not None and job.done():
                self._view = None
                self._end(view.picture())

    def _end(self, picture: JobPicture) -> None:
        """Replace the view by HTML that needs no kernel, which the saved notebook keeps."""
        self._draw(picture)
        data = _data(picture, self.place)
        self._handle.update(data)
        self.widget.final = {
            "id": self.widget.model_id,
            "data": data,
            "title": f"{picture.name}: {picture.state}",
            "body": describe(picture),
        }
        _ended.append(self)
        if len(_ended) > MAX_ENDED:
            _ended.popleft().kept()

    def _let_go(self) -> None:
        """Close the widget, unless a page still has to get the HTML, or a button needs it."""
        job = self._job()
        if self._is_kept and (job is None or not job._table.errors(1)):
            self.widget.close()

    def _revive(self, job: Job[Any]) -> None:
        with self._lock:
            self.widget.final = {}
            view = JobView(job)
            data, metadata = self.bundle(view.picture())
            self._handle.update(data, metadata)
            self.follow(job, view)


def _answer_anywhere(widget: JobWidget) -> None:
    """Let clicks be answered in a subshell while a cell keeps the kernel busy.

    ipykernel 7.4 has them answered where the widget's last message came from, which is the cell's
    own shell; it forgets that without this entry.
    """
    getattr(widget.comm, "__dict__", {}).pop("_reply_subshell_id", None)


def _data(picture: JobPicture, place: str = "") -> dict[str, str]:
    """Return the data of an output that needs no widget."""
    return {"text/html": saved_html(picture, place), "text/plain": _text(picture)}


def _text(picture: JobPicture) -> str:
    return f"<Job {picture.id} {picture.name}: {picture.state}>"


# -- a call in a notebook -----------------------------------------------------------------------


def show_future(future: TaskFuture[Any]) -> None:
    """Display a call here; the output follows it, in the background, until it is over."""
    live = LiveFuture(future)
    EndOfCall(future, live.end)
    if not future.done():
        name = f"nbstreamq-view-{future.id}"
        threading.Thread(target=live.follow, name=name, daemon=True).start()


class LiveFuture:
    """A call's output in the notebook."""

    def __init__(self, future: TaskFuture[Any]) -> None:
        self._future = future
        self._over = threading.Event()
        self._shown = self._data()
        self._handle = Output()
        self._handle.display(self._shown)

    def follow(self) -> None:
        """Keep the output current until the call is over."""
        while not self._over.wait(FUTURE_FRAME):
            self._draw()

    def end(self) -> None:
        """Show how the call ended."""
        self._over.set()
        self._draw()

    def _draw(self) -> None:
        data = self._data()
        if data != self._shown:
            self._shown = data
            self._handle.update(data)

    def _data(self) -> dict[str, str]:
        return {"text/html": future_html(self._future), "text/plain": repr(self._future)}


# -- a queue, or units, in a notebook -----------------------------------------------------------

#: What is shown -> what ends its view: a new view ends the old one.
_ends: weakref.WeakKeyDictionary[TaskQueue | Units, threading.Event] = weakref.WeakKeyDictionary()


def show_queue(queue: TaskQueue) -> None:
    """Display a queue here, and keep the view current for ten minutes, in the background."""
    _show_current(queue, queue.name, LiveQueue(queue).data)


def show_units(units: Units) -> None:
    """Display the workers in another place in the same way."""

    def data() -> dict[str, str]:
        return {"text/html": units_html(units, as_of_now()), "text/plain": str(units)}

    _show_current(units, units.place, data)


def _show_current(it: TaskQueue | Units, name: str, data: Callable[[], dict[str, str]]) -> None:
    end = threading.Event()
    if previous := _ends.get(it):
        previous.set()
    _ends[it] = end
    handle = display(data(), raw=True, display_id=True)
    name = f"nbstreamq-watch-{name}"
    threading.Thread(target=_follow, args=(it, data, handle, end), name=name, daemon=True).start()


def _follow(
    it: TaskQueue | Units,
    data: Callable[[], dict[str, str]],
    handle: DisplayHandle,
    end: threading.Event,
) -> None:
    """Keep the output current until `end`, or until there is no more to see."""
    until = time.monotonic() + QUEUE_VIEW_SECONDS
    while not end.wait(REFRESH) and time.monotonic() < until and not it.closed:
        try:
            handle.update(data(), raw=True)
        except NbstreamqError:  # its server is gone: the last picture stays
            return


def as_of_now() -> str:
    """Return the last sentence of a view that is brought up to date until it ends."""
    return f"as of {datetime.now():%H:%M:%S}"


class LiveQueue:
    """Looks at a queue again and again."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue
        self._before: tuple[float, int] | None = None

    def data(self) -> dict[str, str]:
        """Return what there is to show now: MIME type -> text."""
        status = self._queue.status()
        html = status_html(status, self._rate(status), self._queue.jobs(), as_of_now())
        return {"text/html": html, "text/plain": str(status)}

    def _rate(self, status: QueueStatus) -> float | None:
        """Return the messages a second since the last look."""
        now = time.monotonic(), sum(lane.over for lane in status.lanes)
        before, self._before = self._before, now
        return None if before is None else max(0, now[1] - before[1]) / (now[0] - before[0])


# -- a wait in a notebook -----------------------------------------------------------------------


def show_wait(session: Session, what: Outstanding | Loop, waits: Waits | None) -> Display | None:
    """Show what a cell waits for, below the cell, unless it is displayed already."""
    # A thread that a user started has no cell; one that asyncio started has that of its caller.
    if threading.current_thread() is threading.main_thread() or len(contextvars.copy_context()):
        if isinstance(what, CallFuture | Loop):
            return ShownCalls(view_of_wait(session, what, waits))
        if isinstance(what, JobTable) and not _is_followed(what):
            show_job(Job(session, what))
    return None


#: What the cell that runs shows of single calls; drawn again when it ends.
_calls_of_cell: list[ShownCalls] = []


def _is_followed(table: JobTable) -> bool:
    """Return whether a view shows the job; views that had ended follow it again."""
    views = _views.get(table, [])
    for live in views:
        live.catch_up()
    return bool(views)


class ShownCalls(Display):
    """The progress of single calls in a notebook."""

    def __init__(self, view: WaitView) -> None:
        self._view = view
        self._drawn_at = time.monotonic()
        self._shown = self._data()
        self._handle = Output()
        self._handle.display(self._shown)
        _calls_of_cell.append(self)

    def draws_after(self) -> float:
        return max(0.0, self._drawn_at + FUTURE_FRAME - time.monotonic())

    def draw(self) -> None:
        self._drawn_at = time.monotonic()
        self._update(self._data())

    def end(self) -> None:
        # Else many short waits would draw it as many times; the end of the cell brings the rest.
        if not self.draws_after() or cell_now() is None:
            self.draw()

    def finish(self) -> None:
        """Show for the last time how far the calls are."""
        self._update(_data(self._view.picture()))

    def _data(self) -> dict[str, str]:
        picture = self._view.picture()
        return {"text/html": job_html(picture), "text/plain": _text(picture)}

    def _update(self, data: dict[str, str]) -> None:
        if data != self._shown:
            self._shown = data
            self._handle.update(data)
