"""A requested end of workers - a deploy, a spot machine, a scheduler - is no crash of what runs."""

import asyncio
import os
import signal
import time

import psutil
import pytest

from nbstreamq import checkpoint, resume
from tests.real_workers import node_command

ENDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@pytest.fixture
def start_workers(start, server_url, queue_name, store, wait_until):
    """``start_workers(drain)``: `nbstreamq worker` with one worker, once that has joined."""

    def start_workers(drain, *options):
        before = set(store.workers())
        command = ("-m", "nbstreamq", "worker", server_url, "--queue", queue_name, "-n", "1")
        node = start(*command, "--drain", str(drain), *options)
        wait_until(lambda: set(store.workers()) - before, timeout=30, describe="its worker")
        return node

    return start_workers


@pytest.fixture
def queue(new_queue):
    return new_queue(workers=0)


def worker_of(store):
    (worker,) = store.workers().values()
    return psutil.Process(worker["pid"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_runs_is_finished_and_what_waits_is_given_back(
    start_workers, queue, gate, number, wait_for_end
):
    first, begun, go = start_workers(60), gate("begun"), gate("go")
    running = queue.submit(lambda: (begun.open(), go.wait(60), os.getppid())[-1])
    begun.wait()
    waiting = queue.submit(os.getppid)

    first.kill(number)
    second = start_workers(60)

    assert waiting.result(30) == second.pid, "the first takes nothing more"
    go.open()
    assert running.result(30) == first.pid
    assert running.attempts == 1
    assert first.wait()[0] == 0


def test_coroutines_that_take_longer_are_stopped_and_handed_back(start_workers, queue, gate):
    async def work(x):
        gate(f"in {x}").open()
        try:
            while not gate("go").is_open():
                await asyncio.sleep(0.01)
        finally:
            gate(f"out {x}").open()
        return os.getppid()

    first = start_workers(0.2)
    job = queue.map(work, range(3))
    for x in range(3):
        gate(f"in {x}").wait()
    first.kill(signal.SIGTERM)
    for x in range(3):
        gate(f"out {x}").wait()
    gate("go").open()
    second = start_workers(60)
    assert {*job.result(30)} == {second.pid}
    assert [future.attempts for future in job[:]] == [1] * 3


def test_what_takes_longer_than_the_drain_is_handed_back_uncharged(
    start_workers, queue, gate, tmp_path
):
    go = gate("go")

    def work(folder):
        (folder / f"{os.getppid()}").touch()
        go.wait(60)
        return "done"

    async def work_in_a_coroutine(folder, x):
        (folder / f"{os.getppid()} {x}").touch()
        while not go.is_open():
            await asyncio.sleep(0.01)
        return "done"

    plain = queue.submit(work, tmp_path)
    coroutines = [queue.submit(work_in_a_coroutine, tmp_path, x) for x in range(2)]
    for number in (*ENDS, *ENDS[:2]):  # two losses more than a call may have
        node = start_workers(0.2, "-n", "2")
        for file in (f"{node.pid}", f"{node.pid} 0", f"{node.pid} 1"):
            while not (tmp_path / file).exists():
                time.sleep(0.01)
        node.kill(number)
        assert node.wait()[0] == 0
        assert not plain.done()
    go.open()
    start_workers(1)

    for future in (plain, *coroutines):
        assert future.result(30) == "done"
        assert "5 workers that had to end have handed this call back" in future.logs
    assert queue.dead() == []


def test_what_a_chunk_has_finished_is_kept(start_workers, queue, gate, tmp_path):
    begun, go = gate("begun"), gate("go")

    def work(k):
        with (tmp_path / f"{k}.log").open("a") as log:
            log.write("x")
        if k == 3:
            begun.open()
            go.wait(60)
        return k

    node = start_workers(0.2)
    job = queue.map(work, range(6), chunksize=6, name="chunk")
    begun.wait()
    node.kill(signal.SIGTERM)

    assert node.wait()[0] == 0
    go.open()
    start_workers(1)
    assert job.result(30) == [*range(6)]
    runs = [len((tmp_path / f"{k}.log").read_text()) for k in range(6)]
    assert runs == [1, 1, 1, 2, 1, 1]
    job.delete()


def test_a_task_that_waits_for_others_is_handed_back_with_its_state(start_workers, queue, gate):
    begun, go = gate("begun"), gate("go")

    def inner():
        begun.open()
        go.wait(60)
        return "inner"

    def outer(q):
        state = resume("first")
        checkpoint("second")
        return state, q.submit(inner).result()

    node = start_workers(0.2)
    future = queue.submit(outer, queue)
    begun.wait()
    node.kill(signal.SIGTERM)
    assert node.wait()[0] == 0
    go.open()
    start_workers(1)

    assert future.result(30) == ("second", "inner")
    assert future.attempts == 1


def test_a_call_that_ignores_the_end_of_its_worker_is_killed(start_workers, queue, gate):
    begun, go = gate("begun"), gate("go")

    def work():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        begun.open()
        go.wait(60)
        return "done"

    node = start_workers(0.2)
    future = queue.submit(work)
    begun.wait()
    node.kill(signal.SIGTERM)
    assert node.wait()[0] == 0
    go.open()
    start_workers(1)

    assert future.result(30) == "done"
    assert future.attempts == 1


def test_a_second_signal_hands_over_at_once(start_workers, queue, gate):
    node, begun = start_workers(600), gate("begun")

    def work():
        if begun.first():
            time.sleep(600)
        return "elsewhere"

    future = queue.submit(work)
    begun.wait()
    node.kill(signal.SIGTERM)
    assert any("told to end" in line for line in iter(node.line, ""))
    node.kill(signal.SIGTERM)

    assert node.wait()[0] == 0
    start_workers(1)
    assert future.result(30) == "elsewhere"


def test_a_signal_to_a_single_worker_is_a_drain_of_that_one(start_workers, queue, gate, store):
    start_workers(60)
    begun, go = gate("begun"), gate("go")
    running = queue.submit(lambda: (begun.open(), go.wait(60), os.getpid())[-1])
    begun.wait()
    worker = worker_of(store)

    worker.terminate()

    assert queue.submit(os.getpid).result(30) != worker.pid, "it is replaced at once"
    go.open()
    assert running.result(30) == worker.pid
    assert running.attempts == 1


def test_a_single_worker_that_does_not_drain_in_time_hands_over(start_workers, queue, gate, store):
    start_workers(0.5)
    begun = gate("begun")

    def work():
        if begun.first():
            time.sleep(600)
        return "done"

    future = queue.submit(work)
    begun.wait()
    worker_of(store).terminate()

    assert future.result(30) == "done"
    assert queue.dead() == []


def test_a_signal_to_all_processes_at_once_is_a_drain(start_workers, queue, gate, store):
    node, begun, go = start_workers(60), gate("begun"), gate("go")
    running = queue.submit(lambda: (begun.open(), go.wait(60), "done")[-1])
    begun.wait()

    for process in (worker_of(store), psutil.Process(node.pid)):
        process.terminate()
    go.open()

    assert running.result(30) == "done"
    assert node.wait()[0] == 0


def test_a_machine_that_is_killed_while_it_drains_has_said_that_it_leaves(
    start, server_url, queue_name, store, queue, gate, wait_until
):
    timing = {"heartbeat": 0.2, "silence": 1.0, "hearing": 2.0, "drain": 600.0}

    def start_node():
        before = set(store.workers())
        node = start(*node_command(server_url, queue_name, 1, **timing))
        wait_until(lambda: set(store.workers()) - before, timeout=30, describe="its worker")
        return node

    begun = [gate(str(n)) for n in range(5)]

    def work():
        n = next(n for n, one in enumerate(begun) if one.first())
        if n < 4:
            time.sleep(600)
        return "done"

    future = queue.submit(work)
    for n in range(4):
        node = start_node()
        begun[n].wait()
        node.kill(signal.SIGTERM)
        wait_until(
            lambda: any(w.get("leaving") for w in store.workers().values()),
            describe="the word that it leaves",
        )
        node.kill(signal.SIGKILL)
        node.wait()
    start_node()

    assert future.result(60) == "done"


def test_a_cancelled_call_is_stopped_during_a_drain(start_workers, queue, gate):
    node, begun = start_workers(600), gate("begun")
    future = queue.submit(lambda: (begun.open(), time.sleep(600)))
    begun.wait()
    node.kill(signal.SIGTERM)

    future.cancel()

    assert node.wait()[0] == 0


def test_a_worker_that_ignores_the_end_of_its_terminal_goes_on(start_workers, queue, start):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        node = start_workers(1)
    finally:
        signal.signal(signal.SIGHUP, before)

    node.kill(signal.SIGHUP)

    assert queue.submit(os.getppid).result(30) == node.pid


def test_the_end_of_the_lifetime_is_a_drain(start_workers, queue, gate):
    begun, go = gate("begun"), gate("go")
    node = start_workers(60, "--lifetime", "2s")
    running = queue.submit(lambda: (begun.open(), go.wait(60), os.getppid())[-1])
    begun.wait()

    assert any("its lifetime of 2 s is over: 1 running" in line for line in iter(node.line, ""))
    go.open()

    assert running.result(30) == node.pid
    assert node.wait()[0] == 0


def test_workers_that_have_nothing_to_do_for_long_end(start_workers, queue, gate, store):
    begun, go = gate("begun"), gate("go")
    node = start_workers(60, "--idle-timeout", "1", "--unit", "job-7")
    assert [worker.unit for worker in queue.workers()] == ["job-7"]
    running = queue.submit(lambda: (begun.open(), time.sleep(1.5), go.open())[-1])
    begun.wait()

    status, said = node.wait()

    assert go.is_open(), "a call that runs is something to do"
    assert "nothing has run for 1 s: it ends" in said
    assert status == 0
    assert running.result(30) is None


def test_a_call_that_does_not_fit_into_a_lifetime_is_left_to_another_worker(
    start_workers, queue, tmp_path
):
    def work(folder):
        with (folder / "log").open("a") as log:
            print(os.getppid(), file=log)
        time.sleep(3.2)

    node = start_workers(60, "--lifetime", "6")
    queue.submit(work, tmp_path).result(30)
    second = queue.submit(work, tmp_path)
    assert node.wait()[0] == 0
    assert not second.done()
    other = start_workers(1)

    second.result(30)
    assert (tmp_path / "log").read_text().split() == [str(node.pid), str(other.pid)]
