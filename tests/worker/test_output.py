"""What tasks print comes back: by the right task, in order, soon, and not without end."""

import contextlib
import ctypes
import io
import logging
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from nbstreamq import track
from nbstreamq.wire.messages import Task
from nbstreamq.worker.output import ITEM_LIMIT_BYTES, Output

TASK = Task(job="s.1", n=0, span=(range(2),), fn="f", name="f", call="map", args=b"")

#: Of a logged output: the items' own, and the note that the rest was dropped.
MOST = ITEM_LIMIT_BYTES + 1000


def by_print():
    print("hello")


def by_stderr():
    print("hello", file=sys.stderr)


def by_descriptor():
    os.write(1, b"hello\n")


def by_stderr_descriptor():
    os.write(2, b"hello\n")


def by_buffer():
    sys.stdout.buffer.write(b"hello\n")


def by_subprocess():
    subprocess.run(["echo", "hello"], check=True)


def by_shell():
    os.system("echo hello")


def by_c():
    ctypes.CDLL(None).printf(b"hello\n")


def by_c_puts():
    ctypes.CDLL(None).puts(b"hello")


def by_logging():
    logging.getLogger("x").warning("hello")


def by_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # workers have pytest's filters, which make it an error
        warnings.warn("hello", stacklevel=1)


def by_thread():
    thread = threading.Thread(target=print, args=("hello",))
    thread.start()
    thread.join()


@pytest.fixture
def queue(shared_queue):
    return shared_queue


ALL = [
    by_print,
    by_stderr,
    by_descriptor,
    by_stderr_descriptor,
    by_buffer,
    by_subprocess,
    by_shell,
    by_c,
    by_c_puts,
    by_logging,
    by_warning,
    by_thread,
]


@pytest.mark.parametrize("say", ALL)
def test_output_of_any_origin_comes_back(queue, say, wait_until):
    future = queue.submit(say)

    future.result(20)

    assert "hello" in wait_until(lambda: future.logs, describe="the output")
    assert future.logs.count("\n") == (2 if say is by_warning else 1)


def test_it_is_there_as_soon_as_the_result_is(queue):
    def say():
        print("by Python")
        subprocess.run(["echo", "by another"], check=True)

    for _ in range(20):
        future = queue.submit(say)
        future.result(20)
        assert future.logs == "by Python\nby another\n"


def test_each_item_of_a_map_has_its_own(queue):
    job = queue.map(lambda i: print("item", i), range(300))

    job.result(20)

    assert job.logs == {i: f"item {i}\n" for i in range(300)}


def test_descriptors_are_attributed_to_the_task_that_wrote_to_them(queue):
    def say(word):
        os.write(1, word.encode())

    words = [f"word {i}\n" for i in range(20)]
    futures = [queue.submit(say, word) for word in words]

    assert [f.result(20) for f in futures] == [None] * 20
    assert [f.logs for f in futures] == words


def test_descriptors_are_attributed_to_the_item_that_wrote_to_them(queue):
    def say(i):
        subprocess.run(["echo", f"item {i}"], check=True)
        ctypes.CDLL(None).printf(b"and %d\n", i)

    job = queue.map(say, range(40), chunksize=20)
    job.result(20)

    assert job.logs == {i: f"item {i}\nand {i}\n" for i in range(40)}


def test_those_of_short_items_too(queue):
    job = queue.map(lambda i: os.write(1, b"item %d\n" % i), range(300), chunksize=300)
    job.result(20)

    assert job.logs == {i: f"item {i}\n" for i in range(300)}


def test_those_of_items_that_print_now_and_then_by_python(queue):
    def say(i):
        os.write(1, b"item %d\n" % i)
        if i % 4 == 0:
            print("python")

    job = queue.map(say, range(300), chunksize=300)
    job.result(20)

    assert job.logs == {i: f"item {i}\n" + ("python\n" if i % 4 == 0 else "") for i in range(300)}


