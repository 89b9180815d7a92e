"""A worker process: how it is started, and how it starts."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from ..launch.python import python_command
from ..protocol.clients import open_client
from ..protocol.signing import Signer
from ..protocol.store import Store
from ..secret import Address, Secret
from ..settings import Settings, conceal, environment_without_secrets, hand_over
from .ended import ENDED_BYTES, Ended
from .output import FILE_LIMIT_BYTES, Output
from .slots import SLOT_BYTES, Level, Slot
from .usage import Meter, memory_of
from .worker import TaskWorker

__all__ = ["DUMP", "LEAVE", "LOOK", "STOP", "Child", "Spec", "ended_file", "main", "start"]

#: Signals to a worker: exit after the running task; stop the item that the slot names; write the
#: stack to the crash file; look which lanes the slot says are in use. The last is one that a
#: process which has no handler yet ignores.
LEAVE, STOP, DUMP, LOOK = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGURG
#: Libraries that would otherwise start a thread for each core in each worker.
_THREAD_LIMITS = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a worker process must know.

    Attributes
    ----------
    worker, queue, lanes
        Its id; the queue; what it serves.
    n_threads
        Threads that numerical libraries may use in it.
    supervisor
        Process id of the supervisor: the worker dies with it.
    slot, stdout, stderr, crash
        Descriptors of the files it shares with the supervisor.
    ended
        Descriptor of the file that all workers of the supervisor share.
    description
        What others may know of it.
    """

    worker: str
    queue: str
    lanes: tuple[str, ...]
    n_threads: int
    supervisor: int
    slot: int
    stdout: int
    stderr: int
    crash: int
    ended: int
    description: dict[str, Any]


@dataclass
class Child:
    """A worker process, as its supervisor knows it.

    Attributes
    ----------
    born
        When it was started, by the monotonic clock.
    leaving
        It was told to exit.
    stopping, kill_at, dumped
        Key of the item that was asked to stop, when patience ends, and whether the stack was
        asked for.
    """

    spec: Spec
    pid: int
    slot: Slot
    meter: Meter = field(init=False)
    born: float = field(default_factory=time.monotonic)
    leaving: bool = False
    stopping: tuple[int, int] = (0, 0)
    kill_at: float = 0.0
    dumped: bool = False

    def __post_init__(self) -> None:
        self.meter = Meter(self.pid)

    def describe(self) -> dict[str, Any]:
        """Return what others may know of it now."""
        return {
            "pid": self.pid,
            "state": self.slot.state.name.lower(),
            "memory": memory_of(self.pid),
            "cpu": round(self.meter.share(), 2),
        }

    def use_lanes(self, lanes: Collection[str]) -> None:
        """Tell it which of the rare lanes are in use."""
        self.slot.set_rare_lanes(lanes)
        self.signal(LOOK)

    def leave(self) -> None:
        """Have it exit, after what it runs."""
        self.leaving = True
        self.signal(LEAVE)

    def look(self) -> tuple[list[Level], bool]:
        """Return what runs, and whether to look again soon: something has limits, or shall stop."""
        self.slot.set_watched(False)  # first: what begins behind this look gives a signal
        levels = self.slot.levels()
        soon = (
            len(levels) < self.slot.n_levels  # one was just being changed
            or any(level.is_limited or level.key == self.stopping for level in levels)
        )
        self.slot.set_watched(soon)
        return levels, soon

    def cut_output(self) -> None:
        """Keep the files small that it prints into."""
        for descriptor in (self.spec.stdout, self.spec.stderr):
            if os.fstat(descriptor).st_size > FILE_LIMIT_BYTES:
                os.ftruncate(descriptor, 0)

    def close(self) -> None:
        """Give up the files."""
        for descriptor in (self.spec.slot, self.spec.stdout, self.spec.stderr, self.spec.crash):
            os.close(descriptor)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # not reaped yet, so the number can't be another's


def shared_file(size: int = 0) -> int:
    """Return the descriptor of an unnamed file that is appended to, if it has no fixed size."""
    with tempfile.TemporaryFile() as file:
        descriptor = os.dup(file.fileno())
    if size:
        os.ftruncate(descriptor, size)
    else:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def ended_file() -> int:
    """Return the descriptor of the file that `Spec.ended` wants."""
    return shared_file(ENDED_BYTES)


def start(method: str, url: Address, secret: Secret, **details: Any) -> Child:
    """Start a worker process.

    Parameters
    ----------
    method
        ``fork``: at once, from this process, which must have no threads; ``spawn``: a new Python.
    details
        The fields of `Spec` that are not descriptors.
    """
    spec = Spec(
        slot=shared_file(SLOT_BYTES),
        stdout=shared_file(),
        stderr=shared_file(),
        crash=shared_file(),
        supervisor=os.getpid(),
        **details,
    )
    pid = (_fork if method == "fork" else _spawn)(spec, url, secret)
    return Child(spec=spec, pid=pid, slot=Slot(spec.slot))


def _fork(spec: Spec, url: Address, secret: Secret) -> int:
    # A signal between the fork and the worker's own handlers would run the supervisor's.
    gc.freeze()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {LEAVE, STOP, DUMP, LOOK, signal.SIGINT})
    pid = os.fork()
    if pid == 0:
        try:
            main(spec, url, secret)
        finally:
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    gc.unfreeze()
    return pid


def _spawn(spec: Spec, url: Address, secret: Secret) -> int:
    files = (spec.slot, spec.stdout, spec.stderr, spec.crash, spec.ended)
    command = python_command("nbstreamq.worker", json.dumps(asdict(spec)))
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment_without_secrets(), pass_fds=files, stdin=subprocess.PIPE
    )
    hand_over(process.stdin, url=url, secret=secret, store=Settings.from_environment().store)
    # The supervisor waits for its children itself; Popen must not.
    process.returncode = 0
    return process.pid


def main(spec: Spec, url: Address, secret: Secret) -> None:
    """Be a worker process until told to leave; never returns."""
    code = 1
    try:
        conceal(url=url, secret=secret)
        _serve(spec, url, secret)
        code = 0
    except BaseException:  # noqa: BLE001 - the last place that can say why
        os.write(spec.stderr, traceback.format_exc().encode())
    os._exit(code)


def _serve(spec: Spec, url: Address, secret: Secret) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    _die_with(spec.supervisor)
    faulthandler.enable(spec.crash)
    faulthandler.register(DUMP, spec.crash)
    for name in _THREAD_LIMITS:
        os.environ.setdefault(name, str(spec.n_threads))
    slot, output = Slot(spec.slot), Output()
    slot.set_supervisor(spec.supervisor)
    output.install(spec.stdout, spec.stderr)
    store = Store(open_client(url), spec.queue, Signer(secret, spec.queue))
    worker = TaskWorker(
        store,
        slot,
        Ended(spec.ended),
        output,
        worker=spec.worker,
        lanes=spec.lanes,
        url=url,
        secret=secret,
    )
    signal.signal(LEAVE, worker.on_leave_signal)
    signal.signal(LOOK, worker.on_look_signal)
    signal.siginterrupt(LOOK, False)  # the busy get it, too: system calls of C code go on
    signal.signal(STOP, worker.runner.on_stop_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {LEAVE, STOP, DUMP, LOOK, signal.SIGINT})
    worker.run(spec.description | {"pid": os.getpid(), "state": "idle"})


def _die_with(supervisor: int) -> None:
    """Have the kernel kill this process when the supervisor dies, however it dies."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    else:
        import threading

        threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(1)


def _watch(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(0.5)
    os._exit(1)
