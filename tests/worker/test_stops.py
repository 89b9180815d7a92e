"""A stop may come at any moment: later calls find nothing half done, and no lock held."""

import contextlib
import logging
import os
import random
import subprocess
import time

import psutil
import pytest

from nbstreamq import TaskQueue, TimeLimitExceeded

#: A module that tasks import: the first import of it takes long, and is stopped.
MODULE = """
import os, pathlib, threading, time

begun = pathlib.Path({begun!r})
lock = threading.Lock()
state = {{}}


def sleep_once(seconds=600):
    try:
        begun.touch(exist_ok=False)
    except FileExistsError:
        return
    time.sleep(seconds)


def use():
    lock.acquire()
    sleep_once()
    lock.release()
    return "used"


def lazy():
    if "half" not in state:
        state["half"] = 1
        sleep_once()
        state["whole"] = 2
    return state["whole"]


{body}
"""


@pytest.fixture
def module(tmp_path, monkeypatch, gate):
    """``module(body)``: the name of a module that workers can import, with this at its end."""

    def make(body=""):
        name = f"module_{os.getpid()}_{random.getrandbits(32):08x}"
        text = MODULE.format(begun=gate("begun").path, body=body)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return make


def call(name, function):
    module = __import__(name)
    return getattr(module, function)()


def stop(queue, how, fn, *args, begun):
    """Submit a call, and have it stopped once it has begun."""
    if how == "time limit":
        future = queue.options(time_limit=1).submit(fn, *args)
        assert isinstance(future.exception(60), TimeLimitExceeded)
        assert begun.is_open()
    else:
        future = queue.submit(fn, *args)
        begun.wait()
        future.cancel()


HOW = pytest.mark.parametrize("how", ["cancel", "time limit"])


@HOW
def test_an_import_that_was_stopped_is_not_found_half_done(one_worker, module, gate, how):
    name = module("import json\nsleep_once()\n\ndef answer():\n    return 42")

    stop(one_worker, how, call, name, "answer", begun=gate("begun"))

    assert one_worker.map(call, [name] * 5, ["answer"] * 5).result(60) == [42] * 5


@HOW
@pytest.mark.parametrize(("function", "value"), [("use", "used"), ("lazy", 2)])
def test_nor_is_what_a_module_was_doing(one_worker, module, gate, how, function, value):
    name = module()

    stop(one_worker, how, call, name, function, begun=gate("begun"))

    assert one_worker.map(call, [name] * 5, [function] * 5).result(60) == [value] * 5


def test_a_worker_is_replaced_before_it_runs_the_rest_of_a_chunk(one_worker, module, gate):
    name = module("sleep_once()\n\ndef answer():\n    return os.getpid()")
    options = one_worker.options(time_limit=1)

    job = options.map(lambda _: call(name, "answer"), range(6), chunksize=6)
    job.wait(60)

    assert list(job.errors) == [0]
    assert len({job[i].result() for i in range(1, 6)}) == 1


def test_a_task_that_catches_its_stop_has_its_result_and_its_worker_is_replaced(
    one_worker, module, gate
):
    name = module("sleep_once()")
    worker = one_worker.submit(os.getpid).result(20)

    def work(i):
        with contextlib.suppress(BaseException):
            __import__(name)
        return i, os.getpid()

    found = one_worker.options(time_limit=1).map(work, range(3), chunksize=3).result(60)

    assert [i for i, _ in found] == [0, 1, 2]
    assert [pid == worker for _, pid in found] == [True, False, False]


def test_a_log_record_that_was_stopped_leaves_no_lock(one_worker, gate):
    begun = gate("begun")

    def work():
        class Slow(logging.Handler):
            def emit(self, record):
                if begun.first():
                    time.sleep(600)

        logger = logging.getLogger("of.a.test")
        if not logger.handlers:
            logger.addHandler(Slow())
        logger.warning("hello")
        return "logged"

    stop(one_worker, "cancel", work, begun=begun)

    assert one_worker.submit(work).result(60) == "logged"


def test_a_nested_task_that_was_stopped_does_not_hold_up_who_waits_for_it(
    one_worker, server_url, queue_name, module, gate
):
    """The only worker is about to go, and what it waits for is run by the one that follows."""
    name = module("sleep_once()\n\ndef answer():\n    return 42")

    def outer():
        with TaskQueue(queue_name, server_url, workers=0) as inner:
            first = inner.options(time_limit=1).submit(call, name, "answer")
            assert isinstance(first.exception(60), TimeLimitExceeded)
            return inner.submit(call, name, "answer").result(60), first.worker

    assert one_worker.submit(outer).result(90)[0] == 42


def test_what_a_stopped_task_has_started_ends(one_worker, gate, wait_until, tmp_path):
    begun, file = gate("begun"), tmp_path / "pid"

    def work():
        process = subprocess.Popen(["sleep", "600"])
        file.write_text(str(process.pid))
        begun.open()
        process.wait()

    stop(one_worker, "cancel", work, begun=begun)

    pid = int(file.read_text())
    wait_until(lambda: not psutil.pid_exists(pid), describe="the end of its program")


def test_what_was_started_before_a_stopped_task_goes_on(one_worker, gate):
    """And so does its worker."""
    first = one_worker.submit(lambda: (os.getpid(), subprocess.Popen(["sleep", "600"]).pid))
    worker, pid = first.result(20)
    begun = gate("begun")
    time.sleep(0.2)  # older than the task, by the coarse clock of processes

    def work():
        begun.open()
        while True:
            time.sleep(0.001)

    stop(one_worker, "cancel", work, begun=begun)

    assert one_worker.submit(os.getpid).result(20) == worker
    assert psutil.pid_exists(pid)


def test_stops_in_the_midst_of_nested_maps_leave_no_lock_of_the_client(queue):
    chance = random.Random(7)

    def nest():
        while True:
            list(queue.map(abs, range(50)))

    def look():
        return queue.submit(abs, -1).result(20), sum(queue.map(abs, range(50)))

    for round_ in range(12):
        if round_ % 2:
            future = queue.options(time_limit=chance.uniform(0.02, 0.15)).submit(nest)
            assert isinstance(future.exception(30), TimeLimitExceeded)
        else:
            future = queue.submit(nest)
            time.sleep(chance.uniform(0.02, 0.15))  # any moment will do
            future.cancel()
        assert queue.submit(look).result(30) == (1, sum(range(50)))
