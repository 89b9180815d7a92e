"""Start a worker process, by fork or as a new Python, and be one."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, NoReturn

from ..launch.python import python_command, take_on
from ..secret import Address, Secret
from ..settings import Settings, conceal, environment_without_secrets, hand_over
from ..wire.addresses import open_client
from ..wire.signing import Signer
from ..wire.store import Store
from .devices import show_only
from .life import Term
from .loop import TaskWorker
from .output import FILE_LIMIT_BYTES, Output
from .settled import SETTLED_BYTES, SettledCache
from .slot import RunningTask, Slot, Slots
from .turns import TURNS_BYTES, WAKE, Turn
from .usage import Meter, memory_and_peak

#: Signals to a worker: exit after the running task; stop the item that the slot names; write the
#: stack to the crash file; read the lanes that the slot says are in use.
LEAVE, STOP, DUMP, LOOK = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, WAKE
#: All signals that a worker handles; SIGINT, which the supervisor gets, too, does nothing.
_HANDLED = {LEAVE, signal.SIGHUP, STOP, DUMP, LOOK, signal.SIGINT}
#: Open files that a supervisor needs for each worker.
N_DESCRIPTORS = 3
#: Seconds in which a worker must end after its last task. Longer lets tasks' threads go on.
END_TIME = 3.0
#: Without these, numerical libraries start a thread for each core in each worker.
_THREAD_LIMITS = (
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker process must know.

    Attributes
    ----------
    worker, queue, lanes
        Its id, its queue, and the lanes that it serves.
    homes
        Tags of the tasks that it runs, see `Home`; empty: all.
    n_threads
        Threads that numerical libraries may use in it.
    supervisor
        Process id of the supervisor; the worker dies with it.
    slots, number
        Descriptor of the file with the slots of all workers, and the number of its own.
    stdout, stderr, crash
        Descriptors of the files that it shares with the supervisor.
    settled, turns
        Descriptors of the files of `SettledCache` and of `Turns`.
    max_files
        How many files it may have open; the supervisor may have more.
    device
        What it sees of the accelerators: one, or none if this is empty. None: all.
    ends_at, lifetime
        When its supervisor's lifetime is over, by the monotonic clock, and how long that is.
    description
        What `q.workers` shows of it.
    """

    worker: str
    queue: str
    lanes: tuple[str, ...]
    homes: tuple[str, ...]
    n_threads: int
    supervisor: int
    slots: int
    number: int
    stdout: int
    stderr: int
    crash: int
    settled: int
    turns: int
    max_files: int
    device: str | None
    ends_at: float
    lifetime: float
    description: dict[str, Any]