def test_those_of_a_chunk_that_is_looked_at_from_outside_meanwhile(queue):
    def say(i):
        os.write(1, b"item %d\n" % i)
        end = time.monotonic() + 3e-4
        while time.monotonic() < end:
            pass

    job = queue.map(say, range(600), chunksize=600)
    job.result(20)

    assert job.logs == {i: f"item {i}\n" for i in range(600)}


def test_what_is_printed_while_arguments_are_unpickled(new_queue):
    class Loud:
        def __reduce__(self):
            return print, ("loading",)

    queue = new_queue(workers=1)
    queue.map(abs, range(50), chunksize=50).result(20)
    future = queue.submit(repr, Loud())

    assert future.result(20) == "None"
    assert future.logs == "loading\n"


def test_items_go_on_while_what_they_printed_is_sent():
    """That may take long; only the end of their task waits for it."""
    output = Output()
    output.enter(TASK, 0)
    steps = [threading.Thread(target=step) for step in (output.look, output.leave)]

    with output.reporting():
        for step in steps:
            step.start()
        steps[0].join(20)
        assert not steps[0].is_alive()
        assert steps[1].is_alive()
    steps[1].join(20)
    assert not steps[1].is_alive()


def test_order_is_kept_among_all_ways(queue, wait_until):
    def say():
        libc = ctypes.CDLL(None)
        for i in range(20):
            print(f"{i} print")
            os.write(1, b"%d write\n" % i)
            libc.printf(b"%d printf\n", i)
            libc.fflush(None)
            sys.stdout.write(f"{i} stream\n")

    future = queue.submit(say)
    future.result(20)

    ways = ("print", "write", "printf", "stream")
    assert future.logs.splitlines() == [f"{i} {way}" for i in range(20) for way in ways]


@pytest.mark.parametrize("say", [by_print, by_descriptor, by_subprocess, by_c, by_thread])
def test_it_comes_while_the_task_still_runs(queue, gate, say, wait_until):
    done = gate()

    def talk():
        say()
        done.wait()

    future = queue.submit(talk)

    assert wait_until(lambda: future.logs, describe="live output") == "hello\n"
    assert not future.done()
    done.open()
    future.result(20)
    assert future.logs == "hello\n"


def test_what_is_typed_without_a_newline_comes_too(queue, gate, wait_until):
    done = gate()

    def talk():
        print("42 %", end="\r")
        done.wait()

    future = queue.submit(talk)

    wait_until(lambda: future.logs == "42 %\r", describe="half a line")
    done.open()
    future.result(20)


def test_text_of_any_kind_survives(queue):
    text = "ä ∀ 🙂 \x1b[1mbold\x1b[0m \x00 end"

    future = queue.submit(print, text)
    future.result(20)

    assert future.logs == text + "\n"


def test_bytes_that_are_no_text_harm_nothing(queue):
    def say():
        os.write(1, b"\xff\xfe ok\n")

    future = queue.submit(say)
    future.result(20)

    assert future.logs.endswith(" ok\n")


def test_characters_are_not_torn_by_a_look_in_the_midst(queue, gate, wait_until):
    done = gate()

    def say():
        data = "before ä".encode()
        os.write(1, data[:-1])
        done.wait()
        os.write(1, data[-1:])

    future = queue.submit(say)
    wait_until(lambda: future.logs.startswith("before"), describe="the first part")
    done.open()
    future.result(20)

    assert future.logs == "before ä"


def test_a_gigabyte_from_print_is_cut(queue):
    def shout():
        for _ in range(1000):
            print("x" * 1_000_000)
        return "alive"

    future = queue.submit(shout)

    assert future.result(50) == "alive"
    assert len(future.logs) < MOST
    assert "the rest is dropped" in future.logs
    assert queue.submit(os.getpid).result(10) > 0


def test_a_gigabyte_from_a_subprocess_is_cut(queue):
    def shout():
        subprocess.run("yes | head -c 1000000000", shell=True, check=True)
        return "alive"

    future = queue.submit(shout)

    assert future.result(50) == "alive"
    assert len(future.logs) < MOST
    assert "the rest is dropped" in future.logs
    assert future.attempts == 1


