"""The listing that the project grew from runs word for word, in a script and in a notebook."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEED = """\
queue = TaskQueue('my-queue')

@queue.task
def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return b

queue.run(nworkers=4)              # run 4 local workers; again, it changes nothing
fib100k = fib(100000)              # a message in the stream; a future comes back
print(str(fib100k())[-6:])         # calling the future blocks for the result
fib100k(block=False); fib100k(timeout=3)
queue.shutdown()
"""
IMPORT = "from nbstreamq import TaskQueue\n"
#: Last digits of the 100001st Fibonacci number, which is what the listing computes.
PRINTED = "537501"


@pytest.fixture
def any_digits(monkeypatch, jupyter_home):
    """Since 3.11 Python converts no int of more than 4300 digits, unless told to."""
    monkeypatch.setenv("PYTHONINTMAXSTRDIGITS", "0")


def test_in_a_script(any_digits, tmp_path):
    script = tmp_path / "seed.py"
    script.write_text(IMPORT + SEED)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{PRINTED}\n", "")
    assert done.returncode == 0


@pytest.mark.filterwarnings("default")  # of what Jupyter uses
def test_in_a_notebook(any_digits, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [IMPORT, *SEED.split("\n\n"), "import os; os.getpid()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=40, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    printed = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert printed == f"{PRINTED}\n"
    assert not [o for o in outputs if o.output_type == "error"]
    assert int(outputs[-1].data["text/plain"]) != os.getpid()
