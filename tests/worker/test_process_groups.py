"""What tasks start - pools, programs, forks - is as it would be in any other process, and ends."""

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nbstreamq import TaskQueue, TimeLimitExceeded, WorkerLost

#: Signals that a worker handles.
OURS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGURG)
SLEEPER = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(scope="module", params=["fork", "spawn"])
def queue(request, server_url):
    """A queue with a worker that was started in this way, for the tests that leave it alive."""
    name = f"{request.module.__name__}-{request.param}-{os.getpid()}"
    with pytest.MonkeyPatch.context() as patch, TaskQueue(name, server_url, workers=1) as queue:
        patch.setenv("NBSTREAMQ_START_METHOD", request.param)
        queue.run(1)
        yield queue


@pytest.fixture
def pids(tmp_path):
    """A file to which tasks add the processes that they have started: `pids()` reads it."""

    class Pids:
        path = str(tmp_path / "pids")

        def add(self, *found):
            with Path(self.path).open("a") as file:
                file.writelines(f"{pid}\n" for pid in found)

        def __call__(self):
            with contextlib.suppress(FileNotFoundError), Path(self.path).open() as file:
                return [int(line) for line in file]
            return []

    return Pids()


def is_gone(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def start_sleeper(**options):
    """Start a program that sleeps, and is up."""
    process = subprocess.Popen(SLEEPER, stdout=subprocess.PIPE, **options)
    process.stdout.readline()
    return process


# -- signals --------------------------------------------------------------------------------------


def dispositions():
    return {number.name: str(signal.getsignal(number)) for number in OURS}, sorted(
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_inside_a_task_works_and_ends(queue, method):
    def work():
        with multiprocessing.get_context(method).Pool(2) as pool:
            return next(pool.imap_unordered(math.sqrt, [4.0] * 1000))

    assert queue.submit(work).result(60) == 2.0


@pytest.mark.parametrize("method", METHODS)
def test_a_process_inside_a_task_can_be_terminated(queue, method):
    def work():
        process = multiprocessing.get_context(method).Process(target=time.sleep, args=(600,))
        process.start()
        process.terminate()
        process.join(30)
        return process.exitcode

    assert queue.submit(work).result(60) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_program_inside_a_task_gets_signals(queue, number):
    def work():
        process = subprocess.Popen(["sleep", "600"])
        process.send_signal(number)
        return process.wait(30)

    assert queue.submit(work).result(60) == -number


@pytest.mark.parametrize("number", OURS)
def test_a_fork_inside_a_task_has_the_usual_signals(queue, number):
    def work():
        usual = [signal.default_int_handler] if number == signal.SIGINT else [signal.SIG_DFL]
        pid = os.fork()
        if pid == 0:
            is_usual = signal.getsignal(number) in usual
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            os._exit(int(not is_usual or bool(blocked)))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert queue.submit(work).result(60) == 0


def test_a_handler_that_the_task_has_set_is_kept_in_its_forks(queue):
    def work():
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        pid = os.fork()
        if pid == 0:
            os._exit(int(signal.getsignal(signal.SIGUSR1) != signal.SIG_IGN))
        signal.signal(signal.SIGUSR1, before)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert queue.submit(work).result(60) == 0


def test_signals_that_the_kernel_has_blocked_are_not_blocked_in_workers(new_queue):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        queue = new_queue(workers=1)
        blocked = queue.submit(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ())).result(20)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert blocked == set()


# -- forks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status"),
    [("return", 0), ("raise", 1), ("hostile", 1), ("exit", 3), ("text", 1), ("none", 0)],
)
def test_a_fork_that_comes_to_the_end_of_its_task_is_no_second_worker(queue, how, status):
    class Hostile(Exception):
        def __getattribute__(self, name):
            raise ValueError(name)

    def work(_):
        pid = os.fork()
        if pid == 0:
            if how == "raise":
                raise ValueError("in the fork")
            if how == "hostile":
                raise Hostile
            if how != "return":
                sys.exit({"exit": 3, "text": "that was it", "none": None}[how])
            return "from the fork"
        return os.getpid(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    found = queue.map(work, range(4), chunksize=4).result(60)

    (worker,) = {pid for pid, _ in found}
    assert [code for _, code in found] == [status] * 4
    assert queue.submit(os.getpid).result(20) == worker


def test_what_a_fork_prints_is_its_tasks(queue):
    def work():
        pid = os.fork()
        if pid == 0:
            print("from the fork")
            os._exit(0)
        os.waitpid(pid, 0)
        print("from the task")

    future = queue.submit(work)
    future.result(60)

    assert future.logs == "from the fork\nfrom the task\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_fork_inside_a_task_can_use_a_queue_and_values(
    new_queue, server_url, queue_name, monkeypatch, method
):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", method)
    queue = new_queue(workers=2)  # who waits for a process can't help
    ref = queue.put("a value")

    def ask(answers):
        with TaskQueue(queue_name, server_url, workers=0) as inner:
            answers.put((inner.submit(abs, -1).result(30), ref))

    def work():
        fork = multiprocessing.get_context("fork")
        answers = fork.SimpleQueue()
        asking = [fork.Process(target=ask, args=(answers,)) for _ in range(2)]
        for process in asking:
            process.start()
        return [answers.get() for _ in asking]

    assert queue.submit(work).result(60) == [(1, "a value")] * 2
    assert queue.submit(abs, -2).result(20) == 2


