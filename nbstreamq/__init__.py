"""Parallel map for notebooks: durable like a message broker, as easy as ``map``."""

from .client.future import TaskFuture
from .client.job import Job
from .client.queue import TaskQueue
from .errors import (
    DeathCertificate,
    FunctionMissing,
    NbstreamqError,
    NotPicklable,
    PythonMismatch,
    QueueClosed,
    RemoteError,
    ResultNotPicklable,
    SecretMismatch,
    ServerError,
    ServerNotFound,
    ServerRefused,
    ServerStartFailed,
    ServerUnreachable,
    SignatureError,
    TaskError,
    TimeLimitExceeded,
    WorkerLost,
)
from .objects.references import Ref
from .worker.context import track

__all__ = [
    "DeathCertificate",
    "FunctionMissing",
    "Job",
    "NbstreamqError",
    "NotPicklable",
    "PythonMismatch",
    "QueueClosed",
    "Ref",
    "RemoteError",
    "ResultNotPicklable",
    "SecretMismatch",
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
    "WorkerLost",
    "track",
]
