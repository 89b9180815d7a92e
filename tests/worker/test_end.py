"""A worker ends as any Python process does: files are flushed, what was registered is called."""

import atexit
import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest


@pytest.fixture(params=["fork", "spawn"])
def queue(request, new_queue, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_START_METHOD", request.param)
    return new_queue(workers=1)


def shut_down(queue):
    queue.shutdown()


def scale_in(queue):
    queue.run(0)


def send_signal(queue):
    psutil.Process(queue.submit(os.getpid).result(20)).terminate()


def keep(thing):
    """Keep it as long as the process lives."""
    import builtins

    builtins.__dict__.setdefault("kept_by_tests", []).append(thing)


def leave(folder):
    """Leave everything open; return the temporary folder."""
    text = (folder / "text").open("w")
    text.write("a text")
    keep(text)
    data = (folder / "bytes").open("wb")
    data.write(b"bytes")
    keep(data)
    temporary = tempfile.TemporaryDirectory()
    keep(temporary)
    atexit.register((folder / "called").touch)
    return temporary.name


def is_complete(folder, temporary):
    def read(name):
        with contextlib.suppress(FileNotFoundError):
            return (folder / name).read_bytes()

    is_called = read("called") is not None and not Path(temporary).exists()
    return is_called and (read("text"), read("bytes")) == (b"a text", b"bytes")


@pytest.mark.parametrize("end", [shut_down, scale_in, send_signal])
def test_what_tasks_left_open_is_complete(queue, tmp_path, wait_until, end):
    temporary = queue.submit(leave, tmp_path).result(20)
    assert Path(temporary).exists()

    end(queue)

    wait_until(lambda: is_complete(tmp_path, temporary), timeout=30, describe="all files")


def test_a_thread_that_never_ends_does_not_hold_up_the_end(queue, tmp_path, wait_until):
    def work():
        threading.Thread(target=time.sleep, args=(600,)).start()
        return leave(tmp_path), os.getpid()

    temporary, pid = queue.submit(work).result(20)

    queue.run(0)

    wait_until(lambda: not psutil.pid_exists(pid), timeout=30, describe="its end")
    assert is_complete(tmp_path, temporary)


def test_nor_does_what_was_registered(queue, tmp_path, wait_until):
    def work():
        found = leave(tmp_path), os.getpid()
        atexit.register(time.sleep, 600)
        return found

    _, pid = queue.submit(work).result(20)

    queue.run(0)

    wait_until(lambda: not psutil.pid_exists(pid), timeout=30, describe="its end")
    assert (tmp_path / "text").read_text() == "a text"


def test_what_a_task_submitted_and_did_not_wait_for_is_run_by_others(queue, new_queue, tmp_path):
    other = new_queue(workers=0)

    def work():
        other.submit((tmp_path / "done").touch)

    queue.submit(work).result(20)
    queue.run(0)
    queue.run(1)

    assert queue.submit(abs, -1).result(20) == 1
    end = time.monotonic() + 20
    while not (tmp_path / "done").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / "done").exists()
