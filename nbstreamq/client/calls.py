"""Single calls. Each is its own future; calls of one function in quick succession share a job id.

While such calls are short, they share messages, too: what a message costs at the server and in the
worker is then paid once for many. Each call still has its own result, error, and retry.
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ..objects.functions import FunctionPickle
from ..objects.results import load_outcomes
from ..wire.item_ranges import ONE, ItemRanges, items, ranges_of
from ..wire.messages import Event, Fields, Options, State, Task
from .callbacks import hold_callbacks, let_go
from .error_notes import Payload
from .table import ItemOutput, JobTable, Outstanding, print_output

#: Most calls that share a job id: what they printed is kept as long as the future of any.
MAX_CALLS = 1000
#: Bytes of pickled arguments up to which a call may share a job id and a message.
SMALL_BYTES = 4096
#: About how many bytes a message has besides its arguments.
MESSAGE_BYTES = 300
#: Seconds of work that a message may hold: what is behind a long call in it waits for that one.
AIM = 0.002
#: By what part of the difference the expected time of a call follows that of the last message, up
#: and down. One message may have had to wait for the processor: with more up, messages shrink for
#: nothing. Long calls count more than short ones: with more down, more waits behind them.
RISE, FALL = 1 / 8, 1 / 100
#: Of so many first messages the shortest counts: calls in the others may have imported something.
N_FIRST = 4
#: Most calls in a message; more save little.
MOST = 100
#: Bytes of arguments in a message: a dead letter that is larger can't be tried again.
MOST_BYTES = 2**15
#: A message takes at most one of so many waiting calls, so that each worker gets some.
SHARE = 4


class Pace:
    """Learns how long the calls of a function take."""

    def __init__(self) -> None:
        self._expected = float("inf")
        self._n_known = 0

    def took(self, seconds: float, n: int) -> None:
        """Learn that the `n` calls of a message took `seconds`."""
        mean = seconds / n
        self._n_known += 1
        if self._n_known <= N_FIRST:
            self._expected = min(self._expected, mean)
        else:
            self._expected += (mean - self._expected) * (RISE if mean > self._expected else FALL)

    def most(self) -> int:
        """Return how many calls a message may hold: one until it is known that they are short."""
        return int(min(MOST, max(1.0, AIM / max(self._expected, AIM / MOST))))


class Call(Outstanding):
    """What is known of a single call beside its result; its future is a `CallFuture`.

    Attributes
    ----------
    group, index
        The calls that it shares a job id with, and its number among them.
    args
        The pickled positional and keyword arguments.
    news
        The last event about it; None: there was none.
    """

    n_items = 1
    #: Gets the function's name and the event when the call prints. What shows that replaces it.
    show: Callable[[str, Event], object] = staticmethod(print_output)
    job = ""
    outer: object = None
    group: Calls
    index: int
    args: bytes
    news: Event | None = None

    @property
    def size_bytes(self) -> int:
        """About how large its message is."""
        return len(self.args) + MESSAGE_BYTES

    def payload(self) -> Payload:
        """Return its arguments, as they are sent."""
        return Payload(self.index, 1, "apply", self.args)

    def finish(self, value: Any, error: BaseException | None, news: Event) -> bool:
        """End with a result or an error, as `news` says; return False if it had ended before."""
        raise NotImplementedError


class Submission(msgspec.Struct, frozen=True):
    """A message on its way to the server.

    Attributes
    ----------
    message
        What `Store.submit` takes: lane, delay in seconds, fields, and the job of a chunk.
    size_bytes
        About how much that is.
    owner, items
        The calls that fail if the server refuses it.
    """

    message: tuple[str, float, Fields, str]
    size_bytes: int
    owner: Calls | JobTable
    items: range

    def has_ended(self) -> bool:
        return all(map(self.owner.has_ended, self.items))


class Calls:
    """Calls of one function in quick succession, which share a job id.

    Attributes
    ----------
    job, lane, options, outer
        What they have in common, as in `Outstanding`.
    function
        What they call.
    pace
        How long they take.
    open
        Those that are not over, by their number.
    n
        How many there were.
    failed, cancelled
        The numbers of those that ended so.
    """

    def __init__(
        self, job: str, function: FunctionPickle, lane: str, options: Options, outer: object
    ) -> None:
        self.job = job
        self.function = function
        self.lane = lane
        self.options = options
        self._opts = options.encode()
        self.outer = outer
        self.pace = Pace()
        self.open: dict[int, Call] = {}
        self.n = 0
        self.output = ItemOutput()
        self.failed: list[int] = []
        self.cancelled: list[int] = []

    def has_ended(self, index: int) -> bool:
        """Return whether a call is over."""
        return index not in self.open

    def counts(self, first: int) -> Counter[State]:
        """Return how many calls are in each state, of those from number `first` on."""
        n = self.n
        left = {i: call for i, call in self.open.copy().items() if first <= i < n}
        found = Counter(call.state(0) for call in left.values())
        for state, ended in ((State.FAILED, self.failed), (State.CANCELLED, self.cancelled)):
            found[state] = sum(i >= first and i not in left for i in ended)
        found[State.DONE] = n - first - len(left) - found[State.FAILED] - found[State.CANCELLED]
        return found

    def show(self, event: Event) -> None:
        """Show what a call printed."""
        call = self.open.get(event.n)
        show = print_output if call is None else call.show
        show(self.function.name, event)

    def submission(
        self, calls: Sequence[Call], encode_task: Callable[[Task], Fields]
    ) -> Submission:
        """Return the message that makes some of the calls, which are successive."""
        n, payload, first = len(calls), calls[0].args, calls[0].index
        n_bytes = len(payload) + MESSAGE_BYTES
        if n > 1:
            payload = pickle.dumps([call.args for call in calls], 5)
            n_bytes = sum(call.size_bytes for call in calls)
        task = Task(
            job=self.job,
            n=first,
            span=ONE if n == 1 else (range(n),),
            fn=self.function.digest,
            name=self.function.name,
            call="apply" if n == 1 else "calls",
            args=payload,
            opts=self._opts,
        )
        message = self.lane, self.options.delay, encode_task(task), ""
        return Submission(message, n_bytes, self, range(first, first + n))

    def apply(self, event: Event) -> None:
        """Take note of what happened."""
        if event.kind != "finished":
            self._note(event)
            return
        values, errors = load_outcomes(event.body)
        n, first = len(values), event.n + event.span[0].start
        if event.seconds:  # not of a cached result
            self.pace.took(event.seconds, n)
        if n > 1:
            self._finish_some(event, values, errors)
        elif call := self.open.get(first):
            call.finish(values[0], errors[0] if errors else None, event)
            self.open.pop(first, None)
        event.body = b""  # the calls keep the event

    def _finish_some(
        self, event: Event, values: list[Any], errors: dict[int, BaseException]
    ) -> None:
        numbers = [event.n + item for item in items(event.span)]
        # The callback of one may wait for the result of another.
        held = hold_callbacks([call for i in numbers if (call := self.open.get(i))])
        try:
            for k, number in enumerate(numbers):
                if call := self.open.get(number):
                    call.finish(values[k], errors.get(k), event)
                    self.open.pop(number, None)
        finally:
            let_go(held)

    def _note(self, event: Event) -> None:
        """Take note of anything but an end by the worker."""
        if event.kind == "output":
            self.output.add_text(event)
        elif event.kind == "progress":
            self.output.add_progress(event)
        elif event.kind == "cancelled":
            self.mark_cancelled([event.n + item for item in items(event.span)])
        else:
            for item in items(event.span):
                if call := self.open.get(event.n + item):
                    call.news = event

    def mark_cancelled(self, chosen: Iterable[int]) -> ItemRanges:
        """Mark calls as cancelled; return those that were not over yet."""
        newly = []
        for index in chosen:
            if (call := self.open.get(index)) and call.mark_cancelled([0]):
                newly.append(index)
            self.open.pop(index, None)
        self.cancelled += newly
        return ranges_of(newly)

    def cancelled_items(self) -> ItemRanges:
        """Return all cancelled calls."""
        return ranges_of(sorted(self.cancelled))

    def fail(self, error: BaseException, chosen: Iterable[int]) -> None:
        """Fail calls that are not over."""
        for index in chosen:
            if call := self.open.get(index):
                call.fail(error)
                self.open.pop(index, None)

    def give_up(self, event: Event, error: BaseException) -> None:
        """Fail with `error` what an event has ended that can't be taken in."""
        if event.kind in ("finished", "cancelled"):
            self.fail(error, [event.n + item for item in items(event.span)])


def gather(queue: deque[Any]) -> list[Call]:
    """Return the calls for the next message: the first of `queue`, which keeps them."""
    calls: list[Call] = [queue[0]]
    group = calls[0].group
    most, n_bytes = min(group.pace.most(), (len(queue) - 1) // SHARE), len(calls[0].args)
    while len(calls) < most:
        call = queue[len(calls)]
        # Successive ones only: another thread may have submitted in between.
        if not isinstance(call, Call) or call.group is not group:
            break
        n_bytes += len(call.args)
        if call.index != calls[-1].index + 1 or n_bytes > MOST_BYTES:
            break
        calls.append(call)
    return calls
