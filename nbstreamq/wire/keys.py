"""Names and lifetimes of everything a queue keeps on the server.

All keys of a queue share one hash tag, so that every script may touch any of them on a cluster.
All keys expire. What the queue itself needs lives for 30 days after its last client or worker, and
longer if a named job is kept for ever.

========================  =================  ========  ========================================
key                       type               lifetime  holds
========================  =================  ========  ========================================
``lane:<lane>``           stream, one group  30 days   tasks waiting or in flight; a home's in
                                                       ``<lane>@<home>``, once others met them;
                                                       ``<lane>@longcall311``: those that
                                                       take longer than some workers live
``lane:@<worker>``        stream, one group  7 days    what one worker must do: `everywhere`
``delayed:<lane>``        sorted set         30 days   tasks not due yet, scored by due time (ms)
``backlog:<lane>:<job>``  list               30 days   chunks of a map behind those in the lane
``placed:<lane>:<job>``   hash               30 days   ids of its chunks that are in the lane
``backlogs:<lane>``       hash               30 days   jobs that have a backlog there
``lanes``                 hash               30 days   rare lanes that were submitted to, and lanes
                                                       of homes that hold anything
``meta``                  hash               30 days   fingerprints of the secret and earlier ones
``setup``                 stream             30 days   1000 calls of `everywhere` for late joiners
``fn:<digest>``           string             7 days    a pickled function
``value:<digest>``        string             7 days    a large value
``results:<session>``     hash               7 days    large results that a client has not read yet
``events:<session>``      stream             7 days    what comes back to one client
``events:<job>``          stream             7 days    the same for a named job, for all clients
``jobs``                  hash               30 days   name -> id of the named job
``job:<job>``             hash               7 days    what a named job is, its chunks and counts
``inputs:<job>``          hash               7 days    its chunks: first item -> pickled items
``settled:<job>``         hash               7 days    digests of its messages that were settled
``checkpoints:<job>``     hash               7 days    states that its tasks have stored
``session:<session>``     string             7 days    number of the last batch a client submitted
``cancelled``             hash               7 days    job -> items that must not run; # -> changes
``control``               stream             7 days    cancellations, and wake-ups: due tasks, lanes
``nodes``                 sorted set         7 days    supervisors, scored by last heartbeat (ms)
``workers``               hash               7 days    worker -> JSON description
``troubles``              hash               7 days    supervisor -> why its workers do not live
``environment:<digest>``  string             7 days    what the Python of some workers has installed
``limits``                hash               30 days   names of the limits, see `TaskQueue.limit`
``limit:<limit>``         hash               30 days   what it allows, and when the next may start
``leases:<limit>``        hash               7 days    leases that workers have: the worker, a
                                                       number, and its list ``granted:``
``waiting:<limit>``       sorted set         7 days    leases that workers wait for, in order
``granted:<worker>``      list               7 days    what has become of the leases it waits for
``dead``                  stream             7 days    what was refused, or failed for good
``letters:<session>``     list               7 days    ids of its newest entries in ``dead``
``letters:<job>``         list               7 days    those of a named job
``refused``               hash               7 days    kind of message -> how many were refused
========================  =================  ========  ========================================
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from ..arguments import check_queue_name
from ..home import PYTHON, TAG_LENGTH, python_tag

#: Start of every key; the digit is the version of the schema.
PREFIX = "nbq2"
#: What keys of earlier versions begin with; nothing of them can be read.
OLD_PREFIX = "nbq1"
#: The one consumer group of every lane.
GROUP = "workers"
#: How deep tasks may nest, each depth in a lane of its own; deeper tasks share the last.
#: More lanes cost every worker a look at each.
MAX_DEPTH = 8
#: Lanes of tasks that were submitted from inside a task, the deepest first.
NESTED = tuple(f"nested{depth}" for depth in range(MAX_DEPTH, 0, -1))
#: What a worker serves unless told otherwise, most urgent first.
LANES = ("high", *NESTED, "default", "low")
#: Those that idle workers do not wait on until somebody has submitted to them: with each more that
#: they wait on, each message costs the server more.
RARE = tuple(lane for lane in LANES if lane != "default")
#: In place of a home: calls that the worker which took them could not finish in its lifetime. All
#: workers that live longer serve such lanes.
LONG_CALLS = f"longcall{python_tag(PYTHON)}"
#: What follows the first part of a tag; and a whole tag.
_PYTHON = re.compile(r"3\d\d")
_TAG = re.compile(rf"[0-9a-z]{{{TAG_LENGTH}}}{_PYTHON.pattern}")
#: Lifetimes in seconds; renewed on use. Longer keeps more that nobody reads.
DAY = 86_400
WEEK = 7 * DAY
MONTH = 30 * DAY


class Keys:
    """The keys of one queue.

    Examples
    --------
    >>> Keys("sims").lane("default")
    'nbq2:{sims}:lane:default'
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue = check_queue_name("queue name", queue)
        start = f"{PREFIX}:{{{queue}}}:"
        self.lanes = start + "lanes"
        self.meta = start + "meta"
        self.setup = start + "setup"
        self.cancelled = start + "cancelled"
        self.control = start + "control"
        self.nodes = start + "nodes"
        self.workers = start + "workers"
        self.troubles = start + "troubles"
        self.dead = start + "dead"
        self.refused = start + "refused"
        self.jobs = start + "jobs"
        self.limits = start + "limits"
        # A call makes several of these: bound methods of text cost no Python function.
        self.lane: Callable[[str], str] = (start + "lane:").__add__
        self.own_lane: Callable[[str], str] = (start + "lane:@").__add__
        self.delayed: Callable[[str], str] = (start + "delayed:").__add__
        self.function: Callable[[str], str] = (start + "fn:").__add__
        self.value: Callable[[str], str] = (start + "value:").__add__
        self.results: Callable[[str], str] = (start + "results:").__add__
        self.events: Callable[[str], str] = (start + "events:").__add__
        self.session: Callable[[str], str] = (start + "session:").__add__
        self.job: Callable[[str], str] = (start + "job:").__add__
        self.inputs: Callable[[str], str] = (start + "inputs:").__add__
        self.settled: Callable[[str], str] = (start + "settled:").__add__
        self.checkpoints: Callable[[str], str] = (start + "checkpoints:").__add__
        self.backlog: Callable[[str], str] = (start + "backlog:").__add__
        self.placed: Callable[[str], str] = (start + "placed:").__add__
        self.backlogs: Callable[[str], str] = (start + "backlogs:").__add__
        self.environment: Callable[[str], str] = (start + "environment:").__add__
        self.letters: Callable[[str], str] = (start + "letters:").__add__
        self.limit: Callable[[str], str] = (start + "limit:").__add__
        self.leases: Callable[[str], str] = (start + "leases:").__add__
        self.waiting: Callable[[str], str] = (start + "waiting:").__add__
        self.granted: Callable[[str], str] = (start + "granted:").__add__


