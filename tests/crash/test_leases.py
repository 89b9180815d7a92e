"""A worker dies in a section, or while it waits for one: nobody waits for it."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.crash.conftest import TIMING


def write_pid(path):
    part = Path(f"{path}.part")
    part.write_text(str(os.getpid()))
    part.rename(path)


@pytest.fixture
def section(queue, gate):
    """A function that stays in a section the first time; its limit; and where it writes its pid."""
    limit, begun, again = queue.limit("api", concurrent=1), gate("begun"), gate("again")

    def work():
        with limit:
            if again.first():
                write_pid(begun.path)
                time.sleep(60)
        return os.getpid()

    return work, limit, begun


def numbers(queue):
    (about,) = queue.status().limits
    return about.running, about.waiting


def test_the_lease_of_a_killed_worker_is_free_at_once(queue, section, wait_until):
    work, _, begun = section
    holder = queue.submit(work)
    begun.wait()
    waiter = queue.submit(work)
    wait_until(lambda: numbers(queue) == (1, 1), describe="a call that waits")

    os.kill(int(Path(begun.path).read_text()), signal.SIGKILL)

    assert waiter.result(3)  # less than a machine may be silent
    assert holder.result(10)
    wait_until(lambda: numbers(queue) == (0, 0), describe="free leases")


def test_a_worker_that_is_killed_while_it_waits_gets_no_lease(queue, gate, wait_until):
    limit, begun, go, again = (
        queue.limit("api", concurrent=1),
        gate("begun"),
        gate("go"),
        gate("again"),
    )

    def hold():
        with limit:
            begun.open()
            go.wait()

    def wait():
        if again.first():
            write_pid(gate_of_pid)
        with limit:
            return os.getpid()

    gate_of_pid = gate("pid").path
    holder = queue.submit(hold)
    begun.wait()
    waiter = queue.submit(wait)
    wait_until(lambda: numbers(queue) == (1, 1), describe="a call that waits")
    victim = int(Path(gate_of_pid).read_text())

    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: waiter.attempts > 1 or numbers(queue) == (1, 0), describe="its end")
    go.open()

    holder.result(10)
    assert waiter.result(10) != victim
    wait_until(lambda: numbers(queue) == (0, 0), describe="free leases")


def test_the_leases_of_a_lost_machine_are_free_when_its_silence_is_noticed(
    new_queue, start_node, gate, wait_until
):
    queue = new_queue(workers=0)
    limit, begun, again = queue.limit("api", concurrent=1), gate("begun"), gate("again")
    first = start_node()

    def work():
        with limit:
            if again.first():
                begun.open()
                time.sleep(60)
        return "done"

    holder = queue.submit(work)
    begun.wait()
    start_node()
    waiter = queue.submit(work)
    wait_until(lambda: numbers(queue) == (1, 1), describe="a call that waits")

    first.kill()

    assert waiter.result(TIMING["silence"] + 10) == holder.result(20) == "done"


def test_waits_outlive_their_connections(queue, client, gate, wait_until):
    limit, begun, go = queue.limit("api", concurrent=1), gate("begun"), gate("go")

    def hold():
        with limit:
            begun.open()
            go.wait()

    async def wait():
        async with limit:
            return 1

    holder = queue.submit(hold)
    begun.wait()
    waiters = [queue.submit(wait) for _ in range(5)]
    wait_until(lambda: numbers(queue) == (1, 5), describe="calls that wait")

    client.client_kill_filter(_type="normal", skipme=True)
    go.open()

    holder.result(10)
    assert [waiter.result(8) for waiter in waiters] == [1] * 5
    wait_until(lambda: numbers(queue) == (0, 0), describe="free leases")


def test_a_worker_that_has_to_end_hands_back_a_call_that_waits(
    new_queue, start_node, gate, wait_until
):
    queue = new_queue(workers=0)
    limit, begun, go = queue.limit("api", concurrent=1), gate("begun"), gate("go")
    start_node()

    def hold():
        with limit:
            begun.open()
            go.wait()

    def wait():
        with limit:
            return 1

    holder = queue.submit(hold)
    begun.wait()
    second = start_node()
    waiter = queue.submit(wait)
    wait_until(lambda: numbers(queue) == (1, 1), describe="a call that waits")

    second.interrupt()
    second.wait()

    assert numbers(queue) == (1, 0)
    go.open()
    assert holder.result(10) is None
    assert waiter.result(10) == 1
    assert waiter.attempts == 1
