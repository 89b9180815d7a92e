"""The process that starts the workers of a machine, watches them, and handles their crashes.

It runs no foreign code and has one thread, so it can fork at any time and nothing can block it.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import select
import signal
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..cores import n_cores
from ..environment import Environment
from ..errors import (
    DeathCertificate,
    FolderRefused,
    SecretMismatch,
    ServerRefused,
    ServerUnreachable,
)
from ..home import PYTHON
from ..launch.control_socket import ControlSocket, HasFile
from ..launch.lifeline import HURRY, Lifeline
from ..launch.server import is_embedded
from ..objects.mapped_files import sweep
from ..secret import Address, Secret
from ..settings import Settings
from ..wire.item_ranges import EVERYTHING
from ..wire.keys import LANES, LONG_CALLS, depth_of, is_home_lane, may_run, session_of
from ..wire.messages import ControlMessage
from ..wire.settlement import Requeue, Settlement
from ..wire.store import RENEW_EVERY, Store
from .crash import CrashReport, cause_of, has_lost_its_supervisor, requeue_from_dead_worker, tail
from .devices import Devices
from .life import Life
from .limits import LONG_STEP, MOST_STAND_INS, over_memory
from .process import (
    DUMP,
    LOOK,
    N_DESCRIPTORS,
    STOP,
    WorkerProcess,
    settled_file,
    shared_file,
    start,
    turns_file,
)
from .process_groups import Guard, members
from .slot import NO_ITEM, Leaving, RunningTask, Slots, Stop, WorkerState
from .turns import LONG, TurnWatch


@dataclass(frozen=True, kw_only=True)
class SupervisorSettings:
    """How often the supervisor looks, and how long it waits; all in seconds.

    Attributes
    ----------
    tick
        Pause between looks at the workers' slots while a task there has limits or is to be stopped,
        or something was cancelled not long ago. Shorter keeps time limits better.
    rest
        Pause between looks at other times. Shorter costs more while nothing happens; longer lets C
        code fill more of the file that it prints to.
    heartbeat
        Pause between two heartbeats.
    silence
        Time without a heartbeat after which a machine is given up. Must be several heartbeats.
    grace
        Time between the request to stop and the kill.
    drain
        Time for running tasks after a request to end, or the end of the lifetime; then they go back
        to their lanes. Longer loses less work.
    lifetime
        Time from its start until it takes no more tasks and drains.
    idle_timeout
        Time without a task after which it ends.
    farewell
        Time for a worker to end after its last task: for `atexit` handlers and open files.
    hearing
        Length of one request for control messages. Longer costs nothing; it must stay below the
        time for which firewalls allow a silent connection.
    visit
        How long it waits for its first client.
    """

    tick: float = 0.05
    rest: float = 0.25
    heartbeat: float = 1.0
    silence: float = 4.0
    grace: float = 1.0
    drain: float = 30.0
    lifetime: float = float("inf")
    idle_timeout: float = float("inf")
    farewell: float = 5.0
    hearing: float = 30.0
    visit: float = 15.0


class OtherNodes:
    """Tells which other supervisors of a queue have fallen silent.

    A node is silent if its last heartbeat has not changed for a while by this process's own clock:
    the server's clock may be set back or forward at any time. It only tells when, since the last
    look, a heartbeat came.

    Parameters
    ----------
    silence
        Seconds after which a node counts as silent.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._last_look = 0.0
        #: When the next of them will be silent, if it says nothing.
        self.next_end = math.inf
        #: Node -> its last heartbeat, by the server's clock, and since when it is that, by ours.
        self._since: dict[str, tuple[float, float]] = {}

    def silent(
        self, heartbeats: dict[str, float], now: float, server_now: float = 0.0
    ) -> list[str]:
        """Return the silent nodes among `heartbeats`, at `now` by the monotonic clock.

        Parameters
        ----------
        server_now
            The same by the server's clock (ms), as the heartbeats are.
        """
        earliest = self._last_look
        if now - self._last_look > self._silence / 2:
            # The server was away, or this process was: the others could not be heard.
            self._since, earliest = {}, now
        self._last_look = now
        since = {}
        for node, beat in heartbeats.items():
            known = self._since.get(node)
            heard = max(earliest, now - max(0.0, server_now - beat) / 1000)
            since[node] = known if known and known[0] == beat else (beat, heard)
        self._since = since
        ends = {node: at + self._silence for node, (_, at) in since.items()}
        self.next_end = min((end for end in ends.values() if end > now), default=math.inf)
        return [node for node, end in ends.items() if end <= now]


#: Seconds for which a cancellation is remembered: a worker may have taken the item before it and
#: begin it later. Longer covers slower imports on unpickling; each is compared with what runs.
CANCEL_LIFETIME = 60.0


