"""Kernels in two folders, each with its own data.csv and utils.py: calls run in their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings

#: Seconds for one cell.
CELL_TIMEOUT = 60.0
#: How often each function is called: enough for every worker to get some.
N_CALLS = 60


class Kernel:
    """A running kernel."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.manager, self._client = start_new_kernel(
            cwd=str(folder), env=os.environ | env, kernel_name="python3"
        )

    def run(self, code: str) -> None:
        """Run a cell."""
        said: list[Any] = []
        reply = self._client.execute_interactive(
            code, timeout=CELL_TIMEOUT, output_hook=lambda message: said.append(message["content"])
        )
        assert reply["content"]["status"] == "ok", said

    def value(self, expression: str) -> Any:
        """Return the value of an expression, by way of JSON."""
        found: list[str] = []

        def keep(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                found.append(message["content"]["text"])

        self._client.execute_interactive(
            f"import json; print(json.dumps({expression}))", timeout=CELL_TIMEOUT, output_hook=keep
        )
        return json.loads("".join(found))

    def close(self) -> None:
        self._client.stop_channels()
        if self.manager.is_alive():
            self.manager.shutdown_kernel()
        self.manager.cleanup_resources()


@pytest.fixture
def kernel_in(jupyter_home, short_folder, monkeypatch) -> Iterator[Callable[..., Kernel]]:
    """``kernel_in(folder, **env)``: a new kernel with the embedded server of this test."""
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    kernels: list[Kernel] = []

    def start(folder: Path, **env: str) -> Kernel:
        kernels.append(Kernel(folder, env))
        return kernels[-1]

    yield start
    for kernel in kernels:
        kernel.close()
    stop_server(Settings.from_environment())


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """Two folders with different files of the same names."""
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        folder.mkdir()
        (folder / "data.csv").write_text(folder.name)
        (folder / "utils.py").write_text(f"WHERE = {folder.name!r}\n")
    return made


LOOK = """
def look(_):
    import time, utils
    time.sleep(0.01)
    with open("data.csv") as file:
        return file.read(), utils.WHERE
"""
NAME = "from nbstreamq import TaskQueue\nq = TaskQueue(workers=2)"


# -- whose queue it is --------------------------------------------------------------------------


def test_it_belongs_to_the_notebook_that_jupyter_tells(kernel_in, tmp_path):
    kernel = kernel_in(tmp_path, JPY_SESSION_NAME=str(tmp_path / "analysis.ipynb"))
    kernel.run(NAME)
    name = kernel.value("q.name")
    kernel.close()
    again = kernel_in(tmp_path, JPY_SESSION_NAME=str(tmp_path / "analysis.ipynb"))
    again.run(NAME)

    assert name.startswith("analysis.ipynb-")
    assert again.value("q.name") == name


def test_it_belongs_to_the_notebook_that_vs_code_tells(kernel_in, tmp_path):
    kernel = kernel_in(tmp_path, JPY_SESSION_NAME="analysis-jvsc-1234.ipynb")
    kernel.run(f"__vsc_ipynb_file__ = {str(tmp_path / 'analysis.ipynb')!r}\n{NAME}")

    assert kernel.value("q.name").startswith("analysis.ipynb-")


def test_without_a_path_it_belongs_to_the_folder(kernel_in, folders):
    kernels = [kernel_in(folder) for folder in folders]
    for kernel in kernels:
        kernel.run(NAME)

    assert kernels[0].value("q.name").startswith("one-")
    assert kernels[1].value("q.name").startswith("two-")


def test_a_kernel_that_a_notebook_starts_is_not_that_notebook(kernel_in, folders):
    kernel = kernel_in(folders[0], JPY_SESSION_NAME=str(folders[0] / "analysis.ipynb"))
    kernel.run(
        "from jupyter_client.manager import start_new_kernel\n"
        f"manager, client = start_new_kernel(cwd={str(folders[1])!r}, kernel_name='python3')\n"
        "said = []\n"
        "client.execute_interactive('import nbstreamq; q = nbstreamq.TaskQueue(workers=0);'\n"
        "    'print(q.name)', output_hook=lambda m: said.append(m['content'].get('text', '')))\n"
        "client.stop_channels(); manager.shutdown_kernel(); manager.cleanup_resources()\n"
    )

    assert kernel.value("''.join(said)").startswith("two-")


def test_the_magics_use_it(kernel_in, tmp_path):
    kernel = kernel_in(tmp_path, JPY_SESSION_NAME=str(tmp_path / "analysis.ipynb"))
    kernel.run("%load_ext nbstreamq\n%workers 1")

    assert kernel.value("q.name").startswith("analysis.ipynb-")


# -- where its calls run ------------------------------------------------------------------------


def test_two_notebooks_read_their_own_files(kernel_in, folders):
    kernels = [kernel_in(folder) for folder in folders]
    for kernel in kernels:
        kernel.run(f"{NAME}\n{LOOK}")
        kernel.run(f"job = q.map(look, range({N_CALLS}))")

    for kernel, folder in zip(kernels, folders, strict=True):
        own = [folder.name, folder.name]
        assert kernel.value("job.result()") == [own] * N_CALLS
        assert kernel.value(f"[q.submit(look, i).result() for i in range({N_CALLS})]") == (
            [own] * N_CALLS
        )


def test_stopping_the_workers_of_one_leaves_those_of_the_other(kernel_in, folders):
    kernels = [kernel_in(folder) for folder in folders]
    for kernel in kernels:
        kernel.run("from nbstreamq import TaskQueue\nq = TaskQueue('shared', workers=2)")
        kernel.run("q.submit(int).result()")
    kernels[1].run("%load_ext nbstreamq\n%workers 0")
    kernels[1].run("q.shutdown()")

    kernels[0].run("assert q.map(abs, range(60)).result(30) == list(range(60))")
    assert kernels[0].value("len(q.workers())") == 2
