"""The notebooks: they run from top to bottom, and what is saved of them is fit for strangers."""

from __future__ import annotations

import getpass
import importlib.util
import re
import socket
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
#: What a saved notebook may not tell of the machine that it ran on.
TRACES = {
    "a path": r"(?<![\w.<])/(?:home|root|Users|tmp|var|usr|opt|mnt|srv|private)/",
    "an installed file": r"site-packages|ipykernel_\d+",
    "an address": r"\b(?:unix|rediss?|valkey)://|\.sock\b|\b\d{1,3}(?:\.\d{1,3}){3}\b",
    "a long hexadecimal number, such as a key": r"\b[0-9a-f]{24,}\b",
    "a secret": r"(?i)(?:secret|token|password)\s*[=:]",
}


def name_of(path):
    return path.stem


def load_demo():
    spec = importlib.util.spec_from_file_location("run_demo", NOTEBOOKS[0].with_name("run_demo.py"))
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


@pytest.fixture
def demo(jupyter_home):
    return load_demo()


@pytest.fixture
def notebook_of(tmp_path):
    """Save a notebook with the given code cells, and return its path."""

    def save(*sources):
        cells = [nbformat.v4.new_markdown_cell("# A heading\n\nText.")]
        cells += map(nbformat.v4.new_code_cell, sources)
        path = tmp_path / "some.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return save


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def texts(path):
    """Yield what a reader sees of the outputs, pictures left out."""
    for cell in code_cells(path):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from output.get("traceback", ())
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield str(data)


def traces_in(text):
    found = [what for what, pattern in TRACES.items() if re.search(pattern, text)]
    names = {getpass.getuser(), socket.gethostname(), str(Path.home())} - {"root", "user"}
    return found + [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


# -- as they run --------------------------------------------------------------------------------


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_from_top_to_bottom(path, demo, jupyter_home):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(jupyter_home)}},
        config=demo.local_kernel(str(jupyter_home)),
    )
    client.execute()
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")


# -- as they are saved --------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_saved_as_it_ran(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert {output.output_type for output in outputs} <= {
        "stream",
        "execute_result",
        "display_data",
    }
    assert {output.get("name") for output in outputs} <= {None, "stdout"}  # no warnings


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_saved_notebook_tells_nothing_of_its_machine(path):
    assert [(text, found) for text in texts(path) if (found := traces_in(text))] == []


@pytest.mark.parametrize(
    "text",
    [
        "File /home/ann/x.py",
        "in /mnt/data/x",
        "unix:///x",
        "NBSTREAMQ_SECRET=x",
        "on 10.0.0.1",
        "0123456789abcdef" * 2,
        f"pid 12 on {socket.gethostname()}",
    ],
)
def test_such_traces_would_be_found(text):
    assert traces_in(text)


# -- the demonstration --------------------------------------------------------------------------


def test_the_demo_prints_the_figures_of_its_own_run(demo, notebook_of, capsys):
    path = notebook_of(
        "settings, sample = [0] * 77, [0] * 11",
        "n_workers, best, best_score = 5, {'C': 8.0, 'gamma': 0.5}, 0.875\n"
        "plain_seconds, map_seconds, speedup = 60.0, 20.0, 3.0",
    )
    before = path.read_bytes()
    demo.main(path)
    printed = capsys.readouterr().out
    assert "A heading" in printed
    for figure in ("77 settings", "workers      5", "87.50%", "60.0 s", "20.0 s, 3.00 times"):
        assert figure in printed
    assert path.read_bytes() == before


def test_the_demo_fails_with_the_traceback_of_the_cell(demo, notebook_of):
    path = notebook_of("1 / 0")
    with pytest.raises(SystemExit) as exit_:
        demo.main(path)
    assert "1 / 0" in exit_.value.code
    assert "ZeroDivisionError" in exit_.value.code
