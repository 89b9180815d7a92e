"""Ctrl-C in a wait, in two stages: the first one says how to cancel, the second one cancels."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import re
import select
import signal
import sys
import threading
import time
import weakref

import psutil
import pytest

from tests.client.conftest import REPOSITORY
from tests.interrupts import interrupt_wait

GOES_ON = (
    "Goes on: {} ({} of {} done). To cancel: interrupt again within {:g} s, or call cancel().\n"
)
CANCELLED = "Cancelled: {} ({} of {} done). What is done is kept.\n"
#: Seconds that a test may take between two interrupts.
LONG = 60.0


@pytest.fixture(autouse=True)
def usual_handler(monkeypatch):
    """Give tests time for the second interrupt, and leave SIGINT as it was."""
    monkeypatch.setattr("nbstreamq.client.waiting.SPAN", LONG)
    monkeypatch.setattr("nbstreamq.client.waiting.PendingInterrupt.last", None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt(wait):
    """Call `wait`, and press Ctrl-C in it."""
    pressing = interrupt_wait()
    with pytest.raises(KeyboardInterrupt) as caught:
        wait()
    pressing.join()
    return caught


@pytest.fixture
def half_done(queue, gate, wait_until):
    """A job with two items done; of the others two are held up."""
    hold = gate.hold

    def two_are_quick(x):
        return x if x < 2 else hold(x)

    job = queue.map(two_are_quick, range(6), chunksize=1)
    assert [job[0].result(20), job[1].result(20)] == [0, 1]
    wait_until(lambda: gate.n_reached == 2, describe="two items are held up")
    return job


def test_the_first_one_says_how_to_cancel(half_done, gate, capsys):
    caught = interrupt(half_done.wait)
    assert capsys.readouterr().err == GOES_ON.format("two_are_quick", 2, 6, LONG)
    # Where in the wait it came is left out.
    assert "wait_until" not in [entry.name for entry in caught.traceback]
    gate.open()
    assert half_done.result(20) == list(range(6))


def test_a_future_s_wait_counts_as_its_job_s(queue, gate, wait_until, capsys):
    future = queue.submit(gate.hold)
    wait_until(lambda: gate.n_reached, describe="the workers")
    interrupt(future.result)
    assert capsys.readouterr().err == GOES_ON.format("hold", 0, 1, LONG)
    interrupt(future.exception)
    assert capsys.readouterr().err == CANCELLED.format("hold", 0, 1)
    assert future.cancelled()


def test_of_many_calls_only_the_awaited_one_is_cancelled(queue, gate, wait_until, capsys):
    futures = [queue.submit(gate.hold, number) for number in range(6)]
    wait_until(lambda: gate.n_reached == 2, describe="the workers")
    interrupt(futures[4].result)
    interrupt(futures[4].result)
    assert capsys.readouterr().err.endswith(CANCELLED.format("hold", 0, 1))
    gate.open()
    assert futures[4].cancelled()
    assert [futures[i].result(20) for i in (0, 1, 2, 3, 5)] == [0, 1, 2, 3, 5]


def test_of_coroutines_that_run(queue, tmp_path, wait_until, capsys):
    async def work(x):
        (tmp_path / f"in {x}").touch()
        try:
            await asyncio.sleep(60)
        finally:
            (tmp_path / f"out {x}").touch()

    def there_are(name):
        return len([*tmp_path.glob(f"{name} *")]) == 3

    job = queue.map(work, range(3))
    wait_until(lambda: there_are("in"), describe="three coroutines")
    interrupt(job.wait)
    assert capsys.readouterr().err == GOES_ON.format("work", 0, 3, LONG)
    assert not [*tmp_path.glob("out *")]
    interrupt(job.result)
    assert capsys.readouterr().err == CANCELLED.format("work", 0, 3)
    assert all(future.cancelled() for future in job[:])
    wait_until(lambda: there_are("out"), describe="their end")
    assert queue.submit(abs, -1).result(20) == 1


WAITS = {
    "wait": lambda job: job.wait(),
    "result": lambda job: job.result(),
    "iteration": list,
    "as_completed": lambda job: list(job.as_completed()),
    "future": lambda job: job[5].result(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_the_second_one_cancels(half_done, queue, capsys, wait):
    interrupt(half_done.wait)
    capsys.readouterr()
    interrupt(lambda: WAITS[wait](half_done))
    assert capsys.readouterr().err == CANCELLED.format("two_are_quick", 2, 6)
    assert half_done.done()
    assert [future.cancelled() for future in half_done[:]] == [False] * 2 + [True] * 4
    assert [half_done[0].result(0), half_done[1].result(0)] == [0, 1]
    assert queue.map(abs, [-1, -2]).result(20) == [1, 2]


def stay_busy(folder):
    """A task that takes no hint: only its worker's death ends it."""
    (folder / str(os.getpid())).touch()
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def test_others_and_their_workers_are_unharmed(make_queue, gate, tmp_path, wait_until):
    queue, hold = make_queue(workers=2), gate.hold
    other = queue.map(lambda _: hold(os.getpid()), range(2), chunksize=1)
    wait_until(lambda: gate.n_reached == 2, describe="the other job holds two workers")
    mine = [worker.pid for worker in queue.workers()]
    queue.run(3)
    stubborn = queue.map(stay_busy, [tmp_path] * 3, chunksize=1)
    busy = wait_until(lambda: [f for f in tmp_path.iterdir() if f.name.isdigit()])
    interrupt(stubborn.wait)
    interrupt(stubborn.wait)
    wait_until(lambda: not psutil.pid_exists(int(busy[0].name)), 20, "the death of its worker")
    gate.open()
    assert sorted(other.result(20)) == sorted(mine)
    assert other[0].attempts == other[1].attempts == 1
    assert all(future.cancelled() for future in stubborn[:])
    assert len([f for f in tmp_path.iterdir() if f.name.isdigit()]) == 1