# -- the end --------------------------------------------------------------------------------------


def hold(pids, kind):
    """Start a process of some kind, and wait for ever."""
    if kind == "program":
        pids.add(start_sleeper().pid)
    elif kind == "group":
        pids.add(start_sleeper(process_group=0).pid)
    elif kind == "stubborn":
        pids.add(
            start_sleeper(preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)).pid
        )
    elif kind == "shell":
        shell = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)
        pids.add(shell.pid, int(shell.stdout.readline()))
    else:
        pool = multiprocessing.get_context(kind).Pool(2)
        pids.add(*pool.map(getpid, range(2)))
    with contextlib.suppress(BaseException):
        time.sleep(600)
    time.sleep(600)  # it does not react


def getpid(_):
    return os.getpid()


KINDS = ("program", "group", "stubborn", "shell", "fork")


@pytest.mark.parametrize(
    ("end", "kind"),
    [("time limit", "stubborn"), *itertools.product(("cancel", "death"), KINDS)],
)
def test_what_a_killed_task_has_started_ends_with_it(new_queue, pids, wait_until, end, kind):
    queue = new_queue(workers=1)
    worker = queue.submit(os.getpid).result(20)
    options = queue.options(time_limit=4) if end == "time limit" else queue
    future = options.submit(hold, pids, kind)
    started = wait_until(pids, timeout=30, describe="its process")
    if end == "cancel":
        future.cancel()
    elif end == "death":
        future.cancel()
        os.kill(worker, signal.SIGKILL)
    else:
        assert isinstance(future.exception(60), TimeLimitExceeded)

    wait_until(lambda: all(map(is_gone, started)), timeout=20, describe=f"the end of {started}")
    assert queue.submit(abs, -1).result(30) == 1


def test_what_a_task_over_its_memory_has_started_ends_with_it(new_queue, pids, wait_until):
    queue = new_queue(workers=1)

    def work():
        pids.add(start_sleeper().pid)
        return bytearray(2**29).count(1), time.sleep(600)

    future = queue.options(memory_limit=2**28).submit(work)

    assert future.exception(60) is not None
    wait_until(lambda: all(map(is_gone, pids())), describe="the end of its process")


def test_what_a_task_left_running_ends_with_its_worker(new_queue, pids, wait_until):
    queue = new_queue(workers=1)
    queue.submit(lambda: pids.add(start_sleeper().pid)).result(20)
    assert not any(map(is_gone, pids()))

    queue.shutdown()

    wait_until(lambda: all(map(is_gone, pids())), describe="the end of its process")


@pytest.mark.parametrize("kind", ["program", "stubborn", "shell", "fork"])
def test_what_a_task_has_started_ends_with_a_killed_supervisor(new_queue, pids, wait_until, kind):
    queue = new_queue(workers=1)
    supervisor = queue.submit(os.getppid).result(20)
    future = queue.submit(hold, pids, kind)
    started = wait_until(pids, timeout=30, describe="its process")
    future.cancel()

    os.kill(supervisor, signal.SIGKILL)

    wait_until(lambda: all(map(is_gone, started)), timeout=20, describe=f"the end of {started}")


@pytest.mark.parametrize("end", ["planned", "killed"])
def test_what_was_detached_on_purpose_goes_on(new_queue, pids, end):
    queue = new_queue(workers=1)
    worker = queue.submit(os.getpid).result(20)
    queue.submit(lambda: pids.add(start_sleeper(start_new_session=True).pid)).result(20)
    if end == "killed":
        os.kill(worker, signal.SIGKILL)
        assert queue.submit(os.getpid).result(30) != worker
    queue.shutdown()

    (daemon,) = pids()
    assert not is_gone(daemon)
    os.kill(daemon, signal.SIGKILL)


def test_a_crash_of_a_fork_is_not_taken_for_its_workers(new_queue):
    queue = new_queue(workers=1)

    def work():
        pid = os.fork()
        if pid == 0:
            os.abort()
        os.waitpid(pid, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    error = queue.submit(work).exception(60)

    assert isinstance(error, WorkerLost)
    assert "abort" not in str(error.certificate)
