"""What marimo shows of jobs and queues, and which calls it ends when a cell runs again.

Only this module knows marimo. Cells tell what they submitted by marimo's lifecycle items, which its
own threads and files use, too: it has no public way.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import marimo
from marimo._runtime.cell_lifecycle_item import CellLifecycleItem
from marimo._runtime.cell_output_list import CellOutputList
from marimo._runtime.context import RuntimeContext, safe_get_context

from ..client import queue
from ..client.exit import drop_calls_at_exit
from ..client.future import TaskFuture
from ..client.job import Job
from ..client.progress import FRAME as WAIT_FRAME
from ..client.progress import Display, Loop, Waits, show_waits
from ..client.queue import TaskQueue
from ..client.session import Session
from ..client.table import JobTable, Outstanding
from ..client.units import Units
from ..errors import NbstreamqError
from .html import HTML_OF, future_html, job_html, saved_html, units_html
from .live import FRAME, MAX_DRAWING, REFRESH, JobWidget, LiveQueue, as_of_now
from .view import JobView, WaitView, view_of_wait


def adapt() -> None:
    """Have marimo show jobs and queues live, and cancel a cell's calls when it runs again."""
    drop_calls_at_exit()
    queue.on_new = _of_this_cell
    show_waits(show_wait, _cell_now)
    for kind, html in HTML_OF.items():
        _show(kind, _table_of(html))
    _show(Job, show_job)
    _show(TaskQueue, show_queue)
    _show(Units, show_units)
    _show(TaskFuture, show_future)


def _table_of(html: Callable[[Any], str]) -> Callable[[Any], marimo.Html]:
    return lambda shown: marimo.Html(html(shown))


def _show(kind: type, display: Callable[[Any], Any]) -> None:
    """Have marimo show what `display` returns for an object of this type."""
    kind._display_ = display  # type: ignore[attr-defined]


# -- a cell that runs again ---------------------------------------------------------------------


class CellCalls(CellLifecycleItem):
    """What a cell has submitted: cancelled when the cell runs again, or is deleted."""

    def __init__(self) -> None:
        self.calls: weakref.WeakSet[Job[Any] | TaskFuture[Any]] = weakref.WeakSet()

    def create(self, context: RuntimeContext) -> None:
        """Do nothing: marimo has just been given it."""

    def dispose(self, context: RuntimeContext, deletion: bool) -> bool:  # noqa: ARG002 - marimo's
        """Cancel the calls that are open; return that this is done."""
        for call in list(self.calls):
            with contextlib.suppress(NbstreamqError):  # its queue is closed
                call.cancel()
        return True


def _of_this_cell(call: Any) -> Any:
    """Note which cell has made a job or a future; a thread that a user started has no cell."""
    context = safe_get_context()
    cell = None if context is None else context.cell_id
    if context is None or cell is None:
        return call
    registry = context.cell_lifecycle_registry
    found = [i for i in registry.registry.get(cell, ()) if isinstance(i, CellCalls)]
    if not found:
        found.append(CellCalls())
        registry.add(found[0])
    found[0].calls.add(call)
    return call


# -- live views ---------------------------------------------------------------------------------


def show_job(job: Job[Any]) -> Any:
    """Return what marimo displays of a job: a live view; HTML if it is done, or is saved now."""
    if _is_saved():
        with contextlib.suppress(NbstreamqError):  # a job that grows as it is read has no end
            job.wait()
    picture = JobView(job).picture()
    if _is_saved() or (picture.is_over and not picture.counts["failed"]):
        return marimo.Html(job_html(picture))
    widget = JobWidget(html=job_html(picture, keeps_buttons=bool(picture.counts["failed"])))
    widget.on_msg(lambda _, message, __: _obey(job, widget, message))
    return _follow_job(job, widget)


def _follow_job(job: Job[Any], widget: JobWidget) -> JobWidget:
    view = JobView(job)
    _followed.add(job._table)
    job._table.show = lambda *_: None  # the view shows what the items print

    def draw() -> str:
        picture = view.picture()
        widget.can_retry = picture.counts["failed"] > 0
        return job_html(picture, keeps_buttons=widget.can_retry)

    return _follow(widget, draw, job.done, FRAME)


#: What live views show already.
_followed: weakref.WeakSet[JobTable] = weakref.WeakSet()


