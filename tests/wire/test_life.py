"""The life of tasks, whoever dies at whatever step: each item has exactly one end.

A model after the section "The life of a task" in docs/architecture.md. The workers are stores of
this process: they take, slice, retry and die as the real ones do, in any order.

Named jobs take part: they grow, are run again, and are deleted, at any moment.

How a step goes on is drawn by a `Random` of its own: what the server holds depends a little on the
clock, and what hypothesis draws must not.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from nbstreamq.client.table import JobTable
from nbstreamq.errors import DeathCertificate
from nbstreamq.objects.remote_errors import dump_error
from nbstreamq.objects.results import dump_outcomes
from nbstreamq.wire.item_ranges import items, ranges_of, size, split
from nbstreamq.wire.keys import PREFIX
from nbstreamq.wire.messages import Event, Options, State, Task
from nbstreamq.wire.records import Chunk
from nbstreamq.wire.settlement import Delivery, Requeue, Settlement
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import Store
from nbstreamq.worker.crash import CrashReport, settle_crash
from nbstreamq.worker.slot import RunningTask
from tests.wire.reading import read_events

SESSION, LANES = "s", ("high", "default")
WORKERS = ("w0", "w1", "w2")
#: Retries that the tasks here have.
RETRIES = 2

_numbers = itertools.count(1)
workers = st.sampled_from(WORKERS)
lucks = st.builds(random.Random, st.integers(0, 2**16))


class Life(RuleBasedStateMachine):
    """One queue, three workers, one client, and a supervisor that reaps."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        name = f"life-{next(_numbers)}"
        self.client = client
        self.store = Store(client, name, Signer("secret", name))
        self.batch = self.n_jobs = 0
        self.sent: list[tuple[str, float, Any, str]] = []
        self.items: Counter[tuple[str, int]] = Counter()
        self.spans: dict[str, int] = {}
        self.cancelled: dict[str, set[int]] = {}
        #: Named job -> its lane; and those that were deleted.
        self.named: dict[str, str] = {}
        self.deleted: list[str] = []
        #: What each worker, as named now, has in its hands.
        self.held: dict[str, list[Delivery]] = {}
        self.names = {worker: worker for worker in WORKERS}
        self.dead: list[str] = []
        #: What the dead, or those who were thought so, may still send.
        self.late: list[Settlement] = []

    @initialize()
    def begin(self) -> None:
        self.store.ensure_lanes(LANES)
        for worker in WORKERS:
            self.store.join(worker, {"lanes": list(LANES)})
            self.held[worker] = []

    # -- the client ----------------------------------------------------------------------------

    @rule(
        n=st.integers(1, 12),
        n_together=st.sampled_from([1, 2, 12]),
        lane=st.sampled_from(LANES),
        delay=st.sampled_from([0.0, 0.001]),
    )
    def submit(self, n: int, n_together: int, lane: str, delay: float) -> None:
        self.n_jobs += 1
        job = f"{SESSION}.{self.n_jobs}"
        self.batch += 1
        cuts = [range(i, min(i + n_together, n)) for i in range(0, n, n_together)]
        tasks = [self._task(job, cut.start, range(len(cut))) for cut in cuts]
        self.sent = [(lane, delay, self.store.encode_task(task), job) for task in tasks]
        self.spans[job] = n
        self.items.update((job, i) for i in range(n))
        # The first time as it goes with one task and an unbroken connection.
        self.store.submit(SESSION, self.batch, self.sent, again=False)

    @rule(n=st.integers(1, 4), lane=st.sampled_from(LANES))
    def open_named(self, n: int, lane: str) -> None:
        self.n_jobs += 1
        job = f"j{self.n_jobs}:1"
        assert self.store.open_job(f"j{self.n_jobs}", job, {"function": "f"}, instead_of="")
        self.named[job], self.spans[job] = lane, 0
        self._append(job, n)

    @rule(n=st.integers(1, 4), luck=lucks)
    def append(self, n: int, luck: random.Random) -> None:
        if self.named:
            self._append(luck.choice(sorted(self.named)), n)

    def _append(self, job: str, n: int) -> None:
        first = self.spans[job]
        task, lane = self._task(job, first, range(n)), self.named[job]
        chunk, fields = Chunk(first, n, "digest"), self.store.encode_task(task)
        send = lambda: self.store.append_chunk(job, chunk, b"", lane=lane, delay=0.0, task=fields)
        # The second time the reply had been lost.
        assert [send(), send()] == [True, False]
        self.spans[job] += n
        self.items.update((job, first + i) for i in range(n))

    @rule(luck=lucks)
    def run_again(self, luck: random.Random) -> None:
        """What failed or was cancelled of a named job, as a client does that knows all of it."""
        if not self.named:
            return
        job = luck.choice(sorted(self.named))
        if luck.random() < 0.5:  # else cancelled items may wait for a worker that drops them
            self._work_off(luck)
        record = self.store.job_record(job)
        assert record is not None
        states = self._table(job)
        cancelled = [i for i, state in states.items() if state is State.CANCELLED]
        chosen = sorted([i for i, s in states.items() if s is State.FAILED] + cancelled)
        if not chosen:
            return
        number = record.n_reruns + 1
        tasks = [self.store.encode_task(self._task(job, i, range(1), number)) for i in chosen]
        again = functools.partial(
            self.store.rerun,
            record,
            ranges_of(chosen),
            tasks,
            lane=self.named[job],
            n_cancelled=len(cancelled),
            token=str(next(_numbers)),
        )
        answer = again()
        assert answer in ((1, -1) if cancelled else (1,))
        if answer == 1:
            assert again() == 1
            self.items.update((job, i) for i in chosen)
            if cancelled:
                self.cancelled[job] = set()

    @rule(luck=lucks)
    def delete(self, luck: random.Random) -> None:
        if self.named and luck.random() < 0.3:
            job = luck.choice(sorted(self.named))
            self.store.delete_job(job.partition(":")[0], job)
            self.deleted.append(job)
            del self.named[job], self.spans[job]
            self.items = Counter({key: n for key, n in self.items.items() if key[0] != job})

    @staticmethod
    def _task(job: str, first: int, span: range, run: int = 0) -> Task:
        return Task(
            job=job,
            n=first,
            span=(span,),
            fn="f",
            name="f",
            call="map",
            args=b"",
            opts=Options(retries=RETRIES).encode(),
            run=run,
        )

    def _table(self, job: str) -> dict[int, State]:
        """Return item -> state, as a client knows them."""
        record = self.store.job_record(job)
        assert record is not None
        table = JobTable(job, "f", abs, self.named[job])
        table.title = record.name
        table.set_chunks(record.chunks)
        for event in self._history(job):
            if table.expects(event):
                table.apply(event)
        return {i: table.state(i) for i in range(len(table))}

    def _history(self, job: str) -> list[Event]:
        found: list[Event] = []
        last, events = self.store.history(job, b"0")
        while events:
            found += events
            last, events = self.store.history(job, last)
        return found

    @rule()
    def submit_again(self) -> None:
        """The reply was lost."""
        if not self.sent:
            return
        self.store.submit(SESSION, self.batch, self.sent)

    @rule(luck=lucks)
    def cancel(self, luck: random.Random) -> None:
        if not self.spans:
            return
        job = luck.choice(sorted(self.spans))
        n = self.spans[job]
        chosen = set(luck.sample(range(n), luck.randint(1, n)))
        known = self.cancelled.setdefault(job, set())
        known |= chosen
        self.store.cancel(job, ranges_of(sorted(known)), ranges_of(sorted(chosen)))

    # -- the workers ---------------------------------------------------------------------------

    @rule(worker=workers, count=st.integers(1, 3))
    def take(self, worker: str, count: int) -> None:
        name = self.names[worker]
        self.held[name] += self.store.take([], LANES, name, count)

    @rule(worker=workers)
    def take_and_lose_the_reply(self, worker: str) -> None:
        """The connection ends; then the worker asks what it was given."""
        name = self.names[worker]
        self.store.take([], LANES, name, 2)
        known = {(d.lane, d.entry_id) for d in self.held[name]}
        found = self.store.held(LANES, name)
        self.held[name] += [d for d in found if (d.lane, d.entry_id) not in known]

    @rule(worker=workers, luck=lucks)
    def settle(self, worker: str, luck: random.Random) -> None:
        """Run the first of what it has: finish, slice, retry, fail, give back - or several."""
        name = self.names[worker]
        if not self.held[name]:
            return
        settlement = self._run(self.held[name].pop(0), luck)
        assert self.store.settle([settlement]) == [True]
        if luck.random() < 0.5:  # the reply was lost
            assert self.store.settle([settlement]) == [False]

    @rule(worker=workers, luck=lucks)
    def die(self, worker: str, luck: random.Random) -> None:
        """With all it holds, before it runs or before the commit; another takes its place."""
        name = self.names[worker]
        for delivery in self.held[name]:
            if luck.random() < 0.5:
                self.late.append(self._run(delivery, luck))
        self.dead.append(name)
        fresh = self.names[worker] = f"{worker}-{next(_numbers)}"
        self.held[fresh] = []
        self.store.join(fresh, {"lanes": list(LANES)})

    @rule(luck=lucks)
    def come_back_late(self, luck: random.Random) -> None:
        """It was cut off, not dead: whether it was reaped, the acknowledgement tells."""
        if self.late:
            self.store.settle([self.late.pop(luck.randrange(len(self.late)))])

    def _work_off(self, luck: random.Random) -> None:
        taken: list[Delivery] = []
        for name in self.names.values():
            taken += self.held[name]
            self.held[name] = []
        name = self.names["w0"]
        while taken := taken or self.store.take([], LANES, name, 100):
            assert all(self.store.settle([self._run(d, luck) for d in taken]))
            taken = []

    def _run(self, delivery: Delivery, luck: random.Random) -> Settlement:
        """Return what a worker makes of a delivery, as `Execution` does."""
        task, settlement = delivery.task, Settlement(delivery=delivery)
        if not delivery.is_wanted:
            return settlement
        gone = {i for part in delivery.cancelled for i in part}
        stopped = [i for i in items(task.span) if task.n + i in gone]
        todo = ranges_of(i for i in items(task.span) if task.n + i not in gone)
        if stopped:
            settlement.events.append(self._event("cancelled", task, ranges_of(stopped)))
            settlement.count(cancelled=len(stopped))
        n_done = luck.randint(0, size(todo))
        done, rest = split(todo, n_done)
        n_failed = luck.randint(0, n_done) if task.attempt <= RETRIES else 0
        failed, good = split(done, n_failed)
        if good:
            n_bad = luck.randint(0, 1)
            settlement.events.append(self._event("finished", task, good, n_bad))
            settlement.count(done=size(good) - n_bad, failed=n_bad)
        if failed:
            again = task.again(failed, attempt=1)
            delay = luck.choice([0.0, 0.001])
            settlement.events.append(self._event("retried", task, failed))
            settlement.successors.append(Requeue(task=again, delay=delay))
        if rest:
            settlement.continue_with(task.again(rest))
        return settlement

    @staticmethod
    def _event(kind: str, task: Task, span: Any, n_failed: int = 0) -> Event:
        errors = {k: dump_error(ValueError(), task="") for k in range(n_failed)}
        values = [None] * size(span)
        body = dump_outcomes(values, errors, lambda _: "") if kind == "finished" else b""
        return Event.about(task, span, kind=kind, worker="w", body=body)

    # -- the supervisors -----------------------------------------------------------------------

    @rule()
    def promote(self) -> None:
        while (wait := self.store.promote(LANES)) is not None:
            time.sleep(wait)

    @rule(luck=lucks)
    def reap(self, luck: random.Random) -> None:
        """It may be that two supervisors do, and that one of them dies after any step."""
        if not self.dead:
            return
        name = luck.choice(self.dead)
        step = luck.choice(["look", "settle", "all"])
        held = self.store.held((f"@{name}", *LANES), name)
        death = self._death(name, held, luck)
        settlements = settle_crash(held, death, known=luck.random() < 0.5)
        if step == "look":
            self.late += settlements
            return
        self.store.settle(settlements)
        if step == "all":
            self._bury(name)

    def _death(self, name: str, held: list[Delivery], luck: random.Random) -> CrashReport:
        """Return what is known of an end: which item ran, or nothing at all."""
        levels = []
        if held and luck.random() < 0.5:
            delivery = held[0]
            task = delivery.task
            level = RunningTask(
                serial=1,
                item=luck.choice([-1, *items(task.span)]),
                deadline=0.0,
                memory_limit=0,
                is_limited=False,
                lane=delivery.lane,
                entry_id=delivery.entry_id,
                job=task.job,
                n=task.n,
                run=task.run,
            )
            levels = [level]
        return CrashReport(DeathCertificate(worker=name, cause="SIGKILL"), levels)

    def _bury(self, name: str) -> None:
        while not self.store.forget_worker(name, LANES):
            held = self.store.held((f"@{name}", *LANES), name)
            death = CrashReport(DeathCertificate(worker=name, cause="SIGKILL"))
            self.store.settle(settle_crash(held, death, known=False))
        self.dead.remove(name)

    # -- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let all that lives do its work, then count."""
        try:
            self._end()
        finally:
            pattern = f"{PREFIX}:{{{self.store.keys.queue}}}*"
            self.client.delete("-", *self.client.scan_iter(pattern, 1000))
            self.store.close()

    def _end(self) -> None:
        for name in list(self.dead):
            self._bury(name)
        for name in self.names.values():
            self._finish(self.held.get(name, []))
        self.promote()
        while taken := self.store.take([], LANES, self.names["w0"], 100):
            self._finish(taken)
        for settlement in self.late:  # the last word comes too late
            assert self.store.settle([settlement]) == [False]
        assert not self.client.keys(f"{PREFIX}:{{{self.store.keys.queue}}}:backlog*")
        assert not self.client.keys(f"{PREFIX}:{{{self.store.keys.queue}}}:placed*")
        for lane in self.store.lanes(LANES):
            assert (lane["waiting"], lane["running"], lane["delayed"]) == (0, 0, 0)
        assert self._ends() == self.items
        for job in self.named:
            record = self.store.job_record(job)
            assert record is not None
            counts = Counter(self._table(job).values())
            known = (counts[State.DONE], counts[State.FAILED], counts[State.CANCELLED])
            assert (record.n_done, record.n_failed, record.n_cancelled) == known
            assert sum(known) == record.n_items == self.spans[job]
        for job in self.deleted:
            assert not self.client.keys(f"*{job}")

    def _finish(self, held: list[Delivery]) -> None:
        for delivery in held:
            settlement = Settlement(delivery=delivery)
            settlement.events = [self._event("finished", delivery.task, delivery.task.span)]
            settlement.count(done=size(delivery.task.span))
            assert self.store.settle([settlement]) == [True]

    def _ends(self) -> Counter[tuple[str, int]]:
        found: Counter[tuple[str, int]] = Counter()
        last = b"0"
        all_events = [event for job in self.named for event in self._history(job)]
        while events := (read := read_events(self.store, SESSION, last))[1]:
            last = read[0]
            all_events += events
        for e in all_events:
            if e.kind in ("finished", "cancelled") and e.worker:  # else only the wish
                found.update((e.job, e.n + i) for i in items(e.span))
        return found


@pytest.mark.timeout(120)
def test_each_item_has_exactly_one_end(client):
    run_state_machine_as_test(
        lambda: Life(client),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
