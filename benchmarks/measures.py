"""The measures. Slow peers get less work, so that each measure takes about `SHARE` seconds."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .calls import describe, identity, increment, spin
from .peer import N_WORKERS, Peer

__all__ = ["MEASURES", "Measure", "Value", "pace_of"]

#: Approximate seconds for one measure.
SHARE = 0.3
N_SUBMITS = 10_000
N_ITEMS = 200_000
N_DESCRIBED = 50_000
N_SHORT = 1000
N_SKEWED = 500
N_SHARING = 64
N_WAITING = 100_000
#: Number of small arrays sent together, so that each worker gets one.
N_WARMING = 20
#: 100 MB of float64.
N_NUMBERS = 12_500_000
#: Approximate seconds for a map. Many tools are fast only with many items.
MAPPING = 1.0
#: Seconds for submitting the calls that wait.
SUBMITTING = 1.5
#: Calls that can run at the same time.
N_AT_ONCE = min(N_WORKERS, os.cpu_count() or 1)


@dataclass(frozen=True)
class Value:
    """The value of a measure, its number of calls, and whether it was multiplied."""

    value: float
    n: int
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table; `take` gets a peer and its calls a second, None: it has no such thing.

    Attributes
    ----------
    once
        Whether one round is enough, because it does not vary.
    """

    title: str
    unit: str
    more_is_better: bool
    take: Callable[[Peer, float], Value | None]
    once: bool = False


def pace_of(peer: Peer) -> float:
    """Warm a peer up; return about how many calls it runs in a second."""
    peer.spread(identity, range(100))
    pace = 0.0
    for n in (20, 200):
        begun = time.perf_counter()
        peer.gather(peer.submit(identity, range(n)))
        pace = n / (time.perf_counter() - begun)
    return pace


def latency(peer: Peer, pace: float) -> Value:
    """Return the median microseconds from a submit to its result, one at a time."""
    seconds: list[float] = []
    end = time.perf_counter() + SHARE
    while (time.perf_counter() < end or len(seconds) < 10) and len(seconds) < 500:
        begun = time.perf_counter()
        peer.gather(peer.submit(identity, [len(seconds)]))
        seconds.append(time.perf_counter() - begun)
    return Value(statistics.median(seconds) * 1e6, len(seconds))


def submits(peer: Peer, pace: float) -> Value:
    """Return calls a second, each submitted by a call of its own."""
    n = _within(pace, 50, N_SUBMITS)
    begun = time.perf_counter()
    results = peer.gather(peer.submit(identity, range(n)))
    seconds = time.perf_counter() - begun
    _check(results, range(n))
    return Value(n / seconds, n)


def mapped(peer: Peer, pace: float) -> Value | None:
    """Return items a second of a map over trivial calls."""
    return _mapped(peer, identity, N_ITEMS)


def described(peer: Peer, pace: float) -> Value | None:
    """Return the same for calls that return a dict with a list in it."""
    return _mapped(peer, describe, N_DESCRIBED)


def _mapped(peer: Peer, call: Callable[[Any], Any], most: int) -> Value | None:
    if not peer.has_map:
        return None
    n = 2000
    begun = time.perf_counter()
    peer.map(call, range(n))
    n = _within(n / (time.perf_counter() - begun), n, most, MAPPING)
    begun = time.perf_counter()
    results = peer.map(call, range(n))
    seconds = time.perf_counter() - begun
    _check(results, [call(i) for i in range(n)])
    return Value(n / seconds, n)


def short(peer: Peer, pace: float) -> Value:
    """Return the share of the ideal speed for calls of 1 ms; the tool gets no hints."""
    return _share_of_ideal(peer, [0.001] * _fewer(pace, N_SHORT))