def old_meta(queue: str) -> str:
    """Return the key that a queue had under `OLD_PREFIX`."""
    return f"{OLD_PREFIX}:{{{queue}}}:meta"


def tail_of(key: str) -> str:
    """Return `key` without what all keys of its queue begin with."""
    return key.partition("}:")[2]


@functools.lru_cache(maxsize=1024)  # most calls are about the same few jobs
def session_of(job: str) -> str:
    """Return where the events of `job` go: its session, or itself if it is a named one.

    A job's id is ``<session>.<number>``, or ``<name>:<what tells it from others of the name>``.
    """
    return job.partition(".")[0]


@functools.lru_cache(maxsize=1024)
def is_named(job: str) -> bool:
    """Tell whether `job` is the id of a named job."""
    return ":" in job


@functools.lru_cache(maxsize=1024)
def home_of(job: str) -> str:
    """Return the tag of the home of `job`: which workers may run its tasks; see `Home`.

    A session's id begins with the tag of its kernel. A named job's is ``<name>:<tag><random>``,
    that of what a task submits ``<session>.<number>@<tag>``.
    """
    found = job.rpartition(":")[2].rpartition("@")[2]
    return found[: TAG_LENGTH + len(_python_of(found))]


def _python_of(tag: str) -> str:
    """Return the minor version of Python that follows a tag's first part; empty if none does."""
    found = _PYTHON.match(tag, TAG_LENGTH)
    return found[0] if found else ""