def test_one_that_prints_too_much_takes_nothing_from_the_next(queue):
    job = queue.map(lambda i: print("x" * (2 * ITEM_LIMIT_BYTES if i == 0 else 10)), range(4))
    job.result(20)

    assert [len(job[i].logs) for i in (1, 2, 3)] == [11] * 3


def test_progress_is_told(queue, wait_until):
    future = queue.submit(lambda: sum(track(range(10))))

    assert future.result(20) == 45
    assert future.progress == (10, 10)


def test_progress_is_told_while_the_task_runs(queue, gate, wait_until):
    done = gate()

    def work():
        for i in track(iter(range(4)), total=4):
            if i == 2:
                done.wait()

    future = queue.submit(work)

    wait_until(lambda: future.progress == (2, 4), describe="live progress")
    done.open()
    future.result(20)
    assert future.progress == (4, 4)


def test_progress_without_a_total(queue):
    future = queue.submit(lambda: list(track(iter("abc"))))

    future.result(20)

    assert future.progress == (3, None)


def test_progress_of_each_item_of_a_map(queue):
    job = queue.map(lambda n: len(list(track(range(n)))), [3, 5, 7])
    job.result(20)

    assert [job[i].progress for i in range(3)] == [(3, 3), (5, 5), (7, 7)]


def test_what_a_thread_prints_after_its_task_is_not_lost(queue, gate, wait_until):
    go = gate()

    def leave_a_thread():
        def late():
            go.wait()
            print("late")

        threading.Thread(target=late, daemon=True).start()

    one = queue.submit(leave_a_thread)
    one.result(20)
    go.open()
    queue.map(lambda _: None, range(50)).result(20)

    # Whose it is can't be told; it must be somebody's, and harm nobody.
    assert queue.submit(lambda: 1).result(20) == 1


@pytest.mark.parametrize("close", [False, True])
def test_a_task_that_replaces_the_streams_silences_no_other(new_queue, close):
    def replace():
        if close:
            sys.stdout.close()
            sys.stderr.close()
        sys.stdout = sys.stderr = io.StringIO()
        print("unheard")

    def say():
        print("out")
        print("err", file=sys.stderr)

    queue = new_queue(workers=1)
    first, second = queue.submit(replace), queue.submit(say)
    second.result(20)
    assert (first.logs, second.logs) == ("", "out\nerr\n")
    job = queue.map(lambda i: replace() if i % 2 else say(), range(4), chunksize=4)
    job.result(20)
    assert job.logs[0] == "out\nerr\n"


def test_a_task_that_waits_keeps_its_redirection(new_queue):
    queue = new_queue(workers=1)

    def outer():
        with contextlib.redirect_stdout(io.StringIO()) as caught:
            print("before")
            inner = queue.submit(print, "inner")
            inner.result(20)
            print("after")
        return caught.getvalue(), inner.logs

    future = queue.submit(outer)
    caught, inner = future.result(20)
    assert inner == "inner\n"
    assert {"before", "after"} <= set(caught.splitlines())
    assert future.logs == ""


def test_a_line_that_is_printed_in_parts_is_shown_whole(new_queue, gate, capsys, wait_until):
    middle = gate()

    def say():
        print("first")
        print("second: begin", end="")
        middle.wait()
        print(", end")
        print("third\x0cis one line", end="")

    queue = new_queue(workers=1)
    future = queue.submit(say)
    wait_until(lambda: future.logs, describe="the first line")
    assert future.logs == "first\n"
    middle.open()
    future.result(20)
    assert future.logs == "first\nsecond: begin, end\nthird\x0cis one line"
    assert capsys.readouterr().out.splitlines(keepends=False)[:2] == [
        "[say 0] first", "[say 0] second: begin, end"
    ]  # fmt: skip


def test_a_prompt_is_shown_while_the_task_waits(new_queue, gate, wait_until):
    done = gate()

    def ask():
        print("Continue? ", end="")
        done.wait()

    future = new_queue(workers=1).submit(ask)
    wait_until(lambda: future.logs == "Continue? ", describe="the prompt")
    done.open()
    future.result(20)
    assert future.logs == "Continue? "
