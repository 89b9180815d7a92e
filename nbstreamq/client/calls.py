"""Single calls in quick succession: they share a ledger and, while they are short, messages.

::

    submit ─> Call ─> Sender ─> `gather`: one task of several calls

What a message costs in the client, the server and the worker is paid once for all of them.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ..objects.functions import FunctionPickle
from ..protocol.messages import Event, Options, Task
from ..protocol.spans import size
from .ledger import Ledger
from .payload import Payload

__all__ = [
    "MAX_CALLS",
    "SMALL_BYTES",
    "Call",
    "CallLedger",
    "CallPace",
    "Kind",
    "gather",
    "task_of_calls",
]

#: Most calls in a ledger: what is known of one is kept as long as the future of any.
MAX_CALLS = 1000
#: Bytes of pickled arguments up to which a call may share a ledger and a message.
SMALL_BYTES = 4096
#: Seconds of work that a message may hold: what is behind a long call in it waits for that one.
AIM = 0.002
#: By what part of the difference the expected time of a call follows that of the last message, up
#: and down. One message may have had to wait for the processor: with more up, messages shrink for
#: nothing. Long calls count more than short ones: with more down, more waits behind them.
RISE, FALL = 1 / 8, 1 / 100
#: Of so many first messages the shortest counts: calls in the others may have imported something.
N_FIRST = 4
#: Seconds that a call is thought to take at least.
SHORTEST = 1e-6
#: Most calls in a message; more save little.
MOST = 100
#: Bytes of arguments in a message: a dead letter that is larger can't be tried again.
MOST_BYTES = 2**15
#: A message takes at most one of so many waiting calls, so that each worker gets some.
SHARE = 4


class CallPace:
    """Learns how long the calls of a function take."""

    def __init__(self) -> None:
        self._expected = float("inf")
        self._n_known = 0

    def took(self, seconds: float, n: int) -> None:
        """Learn that the `n` calls of a message took `seconds`."""
        mean = max(seconds / n, SHORTEST)
        self._n_known += 1
        if self._n_known <= N_FIRST:
            self._expected = min(self._expected, mean)
        else:
            self._expected += (mean - self._expected) * (RISE if mean > self._expected else FALL)

    @property
    def most(self) -> int:
        """How many calls a message may hold: one until it is known that they are short."""
        return max(1, min(MOST, int(AIM / self._expected)))


class Kind(NamedTuple):
    """What the calls of a ledger have in common."""

    fn: Callable[..., Any]
    function: FunctionPickle
    lane: str
    options: Options
    outer: object

    def is_like(self, other: Kind) -> bool:
        return (
            self.fn is other.fn
            and self.outer is other.outer
            # The same object: one that captures something mutable is pickled anew, and each of its
            # calls finds that as it was, being a job of its own.
            and self.function is other.function
            and self.lane == other.lane
            and (self.options is other.options or self.options == other.options)
        )


class CallLedger(Ledger):
    """Calls of one kind, each with its future."""

    kind: Kind
    #: How many of them a message shall hold.
    pace: CallPace

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._arguments: list[bytes] = []

    def add_call(self, data: bytes) -> int:
        """Add a call, of which `data` are the arguments; return its number."""
        with self._lock:
            item = len(self._states)
            self._arguments.append(data)
            self._states.append(0)  # it waits
            self._values.append(None)
            return item

    def payload(self, item: int) -> Payload:
        return Payload(item, 1, "apply", self._arguments[item])

    def apply(self, event: Event) -> None:
        if event.kind == "finished":
            self.pace.took(event.seconds, size(event.span))
        super().apply(event)

    def _resolve(self, item: int, future: Any) -> None:
        super()._resolve(item, future)
        self._values[item] = None  # the future has it, and may be gone before this is

    def _drop_payload(self, event: Event) -> None:
        """Keep it, for `TaskFuture.replay`."""


class Call(NamedTuple):
    """A call on its way to the server: its number, its arguments, and seconds to wait."""

    ledger: CallLedger
    item: int
    args: bytes
    delay: float

    @property
    def at_once(self) -> bool:
        """Whether to send it by itself now: no other call of its ledger is open."""
        return len(self.ledger) - self.ledger.n_over == 1

    @property
    def size_bytes(self) -> int:
        return len(self.args) + 300

    def fail(self, error: BaseException) -> None:
        self.ledger.fail([self.item], error)


def gather(queue: deque[Any]) -> list[Call]:
    """Return the calls for the next message: the first of `queue`, which keeps them."""
    calls: list[Call] = [queue[0]]
    ledger = calls[0].ledger
    most, n_bytes = min(ledger.pace.most, (len(queue) - 1) // SHARE), len(calls[0].args)
    while len(calls) < most and type(call := queue[len(calls)]) is Call and call.ledger is ledger:
        n_bytes += len(call.args)
        # Not the next one: another thread was in between.
        if call.item != calls[-1].item + 1 or n_bytes > MOST_BYTES:
            break
        calls.append(call)
    return calls


def task_of_calls(calls: list[Call]) -> Task:
    """Return the message for successive calls."""
    ledger, item, args, _ = calls[0]
    payload = Payload(item, 1, "apply", args)
    if len(calls) > 1:
        together = pickle.dumps([call.args for call in calls], 5)
        payload = Payload(item, len(calls), "calls", together)
    return payload.task(ledger.job, ledger.kind.function, ledger.kind.options)
