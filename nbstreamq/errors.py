"""Every exception of nbstreamq.

::

    NbstreamqError
    ├── ServerError                 (also RuntimeError)
    │   ├── ServerNotFound          no server binary on this machine; FileNotFoundError
    │   ├── ServerStartFailed       the embedded server did not start
    │   │   └── DataDamaged         ... because it can't read its data
    │   ├── ServerUnreachable       no connection, or it was lost for too long; ConnectionError
    │   ├── DataLost                the server was restarted without its data
    │   └── ServerRefused           the server answered a command with an error
    ├── QueueClosed                 used after shutdown, or after a fork; RuntimeError
    ├── NotPicklable                a function or argument can't be sent; PicklingError; TypeError
    ├── FolderRefused               a folder for large values is not private; PermissionError
    ├── NoRoom                      memory and disk are full; MemoryError
    ├── ValueMissing                a large value is no longer available; LookupError
    ├── JobNotFound                 no named job has that name; LookupError
    ├── JobChanged                  a named job has another function or inputs; ValueError
    ├── VersionMismatch             written by another version of nbstreamq; RuntimeError
    ├── SignatureError              a message was not signed by this queue's secret; ValueError
    ├── SecretMismatch              this process has another secret than the queue; PermissionError
    ├── SecretMissing               the server is on a network, with no secret; PermissionError
    ├── SecretTooWeak               the secret can be guessed; ValueError
    └── TaskError                   concerns one task, named in ``.task``
        ├── RemoteError             an exception that can't be pickled, as text
        ├── ResultNotPicklable      its result can't be sent back; PicklingError; TypeError
        ├── TimeLimitExceeded       it ran longer than its time_limit; TimeoutError
        ├── MemoryLimitExceeded     its worker used more than its memory_limit; MemoryError
        ├── NestedTooDeep           too many tasks wait for tasks of theirs; RecursionError
        ├── WorkerLost              its worker died, in its last allowed attempt; BrokenExecutor
        ├── PythonMismatch          the worker runs another Python minor version; RuntimeError
        └── FunctionMissing         the server no longer holds the task's function; LookupError
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pickle import PicklingError

from .sizes import in_units


class NbstreamqError(Exception):
    """Base of all errors that nbstreamq itself raises."""


class ServerError(NbstreamqError, RuntimeError):
    """Something is wrong with the Redis or Valkey server."""


class ServerNotFound(ServerError, FileNotFoundError):
    """No server binary was found to start the embedded server from."""


class ServerStartFailed(ServerError):
    """The embedded server did not start."""


class DataDamaged(ServerStartFailed):
    """The embedded server can't read its data, and can't start until they are repaired."""


class ServerUnreachable(ServerError, ConnectionError):
    """The server can't be reached, or the connection was lost for too long."""


class DataLost(ServerError):
    """The server was restarted without its data."""


class ServerRefused(ServerError):
    """The server answered a command with an error (out of memory, no permission, wrong type)."""


class QueueClosed(NbstreamqError, RuntimeError):
    """The queue was shut down, or belongs to the process this one was forked from."""


class NotPicklable(NbstreamqError, PicklingError, TypeError):
    """A function, argument or captured value can't be sent to a worker."""


class FolderRefused(NbstreamqError, PermissionError):
    """A folder for large values is a link, can't be created, or is not private to this user."""


class NoRoom(NbstreamqError, MemoryError):
    """There is no room for a large argument, captured value or result."""


class ValueMissing(NbstreamqError, LookupError):
    """A large argument, captured value or result is no longer available.

    Attributes
    ----------
    address
        Where it was, and its size in bytes.
    """

    address: tuple[str, int] = ("", 0)


class JobNotFound(NbstreamqError, LookupError):
    """No named job has that name: it expired, was deleted, or never existed."""


class JobChanged(NbstreamqError, ValueError):
    """A named job has another function or other inputs, or was run again by another client."""


class VersionMismatch(NbstreamqError, RuntimeError):
    """The queue's data, or a task, were written by another version of nbstreamq."""


class SignatureError(NbstreamqError, ValueError):
    """A message does not carry the signature of this queue's secret; it was not unpickled."""


class SecretMismatch(NbstreamqError, PermissionError):
    """The queue was made with another secret than this process has."""


class SecretMissing(NbstreamqError, PermissionError):
    """The server can be reached from other machines, but no secret was given; nothing was sent."""


class SecretTooWeak(NbstreamqError, ValueError):
    """A secret is empty or can be guessed; nothing was sent."""


class TaskError(NbstreamqError):
    """Base of the errors that concern one task.

    Attributes
    ----------
    task
        Id of the task, as in `TaskFuture.id`; empty when unknown.
    """

    def __init__(self, message: str, *, task: str = "") -> None:
        super().__init__(message)
        self.task = task


class RemoteError(TaskError):
    """A task raised an exception that can't be pickled; this error has its text and traceback.

    Attributes
    ----------
    type_name
        Qualified name of the original exception's class.
    traceback_text
        The traceback as the worker would have printed it.
    """

    def __init__(
        self, message: str, *, task: str = "", type_name: str = "", traceback_text: str = ""
    ) -> None:
        super().__init__(message, task=task)
        self.type_name = type_name
        self.traceback_text = traceback_text


class ResultNotPicklable(TaskError, PicklingError, TypeError):
    """The task finished, and its result can't be sent back."""


class TimeLimitExceeded(TaskError, TimeoutError):
    """The task ran longer than its `time_limit`, and was stopped."""


class NestedTooDeep(TaskError, RecursionError):
    """A task waited for its own tasks, no worker was left to run them, and no more may start."""


class MemoryLimitExceeded(TaskError, MemoryError):
    """The worker used more memory than the task's `memory_limit`, and was killed."""


class PythonMismatch(TaskError, RuntimeError):
    """The function was pickled by another Python minor version than the worker's."""


class FunctionMissing(TaskError, LookupError):
    """The server no longer holds the function of a task; it expired or was evicted."""


@dataclass(frozen=True, kw_only=True)
class DeathCertificate:
    """What is known of a worker's death.

    Attributes
    ----------
    worker
        Id of the worker process.
    cause
        The signal or exit code, in words.
    item
        The item that it was running, abbreviated; empty when unknown.
    peak_memory_bytes
        Largest resident set of the process; 0 when unknown.
    stack
        Python stack at the moment of death, as `faulthandler` wrote it; empty if it could not.
    output
        The last lines the worker printed.
    """

    worker: str
    cause: str
    item: str = ""
    peak_memory_bytes: int = 0
    stack: str = ""
    output: str = ""

    def __str__(self) -> str:
        lines = [f"worker {self.worker}: {self.cause}"]
        if self.item:
            lines.append(f"item: {self.item}")
        if self.peak_memory_bytes:
            lines.append(f"peak memory: {in_units(self.peak_memory_bytes)}")
        if self.stack:
            lines.append("stack at death:\n" + self.stack.rstrip())
        if self.output:
            lines.append("last output:\n" + self.output.rstrip())
        return "\n".join(lines)


class WorkerLost(TaskError, BrokenExecutor):
    """The worker that ran the task died, in the task's last allowed attempt.

    Attributes
    ----------
    certificate
        What is known of the last worker's death; None if its whole machine stopped responding.
    """

    def __init__(
        self, message: str, *, task: str = "", certificate: DeathCertificate | None = None
    ) -> None:
        super().__init__(message, task=task)
        self.certificate = certificate

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n{self.certificate}" if self.certificate else message
