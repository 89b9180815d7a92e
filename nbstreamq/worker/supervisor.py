"""One a machine: starts workers, watches them, and deals with what they leave behind.

It runs no foreign code and has one thread, so it can fork at any time and nothing can hold it up.
"""

from __future__ import annotations

import errno
import logging
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

from ..errors import (
    DeathCertificate,
    FolderRefused,
    SecretMismatch,
    ServerRefused,
    ServerUnreachable,
)
from ..launch.server import is_embedded
from ..objects.mapped_files import sweep
from ..secret import Address, Secret
from ..settings import Settings, n_cores
from ..wire.item_ranges import EVERYTHING
from ..wire.keys import LANES, is_home_lane, session_of
from ..wire.messages import ControlMessage
from ..wire.store import RENEW_EVERY, Store
from .control_socket import ControlSocket, HasFile
from .crash import CrashReport, bury, cause_of, has_lost_its_supervisor, tail
from .process import DUMP, N_DESCRIPTORS, STOP, WorkerProcess, ended_file, shared_file, start
from .process_groups import Guard, members
from .slot import NO_ITEM, Leaving, RunningTask, Slots, State, Stop
from .usage import over_memory


@dataclass(frozen=True, kw_only=True)
class SupervisorSettings:
    """How often the supervisor looks, and how long it waits; all in seconds.

    Attributes
    ----------
    tick
        Between two looks at the workers' slots while something there has limits, is to be stopped,
        or was cancelled not long ago. Shorter keeps time limits better.
    rest
        Between two looks at other times. Shorter costs more while nothing happens; longer lets C
        code fill more of its output's file.
    heartbeat
        Between two signs of life.
    silence
        After which a machine that gave none is given up. Must be several heartbeats.
    grace
        Between the request to stop and the kill.
    drain
        That what runs gets after a request to end; then it is handed back. Longer loses less work.
    farewell
        That a worker gets to end when it has nothing in its hands any more: for the `atexit`
        handlers, and the files, of what it ran.
    hearing
        That one request for orders lasts. Longer costs nothing; it must stay below what firewalls
        allow a silent connection.
    visit
        That it waits for its first user.
    """

    tick: float = 0.05
    rest: float = 0.25
    heartbeat: float = 1.0
    silence: float = 4.0
    grace: float = 1.0
    drain: float = 30.0
    farewell: float = 5.0
    hearing: float = 30.0
    visit: float = 15.0