def one_long(peer: Peer, pace: float) -> Value:
    """Return the same for one call of 1 s among many of 2 ms, not the first one."""
    durations = [0.002] * N_SKEWED  # for all the same: with fewer it would be easier
    durations.insert(N_SKEWED // 10, 1.0)
    return _share_of_ideal(peer, durations)


def rising(peer: Peer, pace: float) -> Value:
    """Return the same for calls of 0 to 2 ms, the longest last."""
    n = _fewer(pace, N_SKEWED)
    return _share_of_ideal(peer, [0.002 * i / n for i in range(n)])


def falling(peer: Peer, pace: float) -> Value:
    """Return the same with the longest first."""
    n = _fewer(pace, N_SKEWED)
    return _share_of_ideal(peer, [0.002 * (n - i) / n for i in range(n)])


def array(peer: Peer, pace: float) -> Value:
    """Return milliseconds for 100 MB to a worker and others of 100 MB back, the median of three.

    Of a peer that takes long for 10 MB that is multiplied.
    """
    _import_numpy(peer)
    seconds = _there_and_back(peer, N_NUMBERS // 10)
    if seconds > SHARE / 2:
        return Value(seconds * 1e4, 1, scaled=True)
    found = [_there_and_back(peer, N_NUMBERS) for _ in range(3)]
    return Value(statistics.median(found) * 1e3, 3)


def _import_numpy(peer: Peer) -> None:
    """Make each worker import NumPy, which takes as long as 100 MB with the faster tools."""
    import numpy as np

    peer.gather(peer.submit(increment, [np.zeros(1)] * N_WARMING))


def _there_and_back(peer: Peer, n: int) -> float:
    import numpy as np

    numbers = np.arange(n, dtype="float64")
    begun = time.perf_counter()
    (back,) = peer.gather(peer.submit(increment, [numbers]))
    seconds = time.perf_counter() - begun
    if not (back[0] == 1 and back[-1] == n):
        raise ValueError("wrong result")
    return seconds


def shared(peer: Peer, pace: float) -> Value:
    """Return milliseconds for 64 calls that use the same 100 MB.

    Where each call brings them along, two calls are measured with 10 MB, and multiplied.
    """
    import numpy as np

    _import_numpy(peer)
    n, part = (2, 10) if peer.sends_each else (N_SHARING, 1)
    scale = part * N_SHARING // n
    numbers = np.arange(N_NUMBERS // part, dtype="float64")
    begun = time.perf_counter()
    results = peer.share(numbers, n)
    seconds = time.perf_counter() - begun
    _check(results, range(n))
    return Value(seconds * 1e3 * scale, n, scaled=scale > 1)


def memory(peer: Peer, pace: float) -> Value | None:
    """Return MB for 100,000 calls that wait, in all processes together."""
    try:
        peer.hold()
    except NotImplementedError:
        return None
    time.sleep(0.2)  # what was being taken is taken
    before = _used_bytes()
    handles: list[Any] = []
    end = time.perf_counter() + SUBMITTING
    while len(handles) < N_WAITING and time.perf_counter() < end:
        handles += peer.submit(identity, range(len(handles), len(handles) + 100))
    time.sleep(0.5)  # what is sent by another thread is sent
    return Value(
        (_used_bytes() - before) / len(handles) * N_WAITING / 1e6,
        len(handles),
        scaled=len(handles) < N_WAITING,
    )


def _used_bytes() -> int:
    """Return the memory of all processes of this session; shared pages count once."""
    from .processes import ours

    return sum(process.memory_full_info().pss for process in ours())


def _within(pace: float, least: int, most: int, seconds: float = SHARE) -> int:
    return max(least, min(most, int(pace * seconds)))


def _fewer(pace: float, n: int) -> int:
    return n if pace > n else max(50, int(pace * SHARE))


def _share_of_ideal(peer: Peer, durations: list[float]) -> Value:
    ideal = max(*durations, sum(durations) / N_AT_ONCE)
    begun = time.perf_counter()
    results = peer.spread(spin, durations)
    seconds = time.perf_counter() - begun
    _check(results, durations)
    return Value(ideal / seconds, len(durations))


def _check(results: list[Any], expected: Sequence[Any]) -> None:
    if results != list(expected):
        raise ValueError("wrong results")


#: The heaviest last, so that what it leaves behind does not slow down the others.
MEASURES = {
    "latency": Measure(title="latency of one call", unit="µs", more_is_better=False, take=latency),
    "submits": Measure(title="single submits", unit="calls/s", more_is_better=True, take=submits),
    "map": Measure(
        title="map of 200,000 trivial items", unit="items/s", more_is_better=True, take=mapped
    ),
    "described": Measure(
        title="map of 50,000 items to small dicts",
        unit="items/s",
        more_is_better=True,
        take=described,
    ),
    "short": Measure(title="1,000 calls of 1 ms", unit="of ideal", more_is_better=True, take=short),
    "one_long": Measure(
        title="1 call of 1 s among 500 of 2 ms", unit="of ideal", more_is_better=True, take=one_long
    ),
    "rising": Measure(
        title="500 calls of 0 to 2 ms", unit="of ideal", more_is_better=True, take=rising
    ),
    "falling": Measure(
        title="500 calls of 2 to 0 ms", unit="of ideal", more_is_better=True, take=falling
    ),
    "array": Measure(
        title="100 MB array there and back", unit="ms", more_is_better=False, take=array
    ),
    "shared": Measure(
        title="64 calls that use one 100 MB array", unit="ms", more_is_better=False, take=shared
    ),
    "memory": Measure(
        title="100,000 waiting calls", unit="MB", more_is_better=False, take=memory, once=True
    ),
}
