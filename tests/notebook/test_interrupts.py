"""The stop button, pressed twice, in a real kernel."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("ipykernel")

from jupyter_client.manager import start_new_kernel

#: Seconds after which a kernel hangs.
HANGS = 40
PREPARE = """\
import os, threading, time
from nbstreamq import TaskQueue
from nbstreamq.client import waiting
from tests.interrupts import is_waiting
waiting.SPAN = 60

def tell():
    while not is_waiting(threading.main_thread()):
        time.sleep(0.001)
    print("it waits")

def wait(job):
    threading.Thread(target=tell).start()
    job.wait()

q = TaskQueue("interrupts", workers=4)
job = q.map(time.sleep, [0] * 3 + [600] * 3, chunksize=1)
other = q.map(lambda x: x, range(3))
[job[i].result() for i in range(3)]
"""
LOOP = """\
for i in range(2):
    try:
        print("wait", i)
        wait(job)
    except KeyboardInterrupt:
        pass
"""
STATE = "job.done(), [f.cancelled() for f in job[:]], other.result(20)"
INTACT = f"(False, {[False] * 6}, [0, 1, 2])"
CANCELLED = f"(True, {[False] * 3 + [True] * 3}, [0, 1, 2])"


class Kernel:
    """A kernel, and what it says, by the cell that it says it in."""

    def __init__(self, folder):
        self.manager, self._client = start_new_kernel(kernel_name="python3", cwd=str(folder))
        self._shown = {}

    def start(self, cell):
        """Run a cell; return its number before it is over."""
        return self._client.execute(cell)

    def shows(self, cell, text):
        """Return what the cell has shown, once `text` is in it."""
        end = time.monotonic() + HANGS
        while text not in self._shown.get(cell, ""):
            assert time.monotonic() < end, self._shown
            self._take()
        return self._shown[cell]

    def run(self, cell):
        """Return what a cell shows that takes no time."""
        return self.shows(self.start(cell), "idle")

    def interrupt(self):
        """Do what the stop button does."""
        self.manager.interrupt_kernel()

    def interrupt_by_message(self):
        """Do what it does where kernels are far away, or on Windows."""
        request = self._client.session.msg("interrupt_request")
        self._client.control_channel.send(request)

    def _take(self):
        message = self._client.get_iopub_msg(timeout=HANGS)
        cell, content = message["parent_header"].get("msg_id"), message["content"]
        data = content.get("data", {}).get("text/plain", "")
        words = [content.get("text", ""), data, *content.get("traceback", ())]
        words.append(content.get("execution_state", ""))
        self._shown[cell] = self._shown.get(cell, "") + "\n".join(words)

    def close(self):
        self._client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(jupyter_home, tmp_path):
    """A kernel in which a job waits, with half of it done."""
    kernel = Kernel(tmp_path)
    kernel.run(PREPARE)
    yield kernel
    kernel.run("job.cancel(); q.shutdown()")
    kernel.close()


def interrupt_a_wait(kernel, press):
    cell = kernel.start("wait(job)")
    kernel.shows(cell, "it waits")
    press()
    return cell, kernel.shows(cell, "idle")


pytestmark = pytest.mark.filterwarnings("default")  # of what Jupyter uses


@pytest.mark.parametrize("how", ["interrupt", "interrupt_by_message"])
def test_twice_the_second_time_while_no_cell_runs(kernel, how):
    press = getattr(kernel, how)
    cell, shown = interrupt_a_wait(kernel, press)
    assert "Goes on: sleep (3 of 6 done). To cancel: interrupt again within 60 s" in shown
    assert "KeyboardInterrupt" in shown
    # Where in the wait it came, is left out
    assert "listener.py" not in shown
    # The kernel does other things in between, as notebooks do by themselves
    assert INTACT in kernel.run(STATE)
    press()
    assert "What is done is kept." in kernel.shows(cell, "Cancelled: sleep (3 of 6 done)")
    assert CANCELLED in kernel.run(STATE)


def test_twice_the_second_time_in_another_cell_s_wait(kernel):
    interrupt_a_wait(kernel, kernel.interrupt)
    assert INTACT in kernel.run(STATE)
    _, shown = interrupt_a_wait(kernel, kernel.interrupt)
    assert "Cancelled: sleep (3 of 6 done). What is done is kept." in shown
    assert "Goes on" not in shown
    assert CANCELLED in kernel.run(STATE)


def test_twice_in_one_cell(kernel):
    cell = kernel.start(LOOP)
    for n in range(2):
        kernel.shows(cell, f"wait {n}\nit waits")
        kernel.interrupt()
    assert "Cancelled: sleep (3 of 6 done)" in kernel.shows(cell, "idle")
    assert CANCELLED in kernel.run(STATE)


def test_later_it_is_ignored_while_no_cell_runs(kernel):
    kernel.run("waiting.SPAN = 0")
    interrupt_a_wait(kernel, kernel.interrupt)
    kernel.interrupt()
    assert INTACT in kernel.run(STATE)
    usual = "import signal, IPython\nIPython.get_ipython().kernel.saved_sigint_handler"
    assert "SIG_IGN" in kernel.run(usual)
