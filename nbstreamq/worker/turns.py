"""Which idle worker waits on the server: one of each supervisor. The others are parked.

Each connection that waits makes each message more expensive for the server. And of several, the one
that has waited longest gets the message, whose caches are the coldest. So one worker has the
*turn*. It waits on the server, and keeps the turn while it runs short calls. It passes the turn on
to the worker that was parked last if more tasks wait than it can run soon. If it runs tasks for
longer than `LONG`, was stopped or has died, the supervisor gives the turn to another one.

Nothing is locked. Two workers that wait on the server at the same time do no harm: one of them
parks after its next task. That nobody waits there while somebody is parked must not last: who parks
says so first, and looks then whether the turn is free; who passes it on frees it first, and looks
then who is parked; and the supervisor looks, too.

::

    q[0] place of the holder, from 1; 0: nobody   q[1] whether the holder runs tasks
    q[2] since when it does (s)   q[3] whether the supervisor looks often   q[4] number of places
    q[5] how often all were told to look into their own lanes
    place k: q[8 + k] process id; q[8 + MOST_PLACES + k] since when it is parked (s), 0: it is not
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

#: Seconds for which a worker may run tasks and keep the turn. Longer makes calls wait behind it
#: though other workers are idle; shorter wakes another worker, with cold caches, more often.
LONG = 0.003
#: Seconds after the last call in which the supervisor looks often. Longer costs processor time;
#: shorter costs a signal before more of the isolated calls.
AWAKE = 0.5
#: Most workers of a supervisor. Their places take no memory until they are used.
MOST_PLACES = 2**16
_HOLDER, _RUNS, _SINCE, _WATCHED, _N_PLACES, _N_LOOKS = range(6)
_PIDS = 8
_PARKED = _PIDS + MOST_PLACES
TURNS_BYTES = 8 * (_PARKED + MOST_PLACES)
#: The signal that wakes a parked worker; one that has no handler yet ignores it.
WAKE = signal.SIGURG


class Turns:
    """Who has the turn, in memory that a supervisor shares with its workers.

    Parameters
    ----------
    descriptor
        Of a file of `TURNS_BYTES` zero bytes.
    """

    def __init__(self, descriptor: int) -> None:
        memory = memoryview(mmap.mmap(descriptor, TURNS_BYTES))
        self._words, self._times = memory.cast("q"), memory.cast("d")

    def _parked(self) -> Sequence[float]:
        """Return since when each worker is parked; 0 for those that are not."""
        return self._times[_PARKED : _PARKED + self._words[_N_PLACES]].tolist()

    def _give(self) -> None:
        """Give the turn to the worker that was parked last, if any is, and wake it."""
        words, parked = self._words, [*self._parked()]
        while parked and (last := max(parked)):
            place = parked.index(last)
            words[_HOLDER], words[_RUNS] = place + 1, 0
            if self._wake_up(place):
                return
            parked[place] = words[_HOLDER] = 0

    def _wake_up(self, place: int) -> bool:
        """Wake a worker; return whether it was parked, and lives."""
        # Else it has gone on by itself, and may run a long task before it sees this.
        if self._times[_PARKED + place]:
            self._times[_PARKED + place] = 0.0
            with suppress(OSError):  # It may have just died, or changed its user in a task.
                os.kill(self._words[_PIDS + place], WAKE)
                return True
        return False


class Turn(Turns):
    """The part of one worker in it.

    Parameters
    ----------
    descriptor
        As for `Turns`.
    place
        Number of the worker's slot.
    supervisor
        Its process id.
    """

    def __init__(self, descriptor: int, place: int, supervisor: int) -> None:
        super().__init__(descriptor)
        self._place, self._me, self._supervisor = place, place + 1, supervisor
        self._n_looks = 0
        self._wakeup, self._wake = os.pipe()
        for end in (self._wakeup, self._wake):
            os.set_blocking(end, False)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._words[_PIDS + place] = os.getpid()

    def take(self) -> bool:
        """Return whether it is our turn; take it if nobody has it, or its holder is busy.

        If it is not, look into the lanes before parking.
        """
        words = self._words
        self._n_looks = words[_N_LOOKS]
        if words[_HOLDER] != self._me:
            is_busy = words[_RUNS] and time.monotonic() - self._times[_SINCE] > LONG
            if words[_HOLDER] and not is_busy:
                return False
            words[_HOLDER] = self._me
        words[_RUNS] = 0
        return True

    def keep(self, now: float) -> None:
        """Keep the turn while we run tasks, from `now` on by the monotonic clock."""
        words = self._words
        if words[_HOLDER] == self._me:
            self._times[_SINCE], words[_RUNS] = now, 1
            if not words[_WATCHED] and words[_N_PLACES] > 1 and any(self._parked()):
                self._call_supervisor()

    def pass_on(self) -> None:
        """Pass the turn on, if it is ours."""
        if self._words[_HOLDER] == self._me:
            self._words[_HOLDER] = 0
            self._give()

    def spread(self) -> None:
        """Wake two that are parked, to look into the lanes: each look takes a round trip.

        One after another, many workers would wait for many round trips if the server is far away.
        """
        for _ in range(2):
            if last := max(parked := self._parked(), default=0.0):
                self._wake_up(parked.index(last))

    @contextmanager
    def parked(self) -> Iterator[Callable[[float], object]]:
        """Be parked; gives a function that waits, for at most some seconds, to be woken.

        Any signal wakes it, also one that comes before the function is called.
        """
        before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            self._times[_PARKED + self._place] = time.monotonic()
            yield self._wait
        finally:
            self._times[_PARKED + self._place] = 0.0
            signal.set_wakeup_fd(before)

    def _wait(self, seconds: float) -> None:
        if self._words[_N_LOOKS] != self._n_looks or self.take():
            return
        if self._words[_RUNS] and not self._words[_WATCHED]:
            self._call_supervisor()
        if self._poll.poll(seconds * 1000):
            os.read(self._wakeup, 4096)

    def _call_supervisor(self) -> None:
        with suppress(OSError):  # As in `_give`.
            os.kill(self._supervisor, signal.SIGCHLD)


class TurnWatch(Turns):
    """The supervisor's part in it."""

    def add(self, place: int) -> None:
        """Count the place of a worker that has been started.

        The workers don't do it: of two that start at once, one could undo what the other does.
        """
        self._words[_N_PLACES] = max(self._words[_N_PLACES], place + 1)

    def look(self) -> bool:
        """Give the turn away if its holder is busy; return whether to look again after `LONG`."""
        words = self._words
        words[_WATCHED] = 0  # First: a call that begins after this look gives a signal.
        if not any(self._parked()):
            return False
        seconds = time.monotonic() - self._times[_SINCE]
        if not words[_HOLDER] or (words[_RUNS] and seconds > LONG):
            self._give()
        words[_WATCHED] = bool(words[_RUNS]) or seconds < AWAKE
        return bool(words[_WATCHED])

    def drop(self, place: int) -> None:
        """Forget that a worker is parked, as it was stopped or has died; another gets its turn."""
        self._times[_PARKED + place] = 0.0
        if self._words[_HOLDER] == place + 1:
            self._words[_HOLDER] = 0
            self._give()

    def wake_all(self) -> None:
        """Wake all that are parked, to look into their own lanes."""
        self._words[_N_LOOKS] += 1  # First: one that is about to park sees it.
        for place, since in enumerate(self._parked()):
            if since:
                with suppress(OSError):
                    os.kill(self._words[_PIDS + place], WAKE)
