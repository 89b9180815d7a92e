"""Waits of more than a second show progress by themselves: in a terminal, and below a cell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pexpect
import pytest
from nbclient import NotebookClient

from nbstreamq.notebook.terminal import line_text
from nbstreamq.notebook.view import JobView
from tests.real_workers import new_queue, queue

__all__ = ["new_queue", "queue"]

ROOT = Path(__file__).parents[2]
BEGIN = """\
import sys, time
from nbstreamq import TaskQueue
q = TaskQueue("progress", sys.argv[1], workers=2)

def slow(x):
    time.sleep(0.4)
    print("printed", x)
    return x

"""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def write_script(tmp_path, server_url, monkeypatch):
    """``write_script(source)`` returns the command that runs it with a queue ``q``."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TERM", "xterm")

    def write(source):
        path = tmp_path / "script.py"
        path.write_text(BEGIN + source)
        return [sys.executable, str(path), server_url]

    return write


def on_terminal(command):
    """Return what a command writes on a terminal, until it has ended well."""
    program = pexpect.spawn(
        command[0], command[1:], timeout=50, encoding="utf-8", dimensions=(24, 110)
    )
    program.expect(pexpect.EOF)
    program.close()
    assert program.exitstatus == 0, program.before
    return program.before


def as_seen(text):
    """Return the lines that stay on a terminal where lines are erased, and drawn again."""
    lines = [line.rpartition("\x1b[2K")[2] for line in text.replace("\r\n", "\n").split("\n")]
    return [plain for line in lines if (plain := ANSI.sub("", line).strip("\r"))]


LOOP = """\
import joblib
with joblib.parallel_config(q.joblib()):
    joblib.Parallel(){}joblib.delayed(time.sleep)(0.4) for _ in range(8){}
"""
WAITS = {
    "iteration": "for r in q.map(slow, range(8), chunksize=1): pass",
    "a result": "q.submit(time.sleep, 2).result()",
    "shutdown": "q.submit(time.sleep, 2); q.shutdown()",
    "the exit": "q.submit(time.sleep, 2)",
    "short waits": "[f.result() for f in [q.submit(time.sleep, 0.2) for _ in range(20)]]",
    "short calls": "for _ in range(20): q.submit(time.sleep, 0.1).result()",
    "a loop of joblib": LOOP.format("([", "])"),
}


@pytest.mark.parametrize("how", WAITS)
def test_a_line_on_a_terminal_moves_while_a_script_waits(write_script, how):
    text = on_terminal(write_script(WAITS[how]))
    assert re.search(r"\d of (1|8|1?\d|20) done", ANSI.sub("", text))
    stays = [line for line in as_seen(text) if "before Python exits" not in line]
    # What tasks print stays, each in its own line; the progress does not
    printed = [f"[slow {i}] printed {i}" for i in range(8)] if how == "iteration" else []
    assert sorted(stays) == printed


def test_a_loop_of_joblib_whose_length_is_not_known_shows_counts_only(write_script):
    text = ANSI.sub("", on_terminal(write_script(LOOP.format("(", " if not time.sleep(0.3))"))))
    assert re.search(r"sleep ━+ \d done", text)


SILENT = """\
def inner():
    return q.submit(time.sleep, 2).result()

q.options(progress=False).submit(time.sleep, 2).result()
q.options(progress=False).map(time.sleep, [2]).result()
"""
TQDM = """\
import tqdm
bar = tqdm.tqdm(total=1, file=open(__file__ + ".bar", "w"))
q.submit(time.sleep, 2).result()
bar.close()
"""


def test_where_it_is_switched_off(write_script, monkeypatch):
    assert on_terminal(write_script(SILENT)) == ""
    pytest.importorskip("tqdm")
    assert on_terminal(write_script(TQDM)) == ""
    monkeypatch.setenv("NBSTREAMQ_PROGRESS", "0")
    assert on_terminal(write_script("q.submit(time.sleep, 2).result()")) == ""


def test_a_line_that_is_too_long_is_brief_and_then_ends_with_an_ellipsis(queue):
    def f(x):
        return x

    job = queue.map(f, range(20_000))
    job.wait(30)
    picture = JobView(job).picture()
    wide, narrow, tiny = (ANSI.sub("", line_text(picture, n)) for n in (90, 50, 30))
    assert "/s" in wide
    assert re.fullmatch(r"f ━+ 20,000 of 20,000 done · [\d.]+ s", narrow)
    assert re.fullmatch(r"f ━+ 20,000 of.*…", tiny)
    assert (len(narrow), len(tiny)) == (50, 30)


