"""How a notebook shows jobs and queues: live widgets, and plain text where there is no browser."""

from __future__ import annotations

import io
import itertools
import threading
import time
import weakref
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import DisplayHandle, display

from ..client.future import TaskFuture
from ..client.job import Job
from ..client.queue import TaskQueue
from ..client.session import drop_calls_at_exit
from ..client.status import DeadLetters, JobList, QueueStatus, WorkerList
from ..errors import NbstreamqError
from ..objects.references import Ref
from .html import (
    dead_html,
    describe,
    describe_items,
    describe_worker,
    duration,
    future_html,
    job_html,
    jobs_html,
    ref_html,
    status_html,
    workers_html,
)
from .view import JobView

#: Characters of the bar.
WIDTH = 30


def job_text(snapshot: dict[str, Any]) -> str:
    """Return a bar and the numbers, and the first errors, coloured for terminals."""
    from rich.console import Console, Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = snapshot["counts"]
    over = counts["done"] + counts["failed"] + counts["cancelled"]
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, snapshot["n"]), completed=over, width=WIDTH)
    line.add_row(Text(snapshot["name"], style="bold"), bar, Text(describe(snapshot)))
    lines: list[Any] = [line]
    if snapshot["obstacle"]:
        lines.append(Text(f"Nothing can run: {snapshot['obstacle']}", style="yellow"))
    lines += [
        Text(f"✗ item {error['item']}: {error['summary']}", style="red")
        for error in snapshot["errors"]
    ]
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=120).print(Group(*lines))
    return file.getvalue().rstrip("\n")


#: Seconds between two pictures. Shorter costs browser and kernel more than eyes can see.
FRAME = 0.1
#: Most jobs that are over whose HTML is kept for pages that may come for it.
MOST_ENDED = 100
_STATIC = Path(__file__).parent / "static"
_numbers = itertools.count(1)
_ended: deque[_Live] = deque()


class JobWidget(anywidget.AnyWidget):
    """What the browser draws; see ``static/job.js``."""

    _esm = _STATIC / "job.js"
    _css = _STATIC / "job.css"
    snapshot = traitlets.Dict().tag(sync=True)
    #: Class of the element of the HTML that may hold a button.
    place = traitlets.Unicode().tag(sync=True)
    #: Whether a page may have put the button there already.
    offered = traitlets.Bool().tag(sync=True)
    #: What is left of the view: the data of its last picture, and the id by which pages know it.
    final = traitlets.Dict().tag(sync=True)
    #: Why a button could not do what it says.
    trouble = traitlets.Unicode().tag(sync=True)


def show(job: Job[Any]) -> None:
    """Display a job here; the view follows it, in the background, until it is over."""
    view = JobView(job)
    snapshot = view.snapshot()
    handle = DisplayHandle()
    if job.done() and not snapshot["n_errors"]:
        handle.display(_picture(snapshot), raw=True)
        return
    live = _Live(job, handle, snapshot)
    if job.done():
        handle.display(_picture(snapshot, live.place), raw=True)
    else:
        data, metadata = live.bundle(snapshot)
        handle.display(data, metadata=metadata, raw=True)
        live.follow(job, view)