class OtherNodes:
    """Judges the other supervisors of a queue by their heartbeats.

    A node is silent if its last heartbeat stayed the same for a while, by this process's own clock:
    the server's clock may be set back or forward at any time.

    Parameters
    ----------
    silence
        Seconds after which a node counts as silent.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._last_look = 0.0
        #: Node -> its last heartbeat, by the server's clock, and since when it is that, by ours.
        self._since: dict[str, tuple[float, float]] = {}

    def silent(self, heartbeats: dict[str, float], now: float) -> list[str]:
        """Return the silent nodes among `heartbeats`, at `now` by the monotonic clock."""
        if now - self._last_look > self._silence / 2:
            # The server was away, or we were: then the others had no chance to say anything.
            self._since = {}
        self._last_look = now
        since = {}
        for node, beat in heartbeats.items():
            known = self._since.get(node)
            since[node] = known if known and known[0] == beat else (beat, now)
        self._since = since
        return [node for node, (_, at) in since.items() if now - at > self._silence]


#: Seconds for which a cancellation holds for items that a worker took before it, and begins later.
#: Longer covers slower imports on unpickling; each is compared with what runs, at each look.
ORDER_LIFETIME = 60.0


class ControlListener:
    """Follows the control stream, and remembers the cancellations in it.

    Parameters
    ----------
    store
        A connection of its own.

    Attributes
    ----------
    has_news
        Whether anything came since somebody set this to false.
    """

    def __init__(self, store: Store, timing: SupervisorSettings) -> None:
        self._store = store
        self._timing = timing
        self._last: bytes | None = None
        self._overdue = 0.0
        self.has_news = False
        self._cancellations: list[tuple[float, ControlMessage]] = []

    def close(self) -> None:
        """Close the connection."""
        self._store.close()

    def sockets(self) -> list[socket.socket]:
        """Return what can be read when something has come; nothing while not connected."""
        return self._store.sockets()

    @property
    def has_fresh(self) -> bool:
        """Whether there are cancellations of what may begin still."""
        return any(at > time.monotonic() - ORDER_LIFETIME for at, _ in self._cancellations)

    def take(self) -> None:
        """Take note of what has come, and ask for more."""
        if self._last is None:
            self._last = self._store.last_control()
        if time.monotonic() > self._overdue:
            # Nobody tells us when a firewall has cut the connection.
            self._store.close()
            self._await(self._last)
        self.follow()

    def follow(self) -> None:
        """Take note of what has come since `take`."""
        while self._last is not None and self._store.wait(0):
            self._last, orders = self._store.controls(self._last)
            self.has_news = True
            for order in orders:
                self.keep(order)
            self._await(self._last)

    def _await(self, after: bytes) -> None:
        self._store.await_control(after, self._timing.hearing)
        self._overdue = time.monotonic() + self._timing.hearing + self._timing.silence

    def ask_anew(self) -> None:
        """Ask for what came since the last entry once more: the connection was lost."""
        self._overdue = 0.0

    def keep(self, order: ControlMessage) -> None:
        """Remember a cancellation: what it concerns may have been taken, and not have begun."""
        now = time.monotonic()
        kept = [(t, o) for t, o in self._cancellations if t > now - ORDER_LIFETIME]
        if order.kind == "resume":
            self._cancellations = [(t, o) for t, o in kept if o.job != order.job]
        else:
            self._cancellations = [*kept, (now, order)]

    def cancel(self, level: RunningTask) -> bool:
        """Return whether what runs at `level` is cancelled."""
        return any(_concerns(order, level) for _, order in self._cancellations)


def _concerns(order: ControlMessage, level: RunningTask) -> bool:
    ours = order.job in (level.job, session_of(level.job))
    return ours and any(level.n + level.item in r for r in order.span)


#: Seconds below which a worker has died young, if it had nothing in hand that is charged with it.
YOUNG = 10.0
#: Most seconds between two starts of workers that die young. Longer spares the machine more;
#: shorter goes on sooner when what killed them is put right.
MOST_PAUSE = 30.0

logger = logging.getLogger(__name__)

#: Files that a supervisor may need besides those of its workers: connections, kernels at the door.
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
        How many workers there shall be.
    lanes
        What they serve, most urgent first.
    homes
        Tags of the tasks that they run, see `Home`; empty: all.
    method
        ``fork`` or ``spawn``.
    door
        Where kernels come in; None: it serves until it is told to stop.
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
        door: ControlSocket | None = None,
        timing: SupervisorSettings | None = None,
    ) -> None:
        self.node = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.n_workers = n_workers
        self._store = store
        self._url, self._secret = Address(url), Secret(secret)
        self._lanes, self._homes, self._method = tuple(lanes), tuple(homes), method
        self.door, self._timing = door, timing or SupervisorSettings()
        self._orders = ControlListener(store.clone(), self._timing)
        self._children: dict[int, WorkerProcess] = {}
        self._dead: list[tuple[WorkerProcess, CrashReport]] = []
        self._dropped: list[str] = []
        self._drop_until = 0.0  # until when the server has to be there to learn of those
        self._pid = os.getpid()
        self._number, self._ended, self._slots = 0, ended_file(), Slots(shared_file())
        #: How many rounds of workers in a row have died young; and what is said of that.
        self._n_young, self._trouble, self._told = 0, "", ""
        self._watches = False  # looks often at what runs
        self._stopping = self._hurrying = False
        self._patience, self._drained = self._timing.drain, float("inf")
        #: Leaders of sessions whose worker has died -> when what is left in them is killed.
        self._sessions: dict[int, float] = {}
        self._max_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._has_room = True
        self._failure: SecretMismatch | None = None
        self._unswept = ""  #: Why large values of the dead could not be deleted.
        self._heartbeat_due = self._promote_due = self._start_due = self._work_due = 0.0
        self._renewal_due = self._retire_due = 0.0
        self._lanes_due, self._used_lanes, self._n_lane_changes = 0.0, frozenset[str](), 0
        self._others = OtherNodes(self._timing.silence)
        self._deaf_until = 0.0
        self._wakeup, self._wake = os.pipe()  # pipe2 is not on macOS
        os.set_blocking(self._wake, False)

    # -- its life ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop by a signal, or until the last user has left.

        Raises
        ------
        SecretMismatch
            The queue got another secret; what ran was finished, and the rest is for others.
        """
        self._handle_signals()
        _allow_files(WANTED_FILES)
        self._guard = Guard(self._forget)
        born = time.monotonic()
        with suppress(ServerUnreachable, ServerRefused):  # the next tick will meet it
            # Before there are workers: whose supervisor nobody knows, nobody would miss; and it
            # shall hear what is cancelled from then on.
            self._beat()
            self._obey()
        try:
            while not self._stopping:
                self._turn()
                if self.door and not self.door.in_use and self._may_leave(self.door, born):
                    break
                if self._failure and not self._children:
                    raise self._failure
            if self._stopping:
                self._drain()
        finally:
            if os.getpid() == self._pid:  # a worker that was forked ends through here, too
                self._end()
                self._guard.end()

    def _may_leave(self, door: ControlSocket, born: float) -> bool:
        """Return whether there is nothing left to do for the kernel, which has gone."""
        now = time.monotonic()
        if not door.visited and now - born <= self._timing.visit:
            return False
        # The server may be away: what is not cancelled there would wait for ever.
        if self._dropped and now < self._drop_until:
            return False
        return not self._has_named_work()

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup has it ignore the end of its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _: self.stop(number))
        # Who started us may have had signals blocked, and a mask is inherited.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _drain(self) -> None:
        """Let what runs go on for a while, but take nothing more, so that little work is lost."""
        self.n_workers, self._heartbeat_due = 0, 0.0  # others shall know that this is planned
        self._drained = time.monotonic() + self._patience
        n_busy = sum(child.slot.n_levels > 0 for child in self._children.values())
        if n_busy and not self.door and self._patience > self._timing.grace:
            logger.warning(
                "told to end: %d running calls get %g s, then they are handed back. To hand them"
                " back at once, send the signal again.",
                n_busy,
                self._patience,
            )
        while self._children and not self._hurrying and time.monotonic() < self._drained:
            self._turn()

    def _turn(self) -> None:
        try:
            self._tick()
        except Exception:  # no fault of ours may end the loop: the workers would go, too
            logger.exception("supervisor %s goes on after a fault", self.node)
            self._orders.ask_anew()
            time.sleep(self._timing.rest)

    def _has_named_work(self) -> bool:
        """Return whether a named job, which outlives its kernel, has something to do here."""
        lanes = (*self._lanes, *filter(is_home_lane, self._used_lanes))
        if time.monotonic() < self._work_due:
            return True
        self._work_due = time.monotonic() + self._timing.heartbeat
        try:
            return self._store.has_open_jobs(self._homes) and self._store.has_tasks(lanes)
        except (ServerUnreachable, ServerRefused) as error:
            logger.warning("%s", error)
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End when what runs is over, or has had its time to drain; at once at the second call.

        Who presses Ctrl-C does not want to wait: then that is just the grace.
        """
        self._hurrying, self._stopping = self._stopping, True
        self._patience = self._timing.grace if number == signal.SIGINT else self._timing.drain

    def scale(self, n_workers: int) -> str:
        """Have so many workers from now on; return what there is to say to that, if anything."""
        if self._failure or self._stopping:
            return ""
        self.n_workers = n_workers
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
        self._wait_for_children()
        self._end_sessions()
        try:
            self._look_for_lanes()  # first: it is refused nothing
            self._cancel_dropped()
            self._bury()
            self._beat()
            self._obey()
            self._promote()
        except SecretMismatch as error:
            # Others changed it: what runs here is finished, and the rest left to them.
            self._failure, self.n_workers = error, 0
        except (ServerUnreachable, ServerRefused) as error:
            logger.warning("%s", error)
            self._orders.ask_anew()
            time.sleep(self._timing.tick)
        self._stop_items()

    def _pause(self) -> float:
        """Return for how many seconds there is nothing to do, unless something happens."""
        left_over = self._dead or self._dropped or self._sessions
        if self._watches or self._orders.has_fresh or left_over or self._is_deaf():
            return self._timing.tick
        due = [self._heartbeat_due, self._lanes_due, self._promote_due, self._drained]
        due += [child.leave_by for child in self._children.values()]
        if len(self._children) < self.n_workers:
            due.append(self._start_due)
        return max(0.0, min(self._timing.rest, min(due) - time.monotonic()))

    def _is_deaf(self) -> bool:
        """Return whether orders wait: hundreds may come in a second, or nobody may read them."""
        return bool(self._failure) or time.monotonic() < self._deaf_until

    def _listen(self, timeout: float) -> None:
        """Wait for something to do: a child's death, a user, an order, or the next look."""
        door = self.door
        orders = [] if self._is_deaf() else self._orders.sockets()
        ready = self._poll([*orders, *(door.sockets() if door else ())], timeout)
        for session in door.serve(ready, self.scale) if door else ():
            self._drop_session(session)

    def _poll(self, sockets: Sequence[HasFile], timeout: float) -> set[int]:
        """Wait for a signal, or something to read; return the descriptors that can be read."""
        poll = select.poll()  # unlike select(), knows sockets beyond the 1024th open file
        for descriptor in (self._wakeup, *(one.fileno() for one in sockets)):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        return ready

    def _drop_session(self, session: str) -> None:
        """Nobody waits any more for what a kernel has submitted: let it not run."""
        self._orders.keep(ControlMessage(kind="cancel", job=session, span=EVERYTHING))
        self._dropped.append(session)
        self._drop_until = time.monotonic() + self._timing.visit

    def _cancel_dropped(self) -> None:
        while self._dropped:
            self._store.cancel(self._dropped[0], EVERYTHING, EVERYTHING)
            self._dropped.pop(0)

    def _end(self) -> None:
        """Stop the workers: idle ones leave, what others run is handed back after the grace."""
        if self.door:
            self.door.close()
        for child in self._children.values():
            child.leave()
        now = time.monotonic()
        # What was drained had its time.
        grace = now if self._stopping else now + self._timing.grace
        farewell = now + self._timing.farewell
        while self._children or self._sessions:
            self._poll((), self._timing.tick)
            self._wait_for_children()
            self._end_sessions()
            for child in self._children.values():
                if time.monotonic() > (grace if child.slot.n_levels else farewell):
                    child.hand_over()
        self._sweep()
        try:
            self._bury()
            self._store.forget_node(self.node)
        except (ServerUnreachable, ServerRefused) as error:
            # Another supervisor takes care of it, once this one has been silent for a while.
            logger.warning("%s", error)

    # -- children ------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Start workers that are missing, and send away those that are too many."""
        for child in self._children.values():
            if child.slot.leaving and not child.leaving:
                child.leaving = True
                if child.slot.leaving is Leaving.ASKED:
                    child.leave_by = time.monotonic() + self._timing.drain
        staying = [c for c in self._children.values() if not c.leaving]
        surplus = len(staying) - self.n_workers
        for child in sorted(staying, key=lambda c: c.slot.state)[: max(0, surplus)]:
            child.leave()
        if time.monotonic() >= self._start_due:
            for _ in range(-surplus):
                try:
                    self._start_child()
                except OSError as error:
                    self._put_off(error, len(staying), surplus)
                    break
                self._has_room = True

    def _put_off(self, error: OSError, n_staying: int, surplus: int) -> None:
        """Try again later to start the workers that there is no room for, and say so once."""
        self._start_due = time.monotonic() + self._timing.heartbeat
        if self._has_room:
            self._has_room = False
            logger.warning(
                "of %d workers only %d can be started: %s. Ask for fewer, or raise the limit"
                " (`ulimit -n` for open files, `ulimit -u` for processes).",
                n_staying - surplus,
                len(self._children),
                error,
            )

    def _start_child(self) -> None:
        _check_files()
        self._number += 1
        child = start(
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
            ended=self._ended,
            max_files=self._max_files,
            description=self._describe(),
        )
        self._children[child.pid] = child
        self._guard.add(child.pid)
        child.use_lanes(self._used_lanes, self._n_lane_changes)

    def _be_no_supervisor(self) -> None:
        self._guard.forget()
        self._forget()

    def _forget(self) -> None:
        """In a forked process: give up what is open and belongs to the supervisor."""
        for child in self._children.values():
            child.close()
        if self.door:
            self.door.forget()
        self._orders.close()
        self._store.close()
        os.close(self._wakeup)
        os.close(self._wake)

    def _describe(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "host": socket.gethostname(),
            "supervisor": os.getpid(),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "lanes": list(self._lanes),
            "homes": list(self._homes),
            "leaving": self._stopping,
        }

    def _wait_for_children(self) -> None:
        """Take note of the children that have died."""
        while self._children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:  # as the first process of a container we inherit orphans
                continue
            self._slow_down(child, cause_of(status))
            unit = 1 if sys.platform == "darwin" else 1024
            certificate = DeathCertificate(
                worker=child.spec.worker,
                cause=cause_of(status),
                peak_memory_bytes=usage.ru_maxrss * unit,
                stack=tail(child.spec.crash),
                output=tail(child.spec.stdout) + tail(child.spec.stderr),
            )
            levels = child.slot.levels()
            stopped = child.slot.stop_request()
            death = CrashReport(certificate, levels, stopped, is_planned=child.is_planned)
            self._dead.append((child, death))
            self._slots.give_back(child.spec.number)
            self._sessions[pid] = float("inf")
            child.close()

    def _slow_down(self, child: WorkerProcess, cause: str) -> None:
        """Wait longer before each next start while workers die young: don't burn the machine.

        What a worker ran is charged with its death, and so comes to an end; but no set-up is.
        """
        now = time.monotonic()
        is_starting = child.slot.state is State.STARTING
        is_charged = child.slot.n_levels and not is_starting
        if child.leaving or child.slot.leaving or is_charged or now - child.born > YOUNG:
            return
        if cause == signal.SIGKILL.name and not is_starting:  # somebody else killed it
            return
        if now < self._start_due:  # of those that were started together the first counts
            return
        self._n_young += 1
        if self._n_young == 1 and not is_starting:
            return
        pause = min(MOST_PAUSE, self._timing.heartbeat * 2.0 ** min(self._n_young - 1, 16))
        self._start_due = now + pause
        self._trouble = (
            f"workers of {self.node} die young (last: {child.spec.worker}, {cause}, after"
            f" {now - child.born:.1f} s): the next start is {pause:g} s later. Look into the log of"
            " their supervisor."
        )
        logger.error("%s\n%s", self._trouble, tail(child.spec.stderr))

    def _tell_trouble(self) -> None:
        """Have `q.status` say what is wrong with the workers, and no longer when they live."""
        if self._n_young and time.monotonic() > self._start_due + YOUNG:
            self._n_young, self._trouble = 0, ""
        if self._trouble != self._told:
            self._store.tell_trouble(self.node, self._trouble)
            self._told = self._trouble

    def _end_sessions(self) -> None:
        """End what tasks of dead workers have started: it is asked to, and killed after the grace.

        What has a session of its own was detached on purpose, and goes on.
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
                self._sessions[leader] = now + self._timing.grace
            elif now < kill_at:
                continue
            for process in left[leader]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, number)

    def _stop_items(self) -> None:
        """Ask, and in the end force, items to stop; keep output files small."""
        now, self._watches = time.monotonic(), False
        for child in self._children.values():
            levels, soon = child.look()
            self._watches |= soon
            reasons = [(v, why) for v in levels if (why := self._why_stop(v, now))]
            if child.slot.state is State.ENDING:
                child.leave_by = min(child.leave_by, now + self._timing.farewell)
            if now > child.leave_by:
                child.hand_over()
            elif hog := over_memory(child.pid, levels):
                # At once: to ask it would take longer than to fill the machine.
                child.slot.ask_to_stop(hog, Stop.MEMORY_LIMIT)
                child.signal(signal.SIGKILL)
            elif child.stopping in [v.key for v in levels]:
                # One at a time: another request would renew the patience with this one.
                self._force(child, now)
            elif reasons and self._still_holds(*reasons[0]):
                self._ask_to_stop(child, *reasons[0])
            child.cut_output()

    def _why_stop(self, level: RunningTask, now: float) -> Stop:
        """Return why the item shall stop, if it shall."""
        if level.item == NO_ITEM:
            return Stop.NONE
        if self._orders.cancel(level):
            return Stop.CANCELLED
        return Stop.TIME_LIMIT if level.deadline and now > level.deadline else Stop.NONE

    def _still_holds(self, level: RunningTask, why: Stop) -> bool:
        """Return whether a cancellation was not taken back since the last look at the orders."""
        if why is Stop.CANCELLED:
            with suppress(ServerUnreachable, ServerRefused):  # the next tick will meet it
                self._orders.follow()
        return self._why_stop(level, time.monotonic()) is why

    def _ask_to_stop(self, child: WorkerProcess, level: RunningTask, why: Stop) -> None:
        child.stopping, child.dumped, self._watches = level.key, False, True
        child.kill_at = time.monotonic() + self._timing.grace
        child.slot.ask_to_stop(level, why)
        child.signal(STOP)

    def _force(self, child: WorkerProcess, now: float) -> None:
        if now > child.kill_at + self._timing.tick:
            child.signal(signal.SIGKILL)
        elif now > child.kill_at and not child.dumped:
            child.dumped = True
            child.signal(DUMP)

    # -- the queue -----------------------------------------------------------------------------

    def _bury(self) -> None:
        """Put back, or fail, what dead workers held."""
        while self._dead:
            child, death = self._dead[0]
            bury(self._store, child.spec.worker, child.spec.lanes, death, known=True)
            self._dead.pop(0)

    def _beat(self) -> None:
        now = time.monotonic()
        if now < self._heartbeat_due:
            return
        first = not self._heartbeat_due
        living = {
            c.spec.worker: self._describe() | c.describe()
            for c in self._children.values()
            if c.slot.state is not State.STARTING
        }
        step, heartbeats = self._store.heartbeat(self.node, living)
        if step:
            logger.warning("the server's clock went back by %.0f s", step)
            self._store.hasten(step, self._store.known_lanes())
        self._store.forget_cancellations()
        self._tell_trouble()
        if now > self._renewal_due:
            self._store.renew(self._lanes)
            self._renewal_due = now + RENEW_EVERY
        self._heartbeat_due = now + self._timing.heartbeat
        self._sweep()
        silent = self._others.silent(heartbeats, time.monotonic())
        if silent or first:
            self._bury_machines(silent)
        if not self._failure:
            self._store.check_secret(write=False)

    def _sweep(self) -> None:
        """Delete large values of dead clients; with a URL they are not on this machine."""
        settings = Settings.from_environment()
        if is_embedded(self._url, settings):
            try:
                sweep(settings)
            except (FolderRefused, OSError) as error:
                if str(error) != self._unswept:  # once: it is tried every second
                    self._unswept = str(error)
                    logger.warning("%s", error)

    def _bury_machines(self, silent: list[str]) -> None:
        """Deal with the workers of supervisors that fell silent, or died on this very machine."""
        for worker, description in self._store.workers().items():
            node = description.get("node", "")
            if node in silent or (node != self.node and has_lost_its_supervisor(description)):
                cause = f"its supervisor {node} gave no sign of life"
                certificate = DeathCertificate(worker=worker, cause=cause)
                death = CrashReport(certificate, is_planned=bool(description.get("leaving")))
                lanes = description.get("lanes", self._lanes)
                bury(self._store, worker, lanes, death, known=False)
        for node in silent:
            self._store.forget_node(node)

    def _obey(self) -> None:
        """Carry out the orders that have come, and ask for the next."""
        self._orders.take()
        if self._orders.has_news:
            self._orders.has_news, self._promote_due, self._lanes_due = False, 0.0, 0.0
            self._deaf_until = time.monotonic() + self._timing.tick

    def _look_for_lanes(self) -> None:
        """Tell the workers of lanes that were not in use before, and of those of homes that are."""
        if time.monotonic() < self._lanes_due:
            return
        known, found = self._used_lanes, self._store.used_lanes()
        ours = frozenset(lane for lane in found if self._serves(lane))
        self._lanes_due = time.monotonic() + self._timing.heartbeat
        # A rare lane stays one that is used; a home's is forgotten when it holds nothing any more.
        used = ours | frozenset(lane for lane in known if not is_home_lane(lane))
        if used != known:
            self._used_lanes = used
            self._n_lane_changes += 1
            for child in self._children.values():
                child.use_lanes(used, self._n_lane_changes)
        if time.monotonic() > self._retire_due:
            self._retire_due = time.monotonic() + self._timing.silence
            lanes = [lane for lane in found if is_home_lane(lane)]
            for lane in lanes:
                self._store.drop_unwanted(lane)
            self._store.retire_lanes(lanes)

    def _serves(self, lane: str) -> bool:
        """Return whether tasks in `lane` are for our workers, where that depends on their home."""
        home = lane.partition("@")[2]
        return not home or not self._homes or home in self._homes

    def _promote(self) -> None:
        """Move delayed tasks that are due into their lanes."""
        now = time.monotonic()
        if now < self._promote_due:
            return
        wait = self._store.promote(self._store.known_lanes())
        self._promote_due = now + (self._timing.silence if wait is None else max(wait, 0.001))


def _allow_files(n: int) -> None:
    """Have this process open `n` files, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = n if hard == resource.RLIM_INFINITY else min(n, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS allows fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _check_files() -> None:
    """Raise OSError if another worker would leave too few files for the supervisor itself."""
    next_one = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(next_one)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and next_one + N_DESCRIPTORS > most - RESERVED_FILES // 2:
        raise OSError(errno.EMFILE, f"{most} open files are allowed")