def test_nothing_is_written_where_there_is_no_terminal(write_script):
    done = subprocess.run(
        write_script("q.submit(time.sleep, 2).result()"),
        capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


CELLS = [
    "import time\nfrom nbstreamq import TaskQueue\nq = TaskQueue('progress', workers=2)",
    "q.submit(time.sleep, 1.5).result()\n'waited'",
    "job = q.map(time.sleep, [0.4] * 8, chunksize=1)\nfor r in job: pass",
    "job = q.map(time.sleep, [0.4] * 8, chunksize=1)\njob",
    "job.result()\n'not twice'",
    "q.options(progress=False).map(time.sleep, [1.5]).wait()",
    "calls = [q.submit(time.sleep, s) for s in (1.5, 1.5, 3, 3)]\n[c.result() for c in calls]\n4",
    "[c.result() for c in [q.submit(time.sleep, 0.2) for _ in range(20)]]\n'short waits'",
    "for i in range(20): q.submit(time.sleep, 0.1 * (i != 7)).result()\n'short calls'",
    "def fail(x):\n    time.sleep(0.3)\n    1 / x",
    "[q.submit(fail, 0).exception() for _ in range(5)]\n5",
    LOOP.format("([", "])"),
    "q.submit(time.sleep, 1.5)\nq.shutdown()",
]


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_a_view_appears_below_the_cell_that_waits(jupyter_home, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, CELLS)))
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=40, resources=folder).execute()
    shown = [
        [re.sub("<[^>]*>", "", o.data.get("text/html", o.data["text/plain"])) for o in c.outputs]
        for c in notebook.cells
    ]
    called, (iterated,), (displayed,), not_twice, switched_off, calls, *others = shown[1:]
    waits, short, _, failed, (loop,), (ended,) = others
    assert "1 of 1 done" in called[0]
    assert called[1:] == ["'waited'"]
    assert "8 of 8 done" in iterated
    assert "8 of 8 done" in displayed
    assert not_twice == ["'not twice'"]
    assert switched_off == []
    assert len(calls) == 2  # one view of all, and the value
    assert "4 of 4 done" in calls[0]
    # Waits of one cell belong together, however short each one is
    assert "20 of 20 done" in waits[0]
    assert waits[1:] == ["'short waits'"]
    assert "20 of 20 done" in short[0]
    assert short[1:] == ["'short calls'"]
    assert "0 of 5 done · 5 failed" in failed[0]
    assert "retry" not in failed[0]
    assert len(failed) == 2
    assert "8 of 8 done" in loop
    assert "1 of 1 done" in ended


SAVED = [
    "%load_ext nbstreamq",
    "job = q.map(abs, range(40))\njob",
    "%%task\n'it is done'",
    "future = q.submit(str.upper, 'shout')\nfuture",
    "job.result(), _task.result(), future.result();",
    # No cell waits for the rest, and the kernel ends before it is over.
    "import time\nlong = q.map(time.sleep, [0.1] * 2 + [60] * 2, chunksize=1)\nlong",
    "long[0].result(), long[1].result();",
    "%%task\nimport time\ntime.sleep(60)",
    "future = q.submit(time.sleep, 60)\nfuture",
]


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_a_notebook_that_is_run_at_once_is_saved_with_what_came_of_it(jupyter_home, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, SAVED)))
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=40, resources=folder).execute()
    job, task, future = (cell.outputs[0].data for cell in notebook.cells[1:4])
    assert "40 of 40 done" in job["text/html"]
    assert task["text/plain"] == "'it is done'"
    assert "SHOUT" in future["text/html"]
    long, task, future = (notebook.cells[n].outputs[0].data for n in (5, 7, 8))
    assert long.keys() == {"text/html", "text/plain"}  # no widget, which only a kernel brings up
    assert "2 of 4 done" in long["text/html"]
    assert re.search(r"Not over at <time [^>]*>[-0-9: ]+ UTC</time>", long["text/html"])
    assert " left" not in long["text/html"]
    assert re.search(r"sent at [0-9:]+ UTC, not over yet", task["text/plain"])
    assert re.search(r">waiting at <time", future["text/html"])


def test_it_is_a_choice_between_two(monkeypatch, server_url):
    monkeypatch.setenv("NBSTREAMQ_PROGRESS", "perhaps")
    command = [sys.executable, "-c", "import nbstreamq; nbstreamq.TaskQueue('p', workers=0)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert "NBSTREAMQ_PROGRESS is 'perhaps': it must be" in done.stderr
