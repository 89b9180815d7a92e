"""What the clients of the soak ask for, and how they know that it was right.

`make` is the program of a client that makes a named job, and may be killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nbstreamq import MemoryLimitExceeded, ServerRefused, TaskQueue, WorkerLost
from nbstreamq.errors import JobNotFound, NbstreamqError, ServerUnreachable
from nbstreamq.objects.results import load_outcomes
from nbstreamq.wire.addresses import open_client
from nbstreamq.wire.item_ranges import items
from nbstreamq.wire.messages import State
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from tests.counting import n_ends
from tests.crash.conftest import Process

#: Seconds after which a job hangs: more than all faults together can hold one up.
HANGS = 90
QUEUE = "soak"
MIB = 2**20
#: What faults may do to a call: three killed its worker, or the server had no room for it.
EXCUSED = (WorkerLost, ServerRefused)


def work(i: int, pause: float, tries: str) -> int:
    """Take some time; fail where the item says so: the first time, or always."""
    time.sleep(pause)
    if always_fails(i):
        raise ValueError(f"item {i}")
    if i % 53 == 7:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f"{tries}-{i}", os.O_CREAT | os.O_EXCL))
            raise KeyError("the first time")
    return 3 * i


def always_fails(i: int) -> bool:
    return i % 97 == 13


def blow_up() -> None:
    taken = []
    while True:
        taken.append(b"x" * (20 * MIB))
        time.sleep(0.005)


def soak_store(url: str) -> Store:
    return Store(open_client(url), QUEUE, Signer("secret", QUEUE))


class Load(threading.Thread):
    """A client that asks for one thing after another; it stops at the first that is wrong."""

    def __init__(self, url: str, seed: int, folder: Path) -> None:
        super().__init__(name=f"{type(self).__name__.lower()}-{seed}", daemon=True)
        self.url = url
        self.queue = TaskQueue(QUEUE, url, workers=0)
        self.luck = random.Random(seed)
        self.folder = folder / self.name
        self.end = threading.Event()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.end.is_set() and not self.wrong:
            number += 1
            try:
                self.one(number)
            except Exception as error:
                self.wrong.append(f"{self.name}, job {number}: {error!r}")

    def one(self, number: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.queue.shutdown(wait=False, cancel_futures=True)


class Calls(Load):
    """Maps, single calls, and calls that eat memory, of a client that lives."""

    def one(self, number: int) -> None:
        n, pause = self.luck.randint(1, 400), self.luck.choice([0, 0, 0.002, 0.01])
        queue = self.queue.options(retries=1, backoff=self.luck.choice([0, 0.05]))
        tries = f"{self.folder}-{number}"
        size = self.luck.choice(["auto", 1, 7, 100])
        job = queue.map(work, range(n), [pause] * n, [tries] * n, chunksize=size)
        singles = [queue.submit(work, i, 0.0, tries) for i in range(14, 14 + number % 20)]
        hogs = [queue.options(memory_limit=200 * MIB).submit(blow_up)] if number % 20 == 10 else []
        try:
            job.wait(HANGS)
        except TimeoutError:
            missing = [i for i in range(n) if not job[i].done()]
            self.wrong.append(f"{self.name}, {job}: no end of {missing[:20]}")
            return
        for i, future in [*enumerate(job[:]), *enumerate(singles, 14)]:
            self._check(i, future)
        for hog in hogs:
            error = hog.exception(HANGS)
            if not isinstance(error, (MemoryLimitExceeded, *EXCUSED)):
                self.wrong.append(f"{hog}: {error!r} is no MemoryLimitExceeded")
            self.counts[type(error).__name__] += 1
        twice = [i for i, times in n_ends(job).items() if times > 1]
        if twice:
            self.wrong.append(f"{self.name}, {job}: twice {twice[:20]}")
        self.counts["calls"] += n + len(singles) + len(hogs)

    def _check(self, i: int, future: Any) -> None:
        error = future.exception(HANGS)
        if isinstance(error, EXCUSED):
            self.counts[type(error).__name__] += 1
            time.sleep(0.001)  # else a full server would get only calls that it refuses
        elif always_fails(i):
            if not isinstance(error, ValueError):
                self.wrong.append(f"{future}: {error!r} is no ValueError")
        elif error is not None or future.result(0) != 3 * i:
            self.wrong.append(f"{future}: {error!r}")


class Plan(NamedTuple):
    """The inputs of a named job."""

    n: int
    pause: float
    tries: str

    def inputs(self) -> tuple[list[Any], ...]:
        return list(range(self.n)), [self.pause] * self.n, [self.tries] * self.n


class NamedJobs(Load):
    """Named jobs: others make them, and may die; this client attaches, and runs them again."""

    def __init__(self, url: str, seed: int, folder: Path) -> None:
        super().__init__(url, seed, folder)
        self.plans: dict[str, Plan] = {}
        self.other = TaskQueue(QUEUE, url, workers=0)

    def one(self, number: int) -> None:
        name = f"{self.name}-{number}"
        n, pause = self.luck.randint(1, 200), self.luck.choice([0.0, 0.002, 0.02])
        plan = self.plans[name] = Plan(n, pause, f"{self.folder}-{number}")
        n_workers = self.luck.choice([0, 0, 1])
        words = (self.url, name, *map(str, plan), str(n_workers))
        # Imported, as here: of a function of `__main__`, what it calls would go by value.
        program = "import sys; from tests.soak_load import make; make(*sys.argv[1:])"
        maker = Process("-c", program, *words)
        try:
            self._watch(name, self.luck.uniform(0.5, 3.0))
        finally:
            maker.kill()  # it may have ended
            maker.close()
        self._complete(name, plan)
        if self.luck.random() < 0.2:
            _insist(lambda: _delete(self.queue, name))
            del self.plans[name]
            self.counts["named jobs deleted"] += 1
        self.counts["named jobs"] += 1

    def _watch(self, name: str, seconds: float) -> None:
        """Look at the job from elsewhere while it is being made, and perhaps cancel it."""
        end = time.monotonic() + seconds
        cancels = self.luck.random() < 0.2
        while (left := end - time.monotonic()) > 0:
            try:
                job = self.other.attach(name)
                if cancels and len(job) > 3:
                    job.cancel()
                    self.counts["named jobs cancelled"] += 1
                    break
                with contextlib.suppress(TimeoutError):
                    job.wait(min(left, 0.3))
            except (JobNotFound, ServerRefused, ServerUnreachable):
                time.sleep(0.05)
        time.sleep(max(0.0, end - time.monotonic()))

    def _complete(self, name: str, plan: Plan) -> None:
        """Make the same call again, until all is there; as who restarted the kernel would."""
        end = time.monotonic() + HANGS
        queue = self.queue.options(retries=1)
        while True:
            try:
                job = queue.map(work, *plan.inputs(), name=name, chunksize=7)
                job.wait(HANGS)
            except TimeoutError:
                missing = [i for i in range(len(job)) if not job[i].done()]
                kept = _insist(lambda: queue._session.ask(lambda s: s.job_record(job.id)))
                known = queue._session.ledger(job.id) is job._table
                text = f"no end of {missing[:20]}: {job}; {queue.status()}; {kept}; {known}"
                raise TimeoutError(text) from None
            except NbstreamqError as error:
                if time.monotonic() > end or not _is_passing(error):
                    raise
                self.counts["same call again"] += 1
                time.sleep(0.1)
                continue
            self.counts["named calls"] += len(job)
            excused = [e for e in job.errors.values() if isinstance(e, EXCUSED) or _is_passing(e)]
            for error in excused:
                self.counts[type(error).__name__] += 1
            if not excused:
                self._check(job, plan)
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{job}: {excused[0]!r}")

    def check_all(self) -> None:
        """Look, as a stranger would, whether each job is complete, and each result there once."""
        with TaskQueue(QUEUE, self.url, workers=0) as queue:
            statuses = {status.name: status for status in queue.jobs()}
            for name, plan in self.plans.items():
                self._check(queue.attach(name), plan)
                status = statuses[name]
                n_failed = sum(map(always_fails, range(plan.n)))
                counts = (status.done, status.failed, status.cancelled, status.submitted)
                if counts != (plan.n - n_failed, n_failed, 0, plan.n) or not status.complete:
                    self.wrong.append(f"{name} of {plan.n} items: the server counts {status}")

    def _check(self, job: Any, plan: Plan) -> None:
        if len(job) != plan.n or not job.done():
            self.wrong.append(f"{job}: it should have {plan.n} items")
        for i in range(len(job)):
            state = job._table.state(i)
            if always_fails(i):
                right = state is State.FAILED and isinstance(job._table.error(i), ValueError)
            else:
                right = state is State.DONE and job._table.value(i) == 3 * i
            if not right:
                self.wrong.append(f"{job.name}[{i}]: {state}, {job._table.error(i)!r}")
        once = Counter(i for i in range(plan.n) if not always_fails(i))
        if (found := n_results(self.queue, job.id)) != once:
            self.wrong.append(f"{job.name}: {found - once} twice, {once - found} missing")

    def close(self) -> None:
        super().close()
        self.other.shutdown(wait=False)


def _is_passing(error: BaseException) -> bool:
    """Return whether an error of a named job says that the same call helps."""
    texts = ("was refused", "has come to drop it", "has failed here")
    kinds = (ServerRefused, ServerUnreachable)
    return isinstance(error, kinds) or any(text in str(error) for text in texts)


def _insist(step: Callable[[], Any]) -> Any:
    """Do `step` again and again while the server is away, or full."""
    end = time.monotonic() + HANGS
    while True:
        try:
            return step()
        except (ServerUnreachable, ServerRefused):
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def _delete(queue: TaskQueue, name: str) -> None:
    with contextlib.suppress(JobNotFound):  # it was deleted, and the rest refused
        queue.attach(name).delete()


def n_results(queue: TaskQueue, job: str) -> Counter[int]:
    """Return item -> how often the server got a result of it."""
    found: Counter[int] = Counter()

    def history(after: bytes) -> Any:
        return _insist(lambda: queue._session.ask(lambda store: store.history(job, after)))

    last, events = history(b"0")
    while events:
        for event in events:
            if event.kind == "finished":
                errors = load_outcomes(event.body)[1]
                ended = enumerate(items(event.span))
                found.update(event.n + item for k, item in ended if k not in errors)
        last, events = history(last)
    return found


def slowly(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        time.sleep(0.005)
        yield value


def make(url: str, name: str, n: str, pause: str, tries: str, n_workers: str) -> None:
    """Make a named job whose inputs come slowly, and some calls that nobody will have."""
    plan = Plan(int(n), float(pause), tries)
    queue = TaskQueue(QUEUE, url, workers=int(n_workers)).options(retries=1)
    first, *others = plan.inputs()
    queue.map(work, *plan.inputs(), chunksize=7)
    queue.map(work, slowly(first), *others, name=name, chunksize=7).wait(HANGS)
