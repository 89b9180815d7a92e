"""The names that `nbstreamq` offers, and how notebooks and terminals show what they stand for."""

import sys
from typing import Any

from .client.estimate import Estimate
from .client.future import TaskFuture
from .client.job import Job
from .client.progress import show_waits as _show_waits
from .client.queue import TaskQueue
from .client.status import DeadLetters, JobList, QueueStatus, WorkerList
from .errors import (
    DataDamaged,
    DataLost,
    DeathCertificate,
    FolderRefused,
    FunctionMissing,
    JobChanged,
    JobNotFound,
    MemoryLimitExceeded,
    NbstreamqError,
    NestedTooDeep,
    NoRoom,
    NotPicklable,
    PythonMismatch,
    QueueClosed,
    RemoteError,
    ResultNotPicklable,
    SecretMismatch,
    SecretMissing,
    SecretTooWeak,
    ServerError,
    ServerNotFound,
    ServerRefused,
    ServerStartFailed,
    ServerUnreachable,
    SignatureError,
    TaskError,
    TimeLimitExceeded,
    ValueMissing,
    VersionMismatch,
    WorkerLost,
)
from .limit import Limit
from .objects.references import Ref
from .worker.track import checkpoint, resume, rng, track

__all__ = [
    "DataDamaged",
    "DataLost",
    "DeathCertificate",
    "Estimate",
    "FolderRefused",
    "FunctionMissing",
    "Job",
    "JobChanged",
    "JobNotFound",
    "Limit",
    "MemoryLimitExceeded",
    "NbstreamqError",
    "NestedTooDeep",
    "NoRoom",
    "NotPicklable",
    "PythonMismatch",
    "QueueClosed",
    "Ref",
    "RemoteError",
    "ResultNotPicklable",
    "SecretMismatch",
    "SecretMissing",
    "SecretTooWeak",
    "ServerError",
    "ServerNotFound",
    "ServerRefused",
    "ServerStartFailed",
    "ServerUnreachable",
    "SignatureError",
    "TaskError",
    "TaskFuture",
    "TaskQueue",
    "TimeLimitExceeded",
    "ValueMissing",
    "VersionMismatch",
    "WorkerLost",
    "checkpoint",
    "load_ipython_extension",
    "resume",
    "rng",
    "track",
]


def load_ipython_extension(ipython: Any) -> None:
    """Give an IPython shell the queue `q` and the magics: ``%load_ext nbstreamq``."""
    from .notebook.shell import load

    load(ipython)


def _show_in_terminal(*wait: Any) -> Any:
    """Show the progress of a wait, if there is a terminal."""
    from .notebook.terminal import show_in_terminal  # rich takes long to import

    return show_in_terminal(*wait)


def _adapt_notebook() -> None:
    """Show jobs live where this is imported in a notebook, and learn which notebook it is."""
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        from .notebook.shell import adapt

        adapt(shell)


_show_waits(_show_in_terminal)


def _repr_html(value: Any) -> str:
    """Return the HTML of a value, for notebooks that ask the value itself for it."""
    from .notebook.html import html_of

    return html_of(value)


_kind: Any
for _kind in (TaskFuture, Ref, DeadLetters, JobList, QueueStatus, WorkerList):
    _kind._repr_html_ = _repr_html
if "IPython" in sys.modules:
    _adapt_notebook()
if "marimo" in sys.modules and sys.modules["marimo"].running_in_notebook():
    from .notebook.marimo import adapt

    adapt()
