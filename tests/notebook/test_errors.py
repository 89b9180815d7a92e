"""Errors of tasks as IPython shows them: short, with the lines of cells, and at once."""

from __future__ import annotations

import re

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

DEFINE = """\
from nbstreamq import TaskQueue
q = TaskQueue("errors", workers=1)

def invert(x):
    # A line between
    return 1 / x

def middle(x):
    return invert(x)
"""
#: Presses the stop button in a moment.
INTERRUPT = """import os, signal, threading, time
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Return what IPython shows of the errors of these cells."""

    def show(*cells):
        sources = [DEFINE, *cells, "q.shutdown(cancel_futures=True)"]
        notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
        folder = {"metadata": {"path": str(tmp_path_factory.mktemp("errors"))}}
        nbclient.NotebookClient(notebook, timeout=40, allow_errors=True, resources=folder).execute()
        errors = [o for c in notebook.cells for o in c.outputs if o.output_type == "error"]
        return [COLOURS.sub("", "\n".join(error.traceback)) for error in errors]

    return show


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_an_error_about_what_was_given_is_short(shown, jupyter_home):
    calls = {
        "import threading; q.submit(print, threading.Lock())": "A lock works within one process",
        "q.map(abs, [1], chunksize=0)": "chunksize is 0: it must be 'auto' or",
        "q.options(retries=-1)": "retries is -1",
        "def f():\n    %pwd\nq.submit(f)": "the line `%pwd`",
        "def f():\n    %pwd\nq.submit(print, f)": "the line `%pwd`",
        "q.submit(int).result('soon')": "timeout is 'soon'",
        "TaskQueue(2)": "name is 2",
        "q.map(invert, [1]).wait(float('nan'))": "timeout is nan",
        "q.map(abs, [1])[7]": "index is 7: the job has 1 calls",
        "q.map(abs, [1])['x']": "index is 'x': it must be",
        "q.map(abs, [1]).result(errors='ignore')": "errors is 'ignore': it must be",
        "job = q.map(abs, [1], buffersize=1); next(job); job[0]": "has a buffersize",
        "q.submit(int)(block=3)": "block is 3",
        "import nbstreamq; nbstreamq.track(3)": "items is 3",
        "import pickle; pickle.dumps(q)": "A TaskQueue can't be pickled",
        "import pickle; pickle.dumps(q.map(abs, [1]))": "A Job can't be pickled",
        "f = q.options(delay=9).submit(int); f.cancel(); f.result()": "(int) was cancelled",
        "next(q.options(delay=9).map(abs, [1]).as_completed(0.1))": "1 calls are not over",
        "q.map(abs, (1 / 0 for _ in '12'))": "division by zero",
        "await q.map(invert, [0])": "division by zero",
        "import sys; sys.modules['pandas'] = None; q.map(abs, [1]).to_frame()": "needs pandas",
        f"{INTERRUPT}q.options(delay=30).submit(int).result()": "KeyboardInterrupt",
        f"{INTERRUPT}list(q.options(delay=30).map(abs, [1]))": "KeyboardInterrupt",
        "q.options(delay=1).submit(int).result(0.01)": "has no result after 0.01 s",
        "list(q.options(delay=1).map(abs, [1], timeout=0.01))": "TimeoutError",
        "q.options(delay=1).pool().apply_async(int).get(0.01)": "No result after 0.01 s",
        f"{INTERRUPT}q.options(delay=30).pool().apply_async(int).wait()": "KeyboardInterrupt",
        f"{INTERRUPT}time.sleep(30)": "KeyboardInterrupt",  # after another one
    }
    texts = shown(*calls)
    assert len(texts) == len(calls)
    for text, says in zip(texts, calls.values(), strict=True):
        assert says in text
        assert "nbstreamq/" not in text
        assert "/lib/python" not in text
        assert len(text.splitlines()) < 20


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_an_error_of_wrong_arguments_shows_the_definition(shown, jupyter_home):
    wrong = (
        "q.submit(middle, 0, 1)()",
        "q.map(middle, [1], [2]).result()",
        "import functools; q.map(functools.partial(middle, y=1), [1]).result()",
        "q.map(middle, [1], [2], seed=1).result()",
    )
    *texts, of_int = shown(*wrong, "q.map(int, ['one']).result()")
    assert len(texts) == len(wrong)
    for text in texts:
        assert "----> 8 def middle(x):" in text
    for text in (*texts, of_int):
        assert "nbstreamq/" not in text
        assert len(text.splitlines()) < 20
    assert "invalid literal for int" in of_int
    assert "File" not in of_int  # there are no lines of int to show


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_a_task_s_error_is_short_and_shows_the_lines_of_cells(shown, jupyter_home):
    calls = ("q.submit(middle, 0)()", "q.map(middle, [1, 0]).result()", "list(q.map(middle, [0]))")
    texts = shown(*calls)
    assert len(texts) == len(calls)
    for text in texts:
        assert "ZeroDivisionError: division by zero" in text
        assert re.search(r"Cell In\[1\], line 9, in middle", text)
        assert "----> 9     return invert(x)" in text
        assert "----> 6     return 1 / x" in text
        assert re.search(r"Raised in task \S+ \(middle\(0\)\) on worker", text)
        assert "nbstreamq/" not in text
        assert "_base.py" not in text
        assert len(text.splitlines()) < 30