class ControlListener:
    """Reads the control stream and remembers the cancellations in it.

    Parameters
    ----------
    store
        A connection of its own.

    Attributes
    ----------
    has_news, is_for_all
        Whether a message came since this was last set to false; and one of `everywhere`.
    n_cancelled
        How many cancellations there were.
    """

    def __init__(self, store: Store, settings: SupervisorSettings) -> None:
        self._store = store
        self._settings = settings
        self._last: bytes | None = None
        self._overdue = 0.0
        self.has_news = self.is_for_all = False
        self.n_cancelled = 0
        self._cancellations: list[tuple[float, ControlMessage]] = []

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    def sockets(self) -> list[socket.socket]:
        """Return the socket that can be read when a message has come; empty while not connected."""
        return [one] if (one := self._store.wire.socket) else []

    @property
    def has_fresh(self) -> bool:
        """Whether there are cancellations of items that may still begin."""
        return any(at > time.monotonic() - CANCEL_LIFETIME for at, _ in self._cancellations)

    def take(self) -> None:
        """Read the messages that have come, and ask for the next."""
        if self._last is None:
            self._last = self._store.last_control()
        if time.monotonic() > self._overdue:
            # A firewall may cut a connection without a word.
            self._store.close()
            self._await(self._last)
        while self._store.wire.wait(0):
            self._last, messages = self._store.controls(self._last)
            self.has_news = True
            for message in messages:
                if message.kind == "everywhere":
                    self.is_for_all = True
                else:
                    self.keep(message)
            self._await(self._last)

    def _await(self, after: bytes) -> None:
        self._store.await_control(after, self._settings.hearing)
        self._overdue = time.monotonic() + self._settings.hearing + self._settings.silence

    def ask_again(self) -> None:
        """Ask again for what follows the last message: the connection was lost."""
        self._overdue = 0.0

    def keep(self, message: ControlMessage) -> None:
        """Remember a cancellation: a worker may have taken its items and not begun them."""
        now = time.monotonic()
        kept = [(t, o) for t, o in self._cancellations if t > now - CANCEL_LIFETIME]
        self.n_cancelled += 1
        self._cancellations = [*kept, (now, message)]

    def is_cancelled(self, task: RunningTask) -> bool:
        """Return whether the item that runs is cancelled."""
        return any(_concerns(message, task) for _, message in self._cancellations)


def _concerns(message: ControlMessage, task: RunningTask) -> bool:
    is_its_job = message.job in (task.job, session_of(task.job))
    is_its_run = message.run is None or task.run <= message.run
    return is_its_job and is_its_run and any(task.n + task.item in r for r in message.span)


#: A worker that dies in its first seconds has died young, unless a task is charged with its death.
YOUNG = 10.0
#: Most seconds between two starts of workers that die young. Longer spares the machine more;
#: shorter goes on sooner once the cause is gone.
MOST_PAUSE = 30.0

#: Seconds for which a stand-in stays at least, since the task may wait again; and for which all
#: workers must have waited before one of their tasks fails.
STAND_IN_TIME = 1.0

logger = logging.getLogger(__name__)

#: Files that a supervisor may need besides those of its workers: connections to kernels and server.
RESERVED_FILES = 24
#: Open files that it asks for, if it may: enough for thousands of workers.
WANTED_FILES = 2**16