class _Live:
    """A job's place in the notebook; it keeps neither the job nor its results alive."""

    def __init__(self, job: Job[Any], handle: DisplayHandle, snapshot: dict[str, Any]) -> None:
        self._job = weakref.ref(job)
        self._handle = handle
        self._lock = threading.RLock()
        self._follows = False
        self._is_kept = True  # whether a page has HTML in place of the view, if there was one
        self.place = f"nbstreamq-retry-{job.id.replace('.', '-')}-{next(_numbers)}"
        self._widget = JobWidget(snapshot=_in_words(snapshot), place=self.place)
        self._widget.on_msg(lambda _, message, __: self._obey(message))
        _answer_anywhere(self._widget)
        weakref.finalize(job, self._let_go).atexit = False

    def bundle(self, snapshot: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return data and metadata of the live view.

        Who shows no widgets, such as GitHub, shows the HTML that stands beside it. Google Colab
        wants metadata, which anywidget provides there.
        """
        self._is_kept = False
        data, metadata = self._widget._repr_mimebundle_() or ({}, {})
        return {**data, **_picture(snapshot)}, metadata

    def follow(self, job: Job[Any], view: JobView) -> None:
        """Have the view follow the job from now on, unless it does."""
        with self._lock:
            starts, self._follows = not self._follows, True
        if starts:
            name = f"nbstreamq-view-{job.id}"
            threading.Thread(target=self._follow, args=(job, view), name=name, daemon=True).start()

    def _follow(self, job: Job[Any], view: JobView) -> None:
        # What the items print is in the view, folded.
        job.ledger.show = lambda *_: None
        while self._follows:
            self._watch(job, view)
            with self._lock:
                self._follows = not job.done()  # it may have been run again at that moment
                if not self._follows:
                    self._end(view.snapshot())

    def _end(self, last: dict[str, Any]) -> None:
        """Put in its place what needs no kernel: a saved notebook shows it for ever."""
        self._widget.snapshot = _in_words(last)
        picture = _picture(last, self.place)
        self._handle.update(picture, raw=True)
        self._widget.final = {"id": self._widget.model_id, "data": picture}
        _ended.append(self)
        if len(_ended) > MOST_ENDED:
            _ended.popleft().kept()

    def _watch(self, job: Job[Any], view: JobView) -> None:
        """Show what goes on, until the job is over."""
        over = threading.Event()
        job.add_done_callback(lambda _: over.set())
        while not over.wait(FRAME):
            snapshot = _in_words(view.snapshot())
            if snapshot != self._widget.snapshot:
                self._widget.snapshot = snapshot
                _answer_anywhere(self._widget)

    def kept(self) -> None:
        """Take note that a page has the HTML, or that none is waited for any more."""
        if self._widget.final:  # else it was that of before a retry
            self._is_kept = True
            self._let_go()

    def _let_go(self) -> None:
        """Close the widget, unless a page still has to get the HTML, or a button needs it."""
        job = self._job()
        if self._is_kept and (job is None or not job.ledger.errors(1)):
            self._widget.close()

    def _obey(self, message: Any) -> None:
        """Do what a button says, or say why not."""
        if message == "kept":
            self.kept()
        job = self._job()
        if job is None:
            return
        self._widget.trouble = ""
        try:
            if message == "cancel":
                job.cancel()
            elif message == "add":
                job.add_worker()
            elif message == "retry":
                self._retry(job)
        except NbstreamqError as error:
            self._widget.trouble = str(error)
        _answer_anywhere(self._widget)

    def _retry(self, job: Job[Any]) -> None:
        job.retry_failed()
        with self._lock:
            if not self._follows:
                self._widget.final = {}
                view = JobView(job)
                data, metadata = self.bundle(view.snapshot())
                self._handle.update(data, metadata=metadata, raw=True)
                self.follow(job, view)


def _answer_anywhere(widget: JobWidget) -> None:
    """Let clicks be answered in a subshell while a cell keeps the kernel busy.

    ipykernel 7.4 has them answered where the widget's last message came from, which is the cell's
    own shell; it forgets that without this entry.
    """
    getattr(widget.comm, "__dict__", {}).pop("_reply_subshell_id", None)


def _in_words(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot with its numbers in the words that the final HTML has, too."""
    elapsed = snapshot["elapsed"]
    strip = [
        row
        | {"words": describe_worker(row, elapsed), "ran": [describe_items(e) for e in row["ran"]]}
        for row in snapshot["strip"]
    ]
    words = {"summary": describe(snapshot), "duration": duration(elapsed)}
    return snapshot | words | {"strip": strip}


def _picture(snapshot: dict[str, Any], place: str = "") -> dict[str, str]:
    text = f"<Job {snapshot['id']} {snapshot['name']}: {snapshot['state']}>"
    return {"text/html": job_html(snapshot, place), "text/plain": text}


#: Seconds between two pictures.
REFRESH = 1.0
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
    while not end.wait(REFRESH) and time.monotonic() < until and not view.queue.closed:
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


def show_by_default(shell: Any) -> None:
    """Have `shell` show jobs live, and futures, references and queues as tables."""
    formatter = shell.display_formatter
    html = formatter.formatters["text/html"]
    html.for_type(TaskFuture, future_html)
    html.for_type(Ref, ref_html)
    html.for_type(DeadLetters, dead_html)
    html.for_type(JobList, jobs_html)
    html.for_type(QueueStatus, status_html)
    html.for_type(WorkerList, workers_html)
    html.for_type(TaskQueue, lambda queue: status_html(queue.status()))
    if _has_browser(shell):
        drop_calls_at_exit()

        formatter.ipython_display_formatter.for_type(TaskQueue, show_queue)
        formatter.ipython_display_formatter.for_type(Job, show)
    else:
        formatter.formatters["text/plain"].for_type(Job, _print_job)


def _has_browser(shell: Any) -> bool:
    return hasattr(shell, "kernel")


def _print_job(job: Job[Any], printer: Any, _cycle: bool) -> None:
    printer.text(job_text(JobView(job).snapshot()))
