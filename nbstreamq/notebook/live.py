"""The live view of a job: a widget while it runs, plain HTML when it is over.

::

    events ──> Ledger ──(looked at 10 times a second)──> JobView ──> JobWidget ──> browser
                                                            └──(at the end)──> HTML in the notebook
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import DisplayHandle, display

from ..client.job import Job
from .html import describe, duration, job_html
from .view import JobView

__all__ = ["JobWidget", "show"]

#: Seconds between two pictures. Shorter costs browser and kernel more than eyes can see.
FRAME = 0.1
_STATIC = Path(__file__).parent / "static"


class JobWidget(anywidget.AnyWidget):
    """What the browser draws; see ``static/job.js``."""

    _esm = _STATIC / "job.js"
    _css = _STATIC / "job.css"
    snapshot = traitlets.Dict().tag(sync=True)


def show(job: Job[Any]) -> None:
    """Display a job here; the view follows it, in the background, until it is over."""
    view = JobView(job)
    snapshot = view.snapshot()
    if job.done():
        display(_picture(snapshot), raw=True)
        return
    widget = JobWidget(snapshot=_in_words(snapshot))
    widget.on_msg(lambda _, message, __: _obey(job, message))
    _answer_anywhere(widget)
    # Who shows no widgets, such as GitHub, shows the HTML that stands beside it.
    bundle = {**_widget_bundle(widget), **_picture(snapshot)}
    handle = display(bundle, raw=True, display_id=True)
    follow = functools.partial(_follow, job, view, widget, handle)
    threading.Thread(target=follow, name=f"nbstreamq-view-{job.id}", daemon=True).start()


def _follow(job: Job[Any], view: JobView, widget: JobWidget, handle: DisplayHandle) -> None:
    over = threading.Event()
    job.add_done_callback(lambda _: over.set())
    while not over.wait(FRAME):
        snapshot = _in_words(view.snapshot())
        if snapshot != widget.snapshot:
            widget.snapshot = snapshot
            _answer_anywhere(widget)
    last = view.snapshot()
    widget.snapshot = _in_words(last)
    widget.send("over")
    # In its place comes what needs no kernel: a saved notebook shows it for ever.
    handle.update(_picture(last), raw=True)
    widget.close()


def _answer_anywhere(widget: JobWidget) -> None:
    """Let clicks be answered in a subshell while a cell keeps the kernel busy.

    ipykernel 7.4 has them answered where the widget's last message came from, which is the cell's
    own shell; it forgets that without this entry.
    """
    getattr(widget.comm, "__dict__", {}).pop("_reply_subshell_id", None)


def _obey(job: Job[Any], message: Any) -> None:
    """Do what a button says; what goes wrong, Jupyter shows in its log."""
    if message == "cancel":
        job.cancel()
    elif message == "retry":
        job.retry_failed()
    elif message == "add":
        job.add_worker()


def _widget_bundle(widget: JobWidget) -> dict[str, Any]:
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    return dict(data or {})


def _in_words(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot with its numbers in the words that the final HTML has, too."""
    words = {"summary": describe(snapshot), "duration": duration(snapshot["elapsed"])}
    return snapshot | words


def _picture(snapshot: dict[str, Any]) -> dict[str, str]:
    text = f"<Job {snapshot['id']} {snapshot['name']}: {snapshot['state']}>"
    return {"text/html": job_html(snapshot), "text/plain": text}
