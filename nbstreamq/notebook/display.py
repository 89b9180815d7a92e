"""How IPython shows our objects, once they are a cell's last expression."""

from __future__ import annotations

from typing import Any

from ..client.dead import DeadLetters
from ..client.future import TaskFuture
from ..client.job import Job
from ..client.lifetime import drop_calls_at_exit
from ..client.queue import TaskQueue
from ..client.status import JobList, QueueStatus, WorkerList
from ..objects.references import Ref
from .reprs import dead_html, future_html, jobs_html, ref_html, status_html, workers_html
from .text import job_text
from .view import JobView

__all__ = ["show_by_default"]


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
        from .live import show
        from .watch import show_queue

        formatter.ipython_display_formatter.for_type(TaskQueue, show_queue)
        formatter.ipython_display_formatter.for_type(Job, show)
    else:
        formatter.formatters["text/plain"].for_type(Job, _print_job)


def _has_browser(shell: Any) -> bool:
    return hasattr(shell, "kernel")


def _print_job(job: Job[Any], printer: Any, _cycle: bool) -> None:
    printer.text(job_text(JobView(job).snapshot()))