@functools.lru_cache(maxsize=1024)  # it is asked for each message
def may_run(homes: tuple[str, ...], home: str, python: str = PYTHON) -> bool:
    """Tell whether workers run tasks of `home`.

    Parameters
    ----------
    homes
        The homes that they serve; empty: all that have their Python.
    python
        The minor version of their Python.
    """
    return home in homes if homes else _python_of(home) in ("", python_tag(python))


def lane_of(worker: str) -> str:
    """Return the lane that only one worker reads, for what every worker runs."""
    return f"@{worker}"


def home_lane(lane: str, home: str) -> str:
    """Return where tasks of `lane` wait that only workers of a home may run."""
    return f"{base_lane(lane)}@{home}"


def base_lane(lane: str) -> str:
    """Return the lane that `lane` is a home's part of, or `lane` itself."""
    return lane.partition("@")[0] or lane


def is_home_lane(lane: str) -> bool:
    """Tell whether `lane` is one that `home_lane` may return."""
    base, _, home = lane.partition("@")
    return bool(base) and _TAG.fullmatch(home) is not None


def owner_key(keys: Keys, owner: str) -> str:
    """Return the key that is there as long as `owner` is, a session or a named job."""
    return keys.job(owner) if is_named(owner) else keys.session(owner)


def chunk_keys(keys: Keys, job: str, lane: str) -> tuple[str, str, str, str]:
    """Return where chunks of a job wait: its lane, its backlog, and what is known of both."""
    base = base_lane(lane)  # what is in a lane of a home came from there
    there = f"{base}:{job}"  # A named job may go on in another lane.
    return keys.lane(base), keys.backlog(there), keys.placed(there), keys.backlogs(base)


def keys_of_job(keys: Keys, job: str) -> tuple[str, ...]:
    """Return all keys of a named job."""
    known = [keys.job(job), keys.inputs(job), keys.events(job), keys.settled(job)]
    known.append(keys.checkpoints(job))
    # Workers drop what waits in lanes of people's own.
    return *known, *(key for lane in LANES for key in chunk_keys(keys, job, lane)[1:3])


def limit_keys(keys: Keys, name: str) -> tuple[str, str, str, str]:
    """Return where a limit is: what it allows, its leases, what waits for them; and the workers."""
    return keys.limit(name), keys.leases(name), keys.waiting(name), keys.workers


def nested_lane(depth: int) -> str:
    """Return the lane of what a task of `depth` submits."""
    return f"nested{min(depth + 1, MAX_DEPTH)}"


@functools.lru_cache(maxsize=1000)
def depth_of(lane: str) -> int:
    """Return how deep the tasks of a lane are nested; 0 for those that a notebook submitted."""
    base = base_lane(lane)
    return int(base.removeprefix("nested")) if base in NESTED else 0


def deeper_lanes(depth: int) -> tuple[str, ...]:
    """Return the lanes that a worker may serve while a task of `depth` waits in it.

    Only deeper tasks: so the stack of waiting tasks never grows higher than tasks nest, and
    whatever a task waits for is in one of these lanes or in another worker's hands, where the same
    holds.
    """
    return NESTED[: MAX_DEPTH - min(depth, MAX_DEPTH - 1)]