def _obey(job: Job[Any], widget: JobWidget, message: Any) -> None:
    """Do what a button says, or say why that failed."""
    widget.trouble = ""
    try:
        if message == "cancel":
            job.cancel()
        elif message == "add":
            job._session.workers.add_local()
        elif message == "retry":
            was_over = job.done()
            job.retry_failed()
            if was_over:  # nothing follows it any more
                _follow_job(job, widget)
    except NbstreamqError as error:
        widget.trouble = str(error)


def show_future(future: TaskFuture[Any]) -> Any:
    """Return what marimo displays of a call: its table, which is live until the call is over."""
    if _is_saved():
        wait([future])
    is_over = future.done()  # first: the HTML of a moment before would not show how it ended
    html = future_html(future)
    if is_over:
        return marimo.Html(html)
    return _follow(JobWidget(html=html), lambda: future_html(future), future.done, FRAME)


def show_queue(queue: TaskQueue) -> Any:
    """Return what marimo displays of a queue: a view that is live as long as its cell's output."""
    view = LiveQueue(queue)
    return _show_current(queue, lambda: view.data()["text/html"])


def show_units(units: Units) -> Any:
    """Return what marimo displays of workers in another place, in the same way."""
    return _show_current(units, lambda: units_html(units, as_of_now()))


def _show_current(it: TaskQueue | Units, draw: Callable[[], str]) -> Any:
    html = draw()
    if _is_saved():
        return marimo.Html(html)
    return _follow(JobWidget(html=html), draw, lambda: it.closed, REFRESH)


def _follow(
    widget: JobWidget, draw: Callable[[], str], is_over: Callable[[], bool], pause: float
) -> JobWidget:
    """Draw a widget again and again, until nothing changes, or its cell runs again."""

    def follow() -> None:
        ended = False
        while not (ended or marimo.current_thread().should_exit):
            ended, began = is_over(), time.thread_time()
            try:
                html = draw()
            except NbstreamqError:  # the server is gone: the last picture stays
                return
            if html != widget.html:
                widget.html = html
            time.sleep(0 if ended else max(pause, (time.thread_time() - began) / MAX_DRAWING))

    marimo.Thread(target=follow, name="nbstreamq-view", daemon=True).start()
    return widget


# -- a wait --------------------------------------------------------------------------------------


def show_wait(session: Session, what: Outstanding | Loop, waits: Waits | None) -> Display | None:
    """Show what a cell waits for in its output, unless it is displayed already."""
    context, output = safe_get_context(), _cell_now()
    if context is None or output is None or what in _followed:
        return None
    view = view_of_wait(session, what, waits)
    if _is_saved():
        return SavedWait(view, len(output))

    run = context.execution_context

    def is_over() -> bool:
        if isinstance(what, JobTable):
            return what.is_over
        # The cell may make further calls of the function as long as it runs.
        return view.is_over and context.execution_context is not run

    def draw() -> str:
        return job_html(view.picture(), has_buttons=False)  # the cell keeps marimo from hearing

    # A widget changes by itself. To replace the output after the cell has ended would take away
    # the value of the cell, or its error.
    marimo.output.append(_follow(JobWidget(html=draw()), draw, is_over, WAIT_FRAME))
    return None


def _cell_now() -> CellOutputList | None:
    """Return the output of the cell that runs in this thread, which is new in each run."""
    context = safe_get_context()
    cell = None if context is None else context.execution_context
    return None if cell is None else cell.output


class SavedWait(Display):
    """How a wait ended, as a part of the output of the cell that waits; nobody sees it before."""

    def __init__(self, view: WaitView, at: int) -> None:
        self._view, self._at = view, at

    def draws_after(self) -> float:
        return 0.0  # each wait may be the last one

    def draw(self) -> None:
        """Draw nothing while the wait lasts."""

    def end(self) -> None:
        n_over = -1
        # What ends while this draws is not waited for.
        while (picture := self._view.picture()).n_over > n_over:
            n_over = picture.n_over
            marimo.output.replace_at_index(marimo.Html(saved_html(picture)), self._at)


def _is_saved() -> bool:
    """Return whether outputs are saved as they are now, as by `marimo export html`.

    No server provides files for them then.
    """
    context = safe_get_context()
    return context is not None and not context.virtual_files_supported
