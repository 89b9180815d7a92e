"""acquire, release, set_limit: leases are granted in order, and never more than a limit allows."""

import time

import pytest


class Waiter:
    """A worker that asks for leases of a limit."""

    def __init__(self, store, worker):
        self.store, self.worker, self._n = store, worker, 0
        store.join(worker, {})

    def new(self):
        self._n += 1
        return self.store.new_lease(self.worker, self._n)

    def ask(self, *leases, concurrent=1, rate=None):
        """Ask; return what is granted at once, or when the next one may be."""
        return self.store.acquire("api", concurrent, rate, self.worker, leases)

    def give_back(self, *leases):
        self.store.release("api", self.worker, leases)

    def heard(self, block=0.01):
        """What has become of earlier leases since the last look."""
        self.store.await_grants(self.worker, block)
        return self.store.grants()


@pytest.fixture
def waiter(store):
    """``waiter(name)``: a registered worker with a connection of its own."""
    stores = []

    def make(name):
        stores.append(store.clone())
        return Waiter(stores[-1], name)

    yield make
    for one in stores:
        one.close()


def numbers(store):
    (about,) = store.limits()
    return about["running"], about["waiting"]


def test_leases_are_granted_in_the_order_of_the_requests(store, waiter):
    workers = [waiter(f"w{k}") for k in range(4)]
    leases = [worker.new() for worker in workers]
    answers = [worker.ask(lease) for worker, lease in zip(workers, leases, strict=True)]
    assert answers == [[(0, leases[0])], [], [], []]
    assert numbers(store) == (1, 3)
    for k in range(3):
        assert not any(worker.heard() for worker in workers)
        workers[k].give_back(leases[k])
        assert workers[k + 1].heard() == [(0, leases[k + 1])]
    workers[3].give_back(leases[3])
    assert numbers(store) == (0, 0)


def test_to_ask_again_changes_nothing(store, waiter):
    one, two, three = waiter("w1"), waiter("w2"), waiter("w3")
    first, second, third = one.new(), two.new(), three.new()
    assert one.ask(first) == one.ask(first) == [(0, first)]
    assert [two.ask(second), three.ask(third), two.ask(second)] == [[], [], []]
    one.give_back(first)
    one.give_back(first)
    assert two.ask(second) == [(0, second)]  # the answer that was sent before may be lost
    assert three.heard() == []
    assert numbers(store) == (1, 1)


def test_a_lease_that_is_not_awaited_any_more_goes_to_the_next(waiter):
    one, two, three = waiter("w1"), waiter("w2"), waiter("w3")
    first, second, third = one.new(), two.new(), three.new()
    one.ask(first)
    two.ask(second)
    three.ask(third)
    two.give_back(second)
    one.give_back(first)
    assert three.heard() == [(0, third)]
    assert two.heard() == []


def test_new_numbers_hold_at_once_and_for_those_that_wait(store, waiter):
    one = waiter("w1")
    leases = [one.new() for _ in range(4)]
    assert one.ask(*leases, concurrent=1) == [(0, leases[0])]
    store.set_limit("api", 3, None)
    assert one.heard() == [(0, leases[1]), (0, leases[2])]
    store.set_limit("api", 1, None)
    one.give_back(leases[0])
    one.give_back(leases[1])
    assert one.heard() == []  # leases that were granted stay
    one.give_back(leases[2])
    assert one.heard() == [(0, leases[3])]
    assert one.ask(one.new(), concurrent=9) == []  # the number on the server counts


def test_only_the_next_one_is_told_when_it_may_start(store, waiter):
    one, two = waiter("w1"), waiter("w2")
    first, second, third = one.new(), one.new(), two.new()
    about = {"concurrent": None, "rate": 2}
    assert one.ask(first, **about) == [(0, first)]
    ((seconds, lease),) = one.ask(second, **about)
    assert lease == second
    assert 0.3 < seconds <= 0.5
    assert two.ask(third, **about) == []
    one.give_back(second)
    ((seconds, lease),) = two.heard()
    assert lease == third
    assert 0.2 < seconds <= 0.5
    store.set_limit("api", None, 1000)
    two.heard()
    time.sleep(0.002)
    assert two.ask(third, **about) == [(0, third)]


def test_a_rate_is_kept_and_a_late_start_is_made_up_for(waiter):
    one, starts = waiter("w1"), []
    until = time.monotonic() + 1.5
    lease = one.new()
    while time.monotonic() < until:
        ((seconds, _),) = one.ask(lease, concurrent=None, rate=20)
        if seconds:
            time.sleep(seconds + 0.01)
        else:
            starts.append(time.monotonic())
            lease = one.new()
    assert 26 <= len(starts) <= 32
    assert all(b - a > 0.03 for a, b in zip(starts, starts[2:], strict=False))


def test_nothing_is_saved_up_while_nobody_waits(waiter):
    one = waiter("w1")
    one.ask(one.new(), concurrent=None, rate=10)
    time.sleep(0.5)
    answers = [one.ask(one.new(), concurrent=None, rate=10) for _ in range(2)]
    assert [[seconds for seconds, _ in found] == [0] for found in answers] == [True, False]


def test_the_leases_of_a_dead_worker_are_free_at_once(store, client, waiter):
    dead, other, third = waiter("w1"), waiter("w2"), waiter("w3")
    held, awaited, next_one = dead.new(), dead.new(), other.new()
    dead.ask(held)
    dead.ask(awaited)
    other.ask(next_one)
    assert store.forget_worker("w1", ["default"])
    assert other.heard() == [(0, next_one)]
    assert numbers(store) == (1, 0)
    assert not client.exists(store.keys.granted("w1"))

    third.ask(third.new())
    store.forget_worker("w3", ["default"])
    dead.ask(dead.new())  # it is not registered
    other.give_back(next_one)
    assert numbers(store) == (0, 0)


def test_limits_do_not_know_each_other(store, waiter):
    one = waiter("w1")
    first, second = one.new(), one.new()
    one.ask(first)
    assert store.acquire("other", 1, None, "w1", [second]) == [(0, second)]
    assert [about["limit"] for about in store.limits()] == ["api", "other"]


def test_junk_on_the_server_ends_no_worker(store, client, waiter):
    one = waiter("w1")
    client.zadd(store.keys.waiting("api"), {"junk": -1, "w1 x nowhere": -2, b"\xff\xfe": -3})
    client.rpush(store.keys.granted("w1"), b"\xff", "no number", "0 of nobody")
    lease = one.new()
    assert one.ask(lease) == [(0, lease)]
    assert [seconds for seconds, _ in one.heard()] == [0, 0, 0]
    client.hset(
        store.keys.limit("api"), mapping={"concurrent": "many", "rate": "fast", "next": "x"}
    )
    one.ask(one.new())
    client.set(store.keys.limits, "not a hash", ex=60)
    assert store.forget_worker("w1", ["default"])


def test_any_number_of_leases_can_be_given_back_at_once(store, waiter):
    """Coroutines that wait for a limit may be cancelled together."""
    worker = waiter("w1")
    leases = [worker.new() for _ in range(10_000)]
    worker.ask(*leases)
    assert numbers(store) == (1, 9_999)
    worker.give_back(*leases)
    assert numbers(store) == (0, 0)