def test_the_second_one_in_another_job_s_wait(half_done, queue, gate, capsys):
    other = queue.map(gate.hold, range(3), chunksize=1)
    interrupt(half_done.wait)
    capsys.readouterr()
    interrupt(other.wait)
    cancelled = CANCELLED.format("two_are_quick", 2, 6)
    assert capsys.readouterr().err == cancelled + GOES_ON.format("hold", 0, 3, LONG)
    assert half_done.done()
    gate.open()
    assert other.result(20) == [0, 1, 2]


def test_the_second_one_in_other_code(half_done, wait_until, capsys):
    interrupt(half_done.wait)
    capsys.readouterr()
    pressing = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(20)
    pressing.join()
    wait_until(half_done.done, describe="the cancellation")
    said = wait_until(lambda: capsys.readouterr().err, describe="what is said of it")
    assert said == CANCELLED.format("two_are_quick", 2, 6)


def test_after_a_while_it_is_a_first_one_again(half_done, gate, monkeypatch, usual_handler, capsys):
    monkeypatch.setattr("nbstreamq.client.waiting.SPAN", 0.0)
    for _ in range(3):
        interrupt(half_done.wait)
        assert capsys.readouterr().err == GOES_ON.format("two_are_quick", 2, 6, 0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual_handler
    gate.open()
    assert half_done.result(20) == list(range(6))


def test_shutdown_waits_for_several(queue, gate, wait_until, capsys):
    jobs = [queue.map(gate.hold, range(2)) for _ in range(5)]
    wait_until(lambda: gate.n_reached, describe="the workers")
    interrupt(queue.shutdown)
    names = ", ".join(["hold (0 of 2 done)"] * 3)
    assert capsys.readouterr().err.startswith(f"Goes on: {names} and 2 more. To cancel")
    interrupt(queue.shutdown)
    assert capsys.readouterr().err.startswith(f"Cancelled: {names} and 2 more.")
    assert all(job.done() for job in jobs)


def test_what_was_waited_for_is_not_kept_alive(queue, gate, wait_until):
    job = queue.map(gate.hold, range(2))
    wait_until(lambda: gate.n_reached, describe="the workers")
    interrupt(job.wait)
    gate.open()
    assert job.result(20) == [0, 1]
    table = weakref.ref(job._table)
    del job
    wait_until(lambda: gc.collect() is not None and table() is None, describe="its end")


REPL = """\
import sys, threading, time
from nbstreamq import TaskQueue
from nbstreamq.client import waiting
from tests.interrupts import is_waiting
waiting.SPAN = 60
def tell():
    while not is_waiting(threading.main_thread()):
        time.sleep(0.001)
    print("it " + "waits")

q = TaskQueue(*sys.argv[1:], workers=1)
job = q.map(time.sleep, [0, 600], chunksize=1)
job[0].result()
threading.Thread(target=tell).start()
"""

#: What moves the cursor, and switches modes: the prompt of Python 3.13 draws each line many times.
CONTROLS = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")


class Terminal:
    """Python's prompt after a script, as somebody at a terminal has it."""

    def __init__(self, *command):
        self.pid, self._file = pty.fork()
        if not self.pid:
            os.environ |= {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "TERM": "xterm"}
            os.execv(sys.executable, [sys.executable, "-iq", *command])
        self._written = b""

    def type(self, text):
        os.write(self._file, text.encode())

    def shows(self, pattern):
        while select.select([self._file], [], [], 0)[0]:
            self._written += os.read(self._file, 4096)
        return re.search(pattern, CONTROLS.sub("", self._written.decode(errors="replace")))

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._file)


@pytest.fixture
def terminal(tmp_path, server_url, queue_name):
    script = tmp_path / "script.py"
    script.write_text(REPL)
    terminal = Terminal(str(script), queue_name, server_url)
    yield terminal
    terminal.close()


def test_at_python_s_prompt(terminal, wait_until):
    terminal.type("job.wait()\n")
    wait_until(lambda: terminal.shows("it waits"), 30, "the job")
    terminal.type("\x03")
    wait_until(lambda: terminal.shows(r"Goes on: sleep \(1 of 2 done\)"), 20, "the first word")
    wait_until(lambda: terminal.shows(r"KeyboardInterrupt\s+>>> "), 20, "the prompt")
    terminal.type("\x03")
    wait_until(lambda: terminal.shows(r"Cancelled: sleep \(1 of 2 done\)"), 20, "the second word")
    terminal.type("job.done(), q.submit(abs, -3).result()\n")
    wait_until(lambda: terminal.shows(r"\(True, 3\)"), 20)
    terminal.type("q.shutdown()\n'the ' + 'end'\n")
    wait_until(lambda: terminal.shows("'the end'"), 20)


WITH = """
import os, sys, time
from nbstreamq import TaskQueue
from nbstreamq.client import waiting
from tests.client.conftest import REPOSITORY
from tests.interrupts import interrupt_wait

waiting.SPAN = 60
try:
    with TaskQueue(*sys.argv[1:], workers=2) as queue:
        job = queue.map(time.sleep, [0, 600], chunksize=1)
        job[0].result()
        interrupt_wait()
        try:
            job.wait()
        finally:
            interrupt_wait()
except KeyboardInterrupt:
    print(job[0].result(), job.done(), job[1].cancelled())
"""


def test_the_end_of_a_with_block_waits_again(run_script, server_url, queue_name):
    assert run_script(WITH, queue_name, server_url) == "None True True\n"