class Supervisor:
    """Keeps `n_workers` workers alive.

    Parameters
    ----------
    store
        The queue.
    url, secret
        For the workers' own connections.
    n_workers
        How many workers to run.
    lanes
        What they serve, most urgent first.
    homes
        Tags of the tasks that they run, see `Home`; empty: all.
    method
        ``fork`` or ``spawn``.
    control_socket
        Where kernels connect; None: it serves until it is told to stop.
    unit
        What `q.workers` shows as the unit of its workers: a launcher's name for this process.
    devices
        Which accelerator each worker sees; None: all that this process sees.
    wear
        After how many calls, and above how many bytes, an idle worker is replaced; 0: never.
    lifeline
        A pipe whose end tells it to stop; None: there is none.
    settings
        How often it looks, and how long it waits.
    """

    def __init__(
        self,
        store: Store,
        *,
        url: Address | str,
        secret: Secret | str,
        n_workers: int,
        lanes: Sequence[str] = LANES,
        homes: Sequence[str] = (),
        method: str = "fork",
        control_socket: ControlSocket | None = None,
        unit: str = "",
        wear: tuple[int, int] = (0, 0),
        devices: Devices | None = None,
        lifeline: Lifeline | None = None,
        settings: SupervisorSettings | None = None,
    ) -> None:
        self.node = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.n_workers = n_workers
        self._store = store
        self._url, self._secret = Address(url), Secret(secret)
        self._lanes, self._homes, self._method = tuple(lanes), tuple(homes), method
        self.control_socket, self._unit, self._wear = control_socket, unit, wear
        self._devices = devices or Devices()
        self._lifeline = lifeline
        self._settings = settings or SupervisorSettings()
        self._life = Life(self._settings.lifetime, self._settings.idle_timeout)
        self._control = ControlListener(store.clone(), self._settings)
        self._workers: dict[int, WorkerProcess] = {}
        self._dead: list[tuple[WorkerProcess, CrashReport]] = []
        self._dropped: list[str] = []
        self._drop_until = 0.0  # How long to wait for the server to cancel those.
        self._pid = os.getpid()
        self._number, self._settled, self._slots = 0, settled_file(), Slots(shared_file())
        self._turns_file = turns_file()
        self._turns = TurnWatch(self._turns_file)
        #: How many rounds of workers in a row have died young, and what `q.status` says about it.
        self._n_young, self._trouble, self._told = 0, "", ""
        self._n_stand_ins, self._stand_ins_until = 0, 0.0
        self._stuck_since = 0.0  #: since when all workers wait
        self._watches = False  # whether it looks at what runs in each tick
        self._stopping = self._hurrying = False
        #: Why it ends, in words; whether somebody told it to; and when it hands back what runs.
        self._why_ending, self._was_told, self._drained = "", False, float("inf")
        #: Leaders of sessions whose worker has died -> when the rest of the session is killed.
        self._sessions: dict[int, float] = {}
        self._max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._has_room = True
        self._failure: SecretMismatch | None = None
        self._unswept = ""  #: Why large values of the dead could not be deleted.
        self._heartbeat_due = self._promote_due = self._start_due = self._work_due = 0.0
        self._renewal_due = self._retire_due = 0.0
        self._environment = ""  #: what is said of it on the server: its digest
        self._lanes_due, self._used_lanes, self._n_lane_changes = 0.0, frozenset[str](), 0
        self._others = OtherNodes(self._settings.silence)
        self._skip_control_until = 0.0
        self._wakeup, self._wake = os.pipe()  # pipe2 is not on macOS
        os.set_blocking(self._wake, False)

    # -- its life ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until a signal says stop, or until the last client has left.

        Raises
        ------
        SecretMismatch
            The queue has a new secret. Running tasks were finished; other workers take the rest.
        """
        self._handle_signals()
        _allow_files(WANTED_FILES)
        self._guard = Guard(self._forget)
        born = time.monotonic()
        with suppress(ServerUnreachable, ServerRefused):  # the next tick will meet it
            # Register before starting workers, so that their tasks are requeued if we die, and read
            # the control stream from here on.
            self._send_heartbeat()
            self._read_control()
        try:
            while not self._stopping:
                self._turn()
                if why := self._life.why_over(worker.slot for worker in self._workers.values()):
                    self._begin_to_end(why, self._settings.drain)
                if (
                    self.control_socket
                    and not self.control_socket.in_use
                    and self._may_leave(self.control_socket, born)
                ):
                    break
                if self._failure and not self._workers:
                    raise self._failure
            if self._stopping:
                self._drain()
        finally:
            if os.getpid() == self._pid:  # a worker that was forked ends through here, too
                self._end()
                self._guard.end()

    def _may_leave(self, control_socket: ControlSocket, born: float) -> bool:
        """Return whether there is nothing left to do, now that the last kernel has gone."""
        now = time.monotonic()
        if not control_socket.visited and now - born <= self._settings.visit:
            return False
        # The server may be away: tasks that are not cancelled there would wait for ever.
        if self._dropped and now < self._drop_until:
            return False
        return not self._has_named_work()

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup the end of the terminal is ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: self.stop(number))
        # A process inherits the mask of blocked signals from the one that started it.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _drain(self) -> None:
        """Take no more tasks, and give running ones some time, so that little work is lost."""
        self.n_workers, self._heartbeat_due = 0, 0.0  # Tell others that the end is planned.
        n_busy = sum(worker.slot.is_busy for worker in self._workers.values())
        patience = self._drained - time.monotonic()
        if n_busy and not self.control_socket and patience > self._settings.grace:
            logger.warning(
                "%s: %d running calls get %.3g s, then they are handed back. To hand them back"
                " at once, send SIGTERM%s.",
                self._why_ending,
                n_busy,
                patience,
                " again" if self._was_told else "",
            )
        else:
            logger.info("%s: it ends", self._why_ending)
        while self._workers and not self._hurrying and time.monotonic() < self._drained:
            self._turn()

    def _turn(self) -> None:
        try:
            self._tick()
        except Exception:  # No fault of ours may end the loop: the workers would end with it.
            logger.exception("supervisor %s goes on after a fault", self.node)
            self._control.ask_again()
            time.sleep(self._settings.rest)

    def _has_named_work(self) -> bool:
        """Return whether tasks of a named job wait here: it outlives its kernel."""
        lanes = (*self._lanes, *filter(is_home_lane, self._used_lanes))
        if time.monotonic() < self._work_due:
            return True
        self._work_due = time.monotonic() + self._settings.heartbeat
        try:
            return self._store.has_open_jobs(self._homes) and self._store.has_tasks(lanes)
        except (ServerUnreachable, ServerRefused) as error:
            logger.warning("%s", error)
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End when running tasks are over or had their time to drain; at once at the second call.

        After Ctrl-C somebody waits at the keyboard, so the time to drain is just the grace.
        """
        self._hurrying, self._was_told = self._was_told, True
        patience = self._settings.grace if number == signal.SIGINT else self._settings.drain
        self._begin_to_end(f"told to end ({signal.Signals(number).name})", patience)

    def _begin_to_end(self, why: str, patience: float) -> None:
        """Take no more tasks, and hand back after `patience` seconds at the latest what runs."""
        self._why_ending = self._why_ending or why
        self._drained = min(self._drained, time.monotonic() + patience)
        self._stopping = True

    def scale(self, n_workers: int, wear: tuple[int, int] | None = None) -> str:
        """Run `n_workers` from now on; return a warning for the user, or an empty string.

        Parameters
        ----------
        wear
            When they are replaced from now on; None: as before.
        """
        if self._failure or self._stopping:
            return ""
        self.n_workers = n_workers
        if wear is not None:
            self._wear = wear
            for worker in self._workers.values():
                worker.slot.set_wear(*wear)
        n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(1, (n_files - RESERVED_FILES) // N_DESCRIPTORS)
        if n_workers <= most or n_files == resource.RLIM_INFINITY:
            return ""
        return (
            f"{n_workers} workers were asked for, and about {most} can be started: each needs"
            f" {N_DESCRIPTORS} open files in their supervisor, which may have {n_files}. Raise the"
            " limit (`ulimit -n`) where this was started from."
        )

    def _tick(self) -> None:
        self._scale()
        self._listen(self._pause())
        self._wait_for_workers()
        self._end_sessions()
        try:
            self._look_for_lanes()  # First: a server without memory still allows it.
            self._cancel_dropped()
            self._requeue_from_dead_workers()
            self._requeue_from_stopped_workers()
            self._send_heartbeat()
            self._read_control()
            self._promote()
        except SecretMismatch as error:
            # Somebody changed it: finish what runs here, and leave the rest to other workers.
            self._failure, self.n_workers = error, 0
        except (ServerUnreachable, ServerRefused) as error:
            logger.warning("%s", error)
            self._control.ask_again()
            time.sleep(self._settings.tick)
        self._stop_items()

    def _pause(self) -> float:
        """Return for how many seconds there is nothing to do unless something happens."""
        left_over = self._dead or self._dropped or self._sessions
        if self._watches or self._control.has_fresh or left_over or self._skips_control():
            return self._settings.tick
        due = [self._heartbeat_due, self._lanes_due, self._promote_due, self._drained]
        due += [worker.leave_by for worker in self._workers.values()]
        if len(self._workers) < self.n_workers:
            due.append(self._start_due)
        return max(0.0, min(self._settings.rest, min(due) - time.monotonic()))

    def _skips_control(self) -> bool:
        """Return whether to leave control messages for later: many may come in a second."""
        return bool(self._failure) or time.monotonic() < self._skip_control_until

    def _listen(self, timeout: float) -> None:
        """Wait for a worker's death, a client, a control message, or the next look."""
        control_socket = self.control_socket
        sockets: list[HasFile] = [] if self._skips_control() else [*self._control.sockets()]
        if control_socket:
            sockets += control_socket.sockets()
        if self._lifeline:
            sockets.append(self._lifeline)
        ready = self._poll(sockets, timeout)
        if self._lifeline and self._lifeline.fileno() in ready:
            self._end_of_lifeline(self._lifeline)
        for session in control_socket.serve(ready, self.scale) if control_socket else ():
            self._drop_session(session)

    def _poll(self, sockets: Sequence[HasFile], timeout: float) -> set[int]:
        """Wait for a signal, or something to read; return the descriptors that can be read.

        Meanwhile the turn is given away if its holder runs tasks for long.
        """
        poll = select.poll()  # Unlike select(), it takes descriptors above 1023.
        for descriptor in (self._wakeup, *(one.fileno() for one in sockets)):
            poll.register(descriptor, select.POLLIN)
        ready, left, until = set[int](), timeout, time.monotonic() + timeout
        while not ready and left >= 0:
            seconds = min(left, LONG) if self._turns.look() else left
            ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
            left = until - time.monotonic()
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        return ready

    def _end_of_lifeline(self, lifeline: Lifeline) -> None:
        """Stop, as the client says; if it is gone, nobody waits for what it has submitted."""
        self._lifeline, said = None, lifeline.last_words()
        if not said and lifeline.session:
            self._drop_session(lifeline.session)
        self.stop()
        if said == HURRY:
            self.stop()

    def _drop_session(self, session: str) -> None:
        """Cancel what a kernel has submitted: it has died, and nobody waits for the results."""
        self._control.keep(ControlMessage(kind="cancel", job=session, span=EVERYTHING))
        self._dropped.append(session)
        self._drop_until = time.monotonic() + self._settings.visit

    def _cancel_dropped(self) -> None:
        while self._dropped:
            self._store.cancel(self._dropped[0], EVERYTHING, EVERYTHING)
            self._dropped.pop(0)

    def _end(self) -> None:
        """Stop the workers: what they run goes back to its lane."""
        if self.control_socket:
            self.control_socket.close()
        for worker in self._workers.values():
            worker.leave()
        farewell = time.monotonic() + self._settings.farewell
        while self._workers or self._sessions:
            for worker in self._workers.values():
                if worker.slot.is_busy:
                    self._hand_back(worker)
                elif time.monotonic() > farewell:
                    worker.hand_over()
            self._poll((), self._settings.tick)
            self._wait_for_workers()
            self._end_sessions()
        self._sweep()
        try:
            self._requeue_from_dead_workers()
            self._store.forget_node(self.node)
        except (ServerUnreachable, ServerRefused) as error:
            # Another supervisor does it once this one has been silent for a while.
            logger.warning("%s", error)

    # -- children ------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Start missing workers, and tell surplus ones to leave."""
        for worker in self._workers.values():
            if worker.slot.leaving and not worker.leaving:
                worker.leaving = True
                if worker.slot.leaving is Leaving.ASKED:
                    worker.leave_by = time.monotonic() + self._settings.drain
        staying = [c for c in self._workers.values() if not c.leaving]
        surplus = len(staying) - self.n_workers - self._stand_ins(staying)
        # One whose task waits is the last that leaves: it would free nothing.
        order = sorted(staying, key=lambda c: (c.slot.state, c.slot.waits, -c.born))
        for worker in order[: max(0, surplus)]:
            worker.leave()
        if time.monotonic() >= self._start_due:
            # A replacement waits for the device of the worker that leaves.
            n_leaving = len(self._workers) - len(staying) if self._devices.are_assigned else 0
            for _ in range(-surplus - n_leaving):
                try:
                    self._start_worker()
                except OSError as error:
                    self._put_off(error, len(staying), surplus)
                    break
                self._has_room = True

    def _stand_ins(self, staying: Sequence[WorkerProcess]) -> int:
        """Return how many workers to run besides, for those whose tasks wait for other tasks."""
        now = time.monotonic()
        n = sum(worker.slot.waits for worker in staying)
        if n:  # One that waits for its tasks may have the lease that keeps others from these.
            n = min(MOST_STAND_INS, n + sum(map(_is_held_up, staying)))
        if n >= self._n_stand_ins or now > self._stand_ins_until:
            self._n_stand_ins, self._stand_ins_until = n, now + STAND_IN_TIME
        return self._n_stand_ins if self.n_workers else 0

    def _put_off(self, error: OSError, n_staying: int, surplus: int) -> None:
        """Try again later to start workers for which there is no room, and log that once."""
        self._start_due = time.monotonic() + self._settings.heartbeat
        if self._has_room:
            self._has_room = False
            logger.warning(
                "of %d workers only %d can be started: %s. Ask for fewer, or raise the limit"
                " (`ulimit -n` for open files, `ulimit -u` for processes).",
                n_staying - surplus,
                len(self._workers),
                error,
            )

    def _start_worker(self) -> None:
        _check_files()
        self._number += 1
        device = self._devices.take()
        try:
            worker = self._start(device)
        except OSError:
            self._devices.give_back(device)
            raise
        self._workers[worker.pid] = worker
        self._turns.add(worker.spec.number)
        worker.slot.set_wear(*self._wear)
        logger.info(
            "worker %s has started, process %d%s",
            worker.spec.worker,
            worker.pid,
            "" if device is None else f", device {device or '(none)'}",
        )
        self._guard.add(worker.pid)
        worker.use_lanes(self._used_lanes, self._n_lane_changes)

    def _start(self, device: str | None) -> WorkerProcess:
        return start(
            self._method,
            self._url,
            self._secret,
            self._slots,
            self._be_no_supervisor,
            worker=f"{self.node}#{self._number}",
            queue=self._store.keys.queue,
            lanes=self._lanes,
            homes=self._homes,
            n_threads=max(1, n_cores() // max(1, self.n_workers)),
            settled=self._settled,
            turns=self._turns_file,
            max_files=self._max_files,
            device=device,
            ends_at=self._life.ends_at,
            lifetime=self._settings.lifetime,
            description=self._describe(),
        )

    def _be_no_supervisor(self) -> None:
        self._guard.forget()
        self._forget()

    def _forget(self) -> None:
        """Close what belongs to the supervisor, in a process that it has forked."""
        for worker in self._workers.values():
            worker.close()
        if self.control_socket:
            self.control_socket.forget()
        if self._lifeline:
            self._lifeline.close()
        self._control.close()
        self._store.close()
        os.close(self._wakeup)
        os.close(self._wake)

    def _describe(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "host": socket.gethostname(),
            "supervisor": os.getpid(),
            "python": PYTHON,
            "lanes": list(self._lanes),
            "homes": list(self._homes),
            "unit": self._unit,
            "environment": self._environment,
            "leaving": self._stopping,
        }

    def _wait_for_workers(self) -> None:
        """Collect the workers that have died."""
        while self._workers:
            pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:
                return
            worker = self._workers.get(pid)
            if worker is None:  # The first process of a container inherits orphans.
                continue
            self._turns.drop(worker.spec.number)
            worker.is_stopped = os.WIFSTOPPED(status)
            if worker.is_stopped:
                continue
            if os.WIFCONTINUED(status):
                worker.signal(LOOK)  # It may be parked, and we have forgotten that.
                continue
            del self._workers[pid]
            _log_end(worker, cause_of(status))
            self._slow_down(worker, cause_of(status))
            unit = 1 if sys.platform == "darwin" else 1024
            certificate = DeathCertificate(
                worker=worker.spec.worker,
                cause=cause_of(status),
                peak_memory_bytes=usage.ru_maxrss * unit,
                stack=tail(worker.spec.crash),
                output=tail(worker.spec.stdout) + tail(worker.spec.stderr),
            )
            running = worker.slot.running()
            stopped = worker.slot.stop_request()
            crash = CrashReport(
                certificate,
                running,
                stopped,
                is_planned=worker.is_planned,
                ran=worker.ran(),
                has_progress=worker.slot.has_progress,
            )
            self._dead.append((worker, crash))
            self._slots.give_back(worker.spec.number)
            self._devices.give_back(worker.spec.device)
            self._sessions[pid] = float("inf")
            worker.close()

    def _slow_down(self, worker: WorkerProcess, cause: str) -> None:
        """Pause longer before each start while workers die young, to spare the machine.

        Tasks are charged with the death of their worker, so they can't kill workers for ever. A
        set-up is not.
        """
        now = time.monotonic()
        is_starting = worker.slot.state is WorkerState.STARTING
        is_charged = worker.slot.is_busy and not is_starting
        if worker.leaving or worker.slot.leaving or is_charged or now - worker.born > YOUNG:
            return
        if cause == signal.SIGKILL.name and not is_starting:  # Somebody else killed it.
            return
        if now < self._start_due:  # Of workers that were started together the first counts.
            return
        self._n_young += 1
        if self._n_young == 1 and not is_starting:
            return
        pause = min(MOST_PAUSE, self._settings.heartbeat * 2.0 ** min(self._n_young - 1, 16))
        self._start_due = now + pause
        self._trouble = (
            f"workers of {self.node} die young (last: {worker.spec.worker}, {cause}, after"
            f" {now - worker.born:.1f} s): the next one starts in {pause:g} s. See the log of their"
            " supervisor."
        )
        logger.error("%s\n%s", self._trouble, tail(worker.spec.stderr))

    def _tell_trouble(self) -> None:
        """Have `q.status` say that workers die young, until they live longer."""
        if self._n_young and time.monotonic() > self._start_due + YOUNG:
            self._n_young, self._trouble = 0, ""
        if self._trouble != self._told:
            self._store.tell_trouble(self.node, self._trouble)
            self._told = self._trouble

    def _end_sessions(self) -> None:
        """End the processes that tasks of dead workers started: SIGTERM, and SIGKILL later.

        A process with a session of its own was detached on purpose, and goes on.
        """
        if not self._sessions:
            return
        now = time.monotonic()
        left = members(self._sessions)
        for leader, kill_at in list(self._sessions.items()):
            if leader not in left:
                del self._sessions[leader]
                self._guard.remove(leader)
                continue
            number = signal.SIGTERM if kill_at == float("inf") else signal.SIGKILL
            if kill_at == float("inf"):
                self._sessions[leader] = now + self._settings.grace
            elif now < kill_at:
                continue
            for process in left[leader]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, number)

    def _stop_items(self) -> None:
        """Stop items that are cancelled or over a limit, and keep output files small."""
        now, self._watches = time.monotonic(), False
        deepest = self._deepest()
        for worker in self._workers.values():
            running, look_again = worker.look()
            self._watches |= look_again
            reasons = [(task, why) for task in running if (why := self._why_stop(task, now))]
            if worker.slot.state is WorkerState.ENDING:
                worker.leave_by = min(worker.leave_by, now + self._settings.farewell)
            if now > worker.leave_by:
                self._hand_back(worker)
            elif hog := over_memory(worker.pid, running):
                # Kill it now: until it reacts to a request it may have filled the memory.
                worker.slot.ask_to_stop(hog, Stop.MEMORY_LIMIT)
                worker.signal(signal.SIGKILL)
            elif worker.stopping in [task.key for task in running]:
                # One at a time: another request would restart the grace of this one.
                self._force(worker, now)
            elif worker.pid == deepest and running:
                self._ask_to_stop(worker, running[-1], Stop.TOO_DEEP)
            elif reasons:
                self._ask_to_stop(worker, *reasons[0])
            worker.cut_output()

    def _deepest(self) -> int:
        """Return the process id of the last worker, if all wait, and no more may be started.

        0 otherwise, and while workers of other machines may run what they wait for.
        """
        workers, now = self._workers.values(), time.monotonic()
        if len(workers) < self.n_workers + MOST_STAND_INS or not all(w.slot.waits for w in workers):
            self._stuck_since = now
        elif now - self._stuck_since > STAND_IN_TIME:
            self._stuck_since = now
            with suppress(ServerUnreachable, ServerRefused):  # the next tick will meet it
                if not any(map(self._may_help, self._store.workers().values())):
                    return max(workers, key=lambda worker: worker.born).pid
        return 0

    def _may_help(self, worker: dict[str, Any]) -> bool:
        """Return whether a worker, as it was described, may run what ours wait for."""
        homes = worker.get("homes")
        is_for_ours = not homes or not self._homes or bool({*homes} & {*self._homes})
        return is_for_ours and worker.get("python") == PYTHON and not worker.get("waits")

    def _why_stop(self, task: RunningTask, now: float) -> Stop:
        """Return why the item is to stop, if it is."""
        if task.item == NO_ITEM or now < task.since + LONG_STEP:
            return Stop.NONE
        if self._control.is_cancelled(task):
            return Stop.CANCELLED
        return Stop.TIME_LIMIT if task.deadline and now > task.deadline else Stop.NONE

    def _ask_to_stop(self, worker: WorkerProcess, task: RunningTask, why: Stop) -> None:
        worker.stopping, worker.dumped, self._watches = task.key, False, True
        worker.kill_at = time.monotonic() + self._settings.grace
        worker.slot.ask_to_stop(task, why)
        worker.signal(STOP)

    def _hand_back(self, worker: WorkerProcess) -> None:
        """Stop what a worker runs, so that it gives that back; kill it if it does not."""
        now, running = time.monotonic(), worker.slot.running()
        worker.hand_back_by = min(worker.hand_back_by, now + self._settings.grace)
        if now > worker.hand_back_by or worker.slot.state is WorkerState.ENDING:
            worker.hand_over()
        elif worker.slot.has_coroutines:
            worker.slot.hand_back()
        elif running and running[0].item != NO_ITEM and running[0].key != worker.stopping:
            worker.stopping = running[0].key
            worker.slot.ask_to_stop(running[0], Stop.HANDED_BACK)
            worker.signal(STOP)

    def _force(self, worker: WorkerProcess, now: float) -> None:
        if now < worker.kill_at:
            return
        worker.signal(signal.SIGKILL if worker.dumped else DUMP)
        # Counted from the dump: a supervisor that comes late must not kill at once.
        worker.dumped, worker.kill_at = True, now + self._settings.tick

    # -- the queue -----------------------------------------------------------------------------

    def _requeue_from_dead_workers(self) -> None:
        """Requeue, or fail, what dead workers held."""
        while self._dead:
            worker, crash = self._dead[0]
            spec = worker.spec
            requeue_from_dead_worker(self._store, spec.worker, spec.lanes, crash, known=True)
            self._dead.pop(0)

    def _requeue_from_stopped_workers(self) -> None:
        """Put back what the server gave to idle workers after somebody had stopped them."""
        for worker in self._workers.values():
            if worker.is_stopped and worker.slot.state is WorkerState.IDLE:
                held = self._store.held(
                    (*self._lanes, *self._store.home_lanes()), worker.spec.worker
                )
                back = [Settlement(delivery=d, successors=[Requeue(task=d.task)]) for d in held]
                if back:
                    self._store.settle(back)

    def _send_heartbeat(self) -> None:
        now = time.monotonic()
        if now < self._heartbeat_due:
            return
        first = not self._heartbeat_due
        if not self._homes:  # Else a kernel has started it, with its own environment.
            self._report_environment()
        living = {
            c.spec.worker: self._describe() | c.describe()
            for c in self._workers.values()
            if c.slot.state is not WorkerState.STARTING
        }
        step, heartbeats = self._store.heartbeat(self.node, living)
        if step:
            logger.warning("the server's clock went back by %.0f s", step)
            self._store.hasten(step, self._store.known_lanes())
        self._store.forget_cancellations()
        self._store.top_up(self._lanes)
        self._tell_trouble()
        if now > self._renewal_due:
            self._store.renew(self._lanes)
            self._renewal_due = now + RENEW_EVERY
        self._heartbeat_due = now + self._settings.heartbeat
        if first or is_embedded(self._url, Settings.from_environment()):
            self._sweep()
        silent = self._others.silent(heartbeats, time.monotonic(), heartbeats.get(self.node, 0.0))
        self._heartbeat_due = min(self._heartbeat_due, self._others.next_end)
        if silent or first:
            self._requeue_from_silent_nodes(silent)
        if not self._failure:
            self._store.check_secret(write=False)

    def _report_environment(self) -> None:
        """Tell clients what is installed here, when that has changed, and before it is forgotten.

        Many supervisors with the same environment share one record.
        """
        now_here = Environment.here()
        if now_here.digest != self._environment or time.monotonic() > self._renewal_due:
            self._store.put_environment(now_here.digest, now_here.encode())
            self._environment = now_here.digest

    def _sweep(self) -> None:
        """Delete files with large values of dead clients, and fetched ones that nobody uses."""
        try:
            sweep(Settings.from_environment())
        except (FolderRefused, OSError) as error:
            if str(error) != self._unswept:  # Log it once, though it is tried every second.
                self._unswept = str(error)
                logger.warning("%s", error)

    def _requeue_from_silent_nodes(self, silent: list[str]) -> None:
        """Requeue what workers held whose supervisor fell silent, or has died on this machine."""
        for worker, description in self._store.workers().items():
            node = description.get("node", "")
            if node in silent or (node != self.node and has_lost_its_supervisor(description)):
                cause = f"its supervisor {node} gave no sign of life"
                certificate = DeathCertificate(worker=worker, cause=cause)
                crash = CrashReport(certificate, is_planned=bool(description.get("leaving")))
                lanes = description.get("lanes", self._lanes)
                requeue_from_dead_worker(self._store, worker, lanes, crash, known=False)
        for node in silent:
            self._store.forget_node(node)

    def _read_control(self) -> None:
        """Read the control messages that have come, and ask for the next."""
        self._control.take()
        if self._control.has_news:
            self._control.has_news, self._promote_due, self._lanes_due = False, 0.0, 0.0
            for worker in self._workers.values():
                worker.slot.set_cancelled(self._control.n_cancelled)
            if self._control.is_for_all:
                self._control.is_for_all = False
                self._turns.wake_all()
            self._skip_control_until = time.monotonic() + self._settings.tick

    def _look_for_lanes(self) -> None:
        """Tell the workers which rare lanes, and which lanes of homes, are in use."""
        if time.monotonic() < self._lanes_due:
            return
        known, found = self._used_lanes, self._store.used_lanes()
        ours = frozenset(lane for lane in found if self._serves(lane))
        self._lanes_due = time.monotonic() + self._settings.heartbeat
        # A rare lane stays in use; a home's lane is forgotten when it is empty.
        used = ours | frozenset(lane for lane in known if not is_home_lane(lane))
        if used != known:
            self._used_lanes = used
            self._n_lane_changes += 1
            for worker in self._workers.values():
                worker.use_lanes(used, self._n_lane_changes)
        if time.monotonic() > self._retire_due:
            self._retire_due = time.monotonic() + self._settings.silence
            lanes = [lane for lane in found if is_home_lane(lane)]
            for lane in lanes:
                self._store.drop_unwanted(lane)
            self._store.retire_lanes(lanes)

    def _serves(self, lane: str) -> bool:
        """Return whether our workers may run the tasks of `lane`, which may belong to a home."""
        home = lane.partition("@")[2]
        return not home or home == LONG_CALLS or may_run(self._homes, home)

    def _promote(self) -> None:
        """Move delayed tasks that are due into their lanes."""
        now = time.monotonic()
        if now < self._promote_due:
            return
        wait = self._store.promote(self._store.known_lanes())
        self._promote_due = now + (self._settings.silence if wait is None else max(wait, 0.001))


def _is_held_up(worker: WorkerProcess) -> bool:
    """Return whether a task that another one has submitted waits for a limit."""
    slot = worker.slot
    return bool(slot.awaited) and any(depth_of(task.lane) for task in slot.running())


def _allow_files(n: int) -> None:
    """Allow this process `n` open files, or as many as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = n if hard == resource.RLIM_INFINITY else min(n, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS permits fewer than it says.
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_files() -> None:
    """Raise OSError if one more worker would leave too few files for the supervisor."""
    next_one = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(next_one)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and next_one + N_DESCRIPTORS > most - RESERVED_FILES // 2:
        raise OSError(errno.EMFILE, f"{most} open files are allowed")


def _log_end(worker: WorkerProcess, cause: str) -> None:
    if worker.leaving or worker.slot.leaving:
        logger.info("worker %s has ended", worker.spec.worker)
    else:
        logger.warning("worker %s has died: %s", worker.spec.worker, cause)
