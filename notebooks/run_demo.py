"""Run the quickstart notebook without a browser, and say what came of it: ``make demo``.

The notebook runs in a new kernel, from a copy in memory; the saved file stays as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from traitlets.config import Config

NOTEBOOK = Path(__file__).parent / "01-quickstart.ipynb"
#: Seconds that one cell may take. The longest is the search: 20 s on two cores.
CELL_TIMEOUT = 300
#: Runs after the last cell: names of the notebook, as one line of JSON.
REPORT = """
import json
print(json.dumps(dict(
    n_workers=n_workers, n_settings=len(settings), n_sample=len(sample), best=best,
    best_score=best_score, plain_seconds=plain_seconds, map_seconds=map_seconds, speedup=speedup,
)))
"""


def main(path: Path = NOTEBOOK) -> None:
    """Run the notebook at `path`; exits with 1 and the traceback if a cell fails."""
    say(f"Running {path.parent.name}/{path.name} in a kernel of its own:\n")
    try:
        figures = run(nbformat.read(path, as_version=4))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        sys.exit(f"\nThe notebook failed:\n{error}")
    say(summary(**figures))


def run(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Run all cells, print each heading when it is reached; return the notebook's figures."""
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT.strip()))
    began = time.monotonic()

    def show_heading(cell: nbformat.NotebookNode, **_: Any) -> None:
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading = cell.source.splitlines()[0].lstrip("# ").replace("`", "")
            say(f"  {time.monotonic() - began:5.1f} s  {heading}")

    with tempfile.TemporaryDirectory(prefix="nbq") as folder:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            on_cell_start=show_heading,
            config=local_kernel(folder),
        )
        client.execute()
    return json.loads(notebook.cells[-1].outputs[-1].text)


def local_kernel(folder: str) -> Config:
    """Return the configuration of a kernel that is reached through `folder`, not through ports."""
    return Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def summary(
    *,
    n_workers: int,
    n_settings: int,
    n_sample: int,
    best: dict[str, float],
    best_score: float,
    plain_seconds: float,
    map_seconds: float,
    speedup: float,
) -> str:
    """Return what came of the search, for people."""
    return f"""
Searched {n_settings} settings of a support vector machine, on scikit-learn's digits.
  workers      {n_workers}
  best score   {best_score:.2%}, at C={best["C"]:.3g}, gamma={best["gamma"]:.3g}
  plain loop   {plain_seconds:.1f} s (measured on {n_sample} of the settings, drawn at random)
  q.map        {map_seconds:.1f} s, {speedup:.2f} times as fast

Open it yourself:  .venv/bin/jupyter lab notebooks/{NOTEBOOK.name}"""


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
