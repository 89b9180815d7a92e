"""Thousands of forged and damaged messages, in every stream and key of a queue that is at work.

No foreign code runs, no worker dies, all that is valid is done, and each forgery is counted.
``NBSTREAMQ_FUZZ=100000`` sends more of them, as ``make fuzz`` does; ``NBSTREAMQ_FUZZ_SEED`` repeats
a run.
"""

import json
import os
import pickle
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from nbstreamq.wire.item_ranges import ONE
from nbstreamq.wire.messages import ControlMessage, Event, Task
from nbstreamq.wire.signing import Signer
from nbstreamq.wire.store import DEAD_ENTRIES

N_FORGERIES = int(os.environ.get("NBSTREAMQ_FUZZ") or 3000)
SEED = int(os.environ.get("NBSTREAMQ_FUZZ_SEED") or time.time())
#: Forgeries in one go, beside as many valid calls.
ROUND = 250
#: Puts its arguments into a delayed set as submit.lua does.
DELAY = "redis.call('ZADD', KEYS[1], 0, cmsgpack.pack({unpack(ARGV)})) return 1"


class Evil:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class Forger:
    """Makes messages that look like those of `queue` and are not."""

    def __init__(self, rng, queue, session, canary):
        self.rng = rng
        self.session = session
        self.evil = pickle.dumps(Evil(canary))
        self.right = Signer("secret", queue)
        self.wrong = [Signer("guess", queue), Signer("secret", queue + "x"), Signer("", queue)]

    def task(self):
        number = self.rng.randrange(1, 4)
        evil = self.rng.random() < 0.5
        job = f"{self.session}.{number}"
        args = self.evil if evil else pickle.dumps(((), {}))
        task = Task(job=job, n=0, fn="f" * 32, name="f", call="apply", args=args)
        return self.fields(task, b"task", b"control")

    def setup(self):
        return self.fields(
            Task(job="s.1", n=0, fn="f", name="f", call="apply", args=self.evil), b"setup", b"task"
        )

    def control(self):
        order = ControlMessage(kind="cancel", job=self.session, span=ONE)
        if self.rng.random() < 0.5:
            return order.encode(self.rng.choice(self.wrong))
        return self.changed(order.encode(self.right))

    def fields(self, task, kind, other):
        """The fields of an entry, signed wrongly, or signed and then changed."""
        if self.rng.random() < 0.5:
            return task.encode(self.rng.choice(self.wrong), kind)
        if self.rng.random() < 0.2:
            return task.encode(self.right, other)
        return self.changed(task.encode(self.right, kind))

    def changed(self, honest):
        """What `damage` makes of fields, if it is neither the same nor a wake-up."""
        while (flat := self.damage(list(honest))) == honest or flat[::2] == [b"kind"]:
            pass
        return flat

    def damage(self, flat):
        at = self.rng.randrange(len(flat) // 2) * 2
        match self.rng.randrange(7):
            case 0:
                flat[at + 1] = self.mutate(flat[at + 1])
            case 1:
                del flat[at : at + 2]
            case 2:
                flat[at:at] = flat[at : at + 2]
            case 3:
                other = self.rng.randrange(len(flat) // 2) * 2
                flat[at + 1], flat[other + 1] = flat[other + 1], flat[at + 1]
            case 4:
                flat[at] = self.mutate(flat[at])
            case 5:
                flat += [self.rng.randbytes(3), self.evil]
            case 6:
                flat[at + 1] = self.evil
        return flat

    def mutate(self, data):
        """Other bytes than `data`."""
        changed = bytearray(data)
        at = self.rng.randrange(len(changed)) if changed else 0
        match self.rng.randrange(4):
            case 0 if changed:
                changed[at] ^= 1 << self.rng.randrange(8)
            case 1 if changed:
                del changed[at:]
            case 2:
                changed[at:at] = self.rng.randbytes(self.rng.randrange(1, 40))
            case _:
                changed += self.evil
        return bytes(changed)

    def event(self):
        job = f"{self.session}.{self.rng.randrange(1, 4)}"
        kind = self.rng.choice(["finished", "output", "close", "lost", "cancelled"])
        event = Event(kind=kind, job=job, n=0, worker="w", body=self.evil)
        match self.rng.randrange(4):
            case 0:
                sealed = event.seal(self.rng.choice(self.wrong))
            case 1:
                sealed = self.mutate(event.seal(self.right))
            case 2:
                sealed = self.rng.randbytes(16) + self.evil
            case 3:  # of another session
                sealed = Event(kind=kind, job="s.1", n=0, worker="w").seal(self.right)
        return [b"event" if self.rng.random() < 0.9 else self.mutate(b"event"), sealed]

    def description(self):
        """What is no worker's description."""
        good = {"host": "h", "pid": 7, "lanes": ["default"], "supervisor": 7, "node": "n"}
        match self.rng.randrange(4):
            case 0:
                return self.evil
            case 1:
                return json.dumps(good)[: self.rng.randrange(len(json.dumps(good)))].encode()
            case 2:
                return json.dumps(good | {self.rng.choice(list(good)): [None]}).encode()
            case _:
                return b"[" * self.rng.randrange(1, 50_000)


class Attack:
    """Puts forgeries where nobody would expect them; counts what must be refused."""

    def __init__(self, forger, client, keys, session, workers):
        self.forger = forger
        self.rng = forger.rng
        self.client = client
        self.keys = keys
        self.session = session
        self.workers = workers
        self.expected = Counter()

    def round(self, n):
        with self.client.pipeline(transaction=False) as pipe:
            for _ in range(n):
                self.one(pipe)
            pipe.execute()

    def one(self, pipe):
        keys, forger, rng = self.keys, self.forger, self.rng
        match rng.randrange(12):
            case 0 | 1 | 2 | 3:
                lane = rng.choice(["high", "default", "low", "nested1", f"@{self.workers[0]}"])
                self.add(pipe, keys.lane(lane), forger.task(), "task")
            case 4:
                delayed = keys.delayed(rng.choice(["high", "default", "low"]))
                if rng.random() < 0.5:
                    fields = [*forger.task(), f"unique{rng.getrandbits(64)}", b""]
                    pipe.eval(DELAY, 1, delayed, *fields)
                else:
                    pipe.zadd(delayed, {rng.randbytes(rng.randrange(8, 60)): 0})
                self.expected["task"] += 1
            case 5 | 6 | 7:
                self.add(pipe, keys.events(self.session), forger.event(), "event")
            case 8:
                self.add(pipe, keys.control, forger.control(), "control")
            case 9:
                self.add(pipe, keys.setup, forger.setup(), "setup")
            case 10:
                pipe.hset(keys.workers, f"w{rng.getrandbits(64)}", forger.description())
                self.expected["worker"] += 1
            case 11:
                self.other(pipe)

    def add(self, pipe, key, fields, kind):
        pipe.execute_command("XADD", key, "*", *fields)
        self.expected[kind] += 1

    def other(self, pipe):
        """What is not signed, or not refused: it just must do no harm."""
        keys, rng, junk = self.keys, self.rng, self.rng.randbytes(self.rng.randrange(30))
        match rng.randrange(9):
            case 8:
                pipe.hset(keys.jobs, b"x" + junk, rng.choice([b"forged:1", junk]))
                pipe.hset(keys.job("forged:1"), rng.choice([b"about", b"n", b"run", junk]), junk)
            case 0:
                job = rng.choice([self.session, f"{self.session}.1", f"{self.session}.2", "s"])
                pipe.hset(keys.cancelled, job, b"x" + junk)
                pipe.hincrby(keys.cancelled, "#", 1)
            case 1:
                pipe.zadd(keys.nodes, {junk: 1})
            case 2:
                pipe.hset(keys.meta, b"x" + junk, junk)
            case 3:
                pipe.set(keys.session(f"s{rng.getrandbits(64)}"), junk, ex=60)
            case 4:
                pipe.hset(keys.refused, b"x" + junk, b"x" + junk)
            case 5:
                pipe.xadd(keys.dead, {junk: junk})
            case 6:
                pipe.set(keys.function(f"{rng.getrandbits(64)}"), self.forger.evil, ex=60)
            case 7:
                pipe.xadd(keys.control, {b"kind": junk})


@pytest.mark.timeout(60 + N_FORGERIES / 100)
def test_forgeries_harm_nobody(new_queue, client, queue_name, store, tmp_path, wait_until):
    queue = new_queue(workers=2)
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    pids = sorted(w.pid for w in queue.workers())
    canary, session = tmp_path / "canary", queue._session.id
    forger = Forger(random.Random(SEED), queue_name, session, canary)
    attack = Attack(forger, client, store.keys, session, [w.id for w in queue.workers()])

    def wait_for_refusals(kind):
        n = attack.expected[kind]
        wait_until(
            lambda: queue.status().refused.get(kind) == n,
            timeout=60,
            describe=f"{n} refusals of kind {kind}, seed {SEED}",
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for first in range(0, N_FORGERIES, ROUND):
            singles = [queue.submit(divmod, i, 7) for i in range(20)]
            mapped = queue.map(abs, range(-ROUND, 0))
            late = queue.options(delay=0.01).submit(abs, -first)
            attack.round(ROUND)
            assert [f.result(30) for f in singles] == [divmod(i, 7) for i in range(20)]
            assert list(mapped) == list(range(ROUND, 0, -1))
            assert late.result(30) == first
        queue.run(3)  # The third worker reads the calls of `everywhere`,
        wait_for_refusals("setup")
        # whose stream this shortens. A parked worker reads its own lane only when asked.
        queue.everywhere(abs, -1).result(30)
        for kind in attack.expected:
            wait_for_refusals(kind)
    said = [str(w.message) for w in caught]
    assert len([text for text in said if "refused" in text]) == 1, said
    assert set(pids) < {w.pid for w in queue.workers()}, f"a worker died, seed {SEED}"
    assert not canary.exists(), f"foreign code has run, seed {SEED}"
    assert not any(letter.can_retry for letter in queue.dead())
    assert client.xlen(store.keys.dead) < DEAD_ENTRIES + 200
    assert queue.jobs() == []
    for key in (
        store.keys.job("forged:1"),
        store.keys.jobs,
        store.keys.cancelled,
        store.keys.setup,
    ):
        client.expire(key, 60)  # as it has if the queue itself wrote it