@dataclass
class WorkerProcess:
    """A worker process, as its supervisor knows it.

    Attributes
    ----------
    born
        When it was started, by the monotonic clock.
    leaving
        Whether it was told to exit, or does so by itself.
    leave_by
        When it is killed, if somebody else told it to exit.
    hand_back_by
        When it is killed, if it does not give back what it runs.
    is_planned
        Whether it was killed because its end was asked for, and not because of what it ran.
    is_stopped
        Whether somebody has stopped it (SIGSTOP).
    outermost, since
        Key of the outermost item that ran at the last look, and since when it is known to run.
    stopping, kill_at, dumped
        Key of the item that was asked to stop; when it is killed if it does not; and whether the
        stack was asked for.
    """

    spec: WorkerSpec
    pid: int
    slot: Slot
    meter: Meter = field(init=False)
    born: float = field(default_factory=time.monotonic)
    leaving: bool = False
    leave_by: float = float("inf")
    hand_back_by: float = float("inf")
    is_planned: bool = False
    is_stopped: bool = False
    outermost: tuple[int, int] = (0, 0)
    since: float = 0.0
    stopping: tuple[int, int] = (0, 0)
    kill_at: float = 0.0
    dumped: bool = False

    def __post_init__(self) -> None:
        self.meter = Meter(self.pid)

    def describe(self) -> dict[str, Any]:
        """Return what `q.workers` shows of it now."""
        memory, peak = memory_and_peak(self.pid)
        return {
            "pid": self.pid,
            "state": "waiting" if self.slot.waits else self.slot.state.name.lower(),
            "limit": self.slot.awaited,
            "waits": int(self.slot.waits),
            "memory": memory,
            "peak": peak,
            "cpu": round(self.meter.share(), 2),
        }

    def use_lanes(self, lanes: Collection[str], n_changes: int) -> None:
        """Tell it which rare lanes are in use, and how often those of homes have changed."""
        self.slot.set_lanes(lanes, n_changes)
        self.signal(LOOK)

    def leave(self) -> None:
        """Tell it to exit after what it runs."""
        self.leaving = True
        self.signal(LEAVE)

    def look(self) -> tuple[list[RunningTask], bool]:
        """Return what runs, and whether to look again after a tick: it has limits or is to stop."""
        self.slot.set_watched(False)  # First: a task that begins after this look gives a signal.
        running = self.slot.running()
        look_again = (
            len(running) < self.slot.n_running  # one was just being changed
            or any(task.is_limited or task.key == self.stopping for task in running)
        )
        self.slot.set_watched(look_again)
        if running and running[0].key != self.outermost:
            self.outermost, self.since = running[0].key, time.monotonic()
        return running, look_again

    def cut_output(self) -> None:
        """Cut the files that it prints to, if they are large."""
        for descriptor in (self.spec.stdout, self.spec.stderr):
            if os.fstat(descriptor).st_size > FILE_LIMIT_BYTES:
                os.ftruncate(descriptor, 0)

    def hand_over(self) -> None:
        """Kill it; what it runs goes back to its lane and is not charged."""
        self.is_planned = True
        self.signal(signal.SIGKILL)

    def ran(self) -> float:
        """Return for how many seconds the outermost item has run, as far as is known."""
        running = self.slot.running()
        is_known = running and running[0].key == self.outermost
        return time.monotonic() - self.since if is_known else 0.0

    def close(self) -> None:
        """Close the files that it shares with the supervisor."""
        for descriptor in (self.spec.stdout, self.spec.stderr, self.spec.crash):
            os.close(descriptor)

    def signal(self, number: int) -> None:
        """Send it a signal, unless a task has given the process to another user."""
        with suppress(PermissionError):
            os.kill(self.pid, number)  # It was not reaped yet, so nobody else has this id.


def shared_file(size: int = 0) -> int:
    """Return the descriptor of an unnamed file, of a fixed size or one to append to."""
    with tempfile.TemporaryFile() as file:
        descriptor = os.dup(file.fileno())
    if size:
        os.ftruncate(descriptor, size)
    else:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def settled_file() -> int:
    """Return the descriptor of a new file for `SettledCache`."""
    return shared_file(SETTLED_BYTES)


def turns_file() -> int:
    """Return the descriptor of a new file for `Turns`."""
    return shared_file(TURNS_BYTES)


def start(
    method: str,
    url: Address,
    secret: Secret,
    slots: Slots,
    forget: Callable[[], object],
    **details: Any,
) -> WorkerProcess:
    """Start a worker process.

    Parameters
    ----------
    method
        ``fork``: at once, from this process, which must have no threads; ``spawn``: a new Python.
    slots
        Where its slot is taken from.
    forget
        Called in a worker that was forked: gives up what is open and belongs to this process.
    details
        The other fields of `WorkerSpec`.

    Raises
    ------
    OSError
        There are too many processes or open files, or too little memory; nothing is left behind.
    """
    files: list[int] = []
    number, slot = slots.take()
    try:
        while len(files) < N_DESCRIPTORS:
            files.append(shared_file())
        spec = WorkerSpec(
            slots=slots.descriptor,
            number=number,
            stdout=files[0],
            stderr=files[1],
            crash=files[2],
            supervisor=os.getpid(),
            **details,
        )
        pid = _fork(spec, url, secret, forget) if method == "fork" else _spawn(spec, url, secret)
    except OSError:
        slots.give_back(number)
        for descriptor in files:
            os.close(descriptor)
        raise
    return WorkerProcess(spec=spec, pid=pid, slot=slot)


def _fork(spec: WorkerSpec, url: Address, secret: Secret, forget: Callable[[], object]) -> int:
    # A signal between the fork and the worker's own handlers would run the supervisor's.
    pid = -1
    gc.freeze()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                forget()
                # Away from the supervisor's terminal: a Ctrl-C there is not for what tasks start.
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                main(spec, url, secret)
            except SystemExit:
                raise  # It goes up through the supervisor's frames, which let it pass.
            except BaseException:  # noqa: BLE001 - whatever it is: never go on as a second supervisor
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if pid:  # In the worker they stay frozen: a last garbage collection would copy them all.
            gc.unfreeze()
    return pid


def _spawn(spec: WorkerSpec, url: Address, secret: Secret) -> int:
    files = (spec.slots, spec.stdout, spec.stderr, spec.crash, spec.settled, spec.turns)
    command = python_command("nbstreamq.worker", json.dumps(asdict(spec)))
    process = subprocess.Popen(  # noqa: S603 - our own command
        command,
        env=environment_without_secrets(),
        pass_fds=files,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    hand_over(process.stdin, url=url, secret=secret, store=Settings.from_environment().store)
    # The supervisor waits for its workers itself; Popen must not.
    process.returncode = 0
    return process.pid


def main(spec: WorkerSpec, url: Address, secret: Secret) -> NoReturn:
    """Be a worker process until told to leave.

    Raises
    ------
    SystemExit
        At the end. As in any other process, open files are flushed, temporary folders are deleted,
        and functions that tasks have registered with `atexit` are called.
    """
    try:
        conceal(url=url, secret=secret)
        _serve(spec, url, secret)
    except BaseException:  # noqa: BLE001 - the last place that can say why
        os.write(spec.stderr, traceback.format_exc().encode())
        os._exit(1)
    threading.Thread(target=_end_in_time, name="nbstreamq-end", daemon=True).start()
    sys.exit(0)


def _end_in_time() -> None:
    """End the process if it takes too long: threads and `atexit` functions may hang."""
    is_called = threading.Event()
    atexit.register(is_called.set)  # The last one is called first.
    time.sleep(END_TIME)
    if not is_called.is_set():  # Python waits for threads that tasks have left behind.
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way to call them
    for kept in gc.get_objects():
        if issubclass(type(kept), io.IOBase):
            with suppress(Exception):
                kept.flush()
    os._exit(0)


def _serve(spec: WorkerSpec, url: Address, secret: Secret) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _die_with(spec.supervisor)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (spec.max_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    faulthandler.enable(spec.crash)
    faulthandler.register(DUMP, spec.crash)
    show_only(spec.device)
    for name in _THREAD_LIMITS:
        os.environ.setdefault(name, str(spec.n_threads))
    slot, output = Slot(spec.slots, spec.number), Output()
    slot.set_supervisor(spec.supervisor)
    output.install(spec.stdout, spec.stderr)
    store = Store(open_client(url), spec.queue, Signer(secret, spec.queue))
    worker = TaskWorker(
        store,
        slot,
        SettledCache(spec.settled),
        Turn(spec.turns, spec.number, spec.supervisor),
        output,
        worker=spec.worker,
        lanes=spec.lanes,
        homes=spec.homes,
        term=Term(spec.ends_at, spec.lifetime) if spec.lifetime < float("inf") else None,
        url=url,
        secret=secret,
    )
    handlers = {
        LEAVE: worker.on_leave_signal,
        signal.SIGHUP: worker.on_leave_signal,
        STOP: worker.runner.on_stop_signal,
        LOOK: worker.on_look_signal,
        # Not ignored: processes that a task starts would ignore it, too.
        signal.SIGINT: _do_nothing,
    }
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for number in (LOOK, signal.SIGINT):
        signal.siginterrupt(number, False)  # Busy workers get it, too: system calls must go on.
    _be_plain_in_forks(worker, handlers)
    take_on()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    worker.run(spec.description | {"pid": os.getpid(), "state": "idle"})


def _do_nothing(_signal: int, _frame: FrameType | None) -> None:
    """Handle Ctrl-C, which is for the supervisor."""


def _be_plain_in_forks(
    worker: TaskWorker, handlers: dict[signal.Signals, Callable[..., None]]
) -> None:
    """Make processes that tasks fork plain: they are no workers and have the usual signals."""
    forking = threading.local()  # Two threads may fork at the same time.

    def block() -> None:
        # A signal between the fork and the usual handlers would run the worker's.
        forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, forking.mask)

    def be_plain() -> None:
        for number, ours in handlers.items():
            if signal.getsignal(number) == ours:  # The task may have set its own.
                usual = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if usual else signal.SIG_DFL)
        faulthandler.unregister(DUMP)
        faulthandler.disable()
        worker.forked()
        restore()

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=be_plain)


def _die_with(supervisor: int) -> None:
    """Have this process killed when the supervisor dies, for whatever reason."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(1)


def _watch(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(0.5)
    os._exit(1)
