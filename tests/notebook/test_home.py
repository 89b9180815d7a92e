"""Kernels in two folders, each with its own data.csv and utils.py: calls run in their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
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

    def error(self, code: str) -> str:
        """Return the error that a cell raises."""
        reply = self._client.execute_interactive(
            code, timeout=CELL_TIMEOUT, output_hook=lambda _: None
        )
        return str(reply["content"]["evalue"])

    def kill(self) -> None:
        """End it at once."""
        self.manager.shutdown_kernel(now=True)

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
def start_command() -> Iterator[Callable[[str], None]]:
    """``start_command(text)``: run a command line until the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: str) -> None:
        started.append(subprocess.Popen(["bash", "-c", f"{command.replace('&& ', '&& exec ')}"]))

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.fixture
def start_worker(start_command) -> Callable[[str, Path], None]:
    """``start_worker(queue, folder)``: `nbstreamq worker` there."""
    return lambda queue, folder: start_command(
        f"cd {folder} && {sys.executable} -m nbstreamq worker -n 2 --queue {queue}"
    )


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


SHARED = "from nbstreamq import TaskQueue\nq = TaskQueue('shared', workers={workers})\n"


@pytest.fixture
def sharing(kernel_in, folders) -> list[Kernel]:
    """A kernel in each folder, with two workers each in a queue that they share by name."""
    kernels = [kernel_in(folder) for folder in folders]
    for kernel in kernels:
        kernel.run(SHARED.format(workers=2) + LOOK)
        kernel.run("q.submit(int).result()")
    return kernels


def test_in_a_shared_queue_calls_run_on_workers_of_their_kernel(sharing, folders):
    nested = (
        "def outer(n):\n"
        "    from nbstreamq import TaskQueue\n"
        "    with TaskQueue() as q:\n"
        "        return [look(n), *q.map(look, range(2)).result()]\n"
    )
    for kernel in sharing:
        kernel.run(
            f"job = q.map(look, range({N_CALLS}), chunksize=1)\n"
            f"urgent = q.options(lane='high').map(look, range({N_CALLS}), chunksize=1)\n"
            f"calls = [q.submit(look, i) for i in range({N_CALLS})]\n"
            "late = q.options(delay=0.2).submit(look, 0)\n"
        )
        kernel.run(f"{nested}deep = q.map(outer, range(4), chunksize=1)")

    for kernel, folder in zip(sharing, folders, strict=True):
        own = [folder.name, folder.name]
        assert kernel.value("job.result(60)") == [own] * N_CALLS
        assert kernel.value("urgent.result(60)") == [own] * N_CALLS
        assert kernel.value("[c.result(60) for c in calls]") == [own] * N_CALLS
        assert kernel.value("late.result(60)") == own
        assert kernel.value("deep.result(60)") == [[own] * 3] * 4


def test_in_a_shared_queue_retries_stay_at_home(sharing, folders):
    program = (
        "def flaky(n):\n"
        "    import os\n"
        "    try:\n"
        "        os.close(os.open(f'tried-{n}', os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n"
        "        return look(n)\n"
        "    raise ValueError('once')\n"
        "job = q.options(retries=1, backoff=0.05).map(flaky, range(20), chunksize=2)"
    )
    for kernel in sharing:
        kernel.run(program)

    for kernel, folder in zip(sharing, folders, strict=True):
        assert kernel.value("job.result(60)") == [[folder.name, folder.name]] * 20


def test_a_set_up_is_for_workers_of_its_kernel(sharing, folders):
    sharing[0].run("job = q.everywhere(look, 0)")
    sharing[1].run("q.run(3)")

    own = [folders[0].name, folders[0].name]
    assert sharing[0].value("job.result(60)") == [own] * 2


def test_the_add_button_counts_the_kernel_s_own_workers(sharing, wait_until):
    count = "len([w for w in q.workers() if w.state != 'leaving'])"
    before = sharing[0].value(count)
    sharing[0].run("q.map(look, range(2)); q._session.workers.add_local()")
    assert sharing[0].value("q._session.workers.local.n_workers") == 3
    wait_until(lambda: sharing[0].value(count) == before + 1, 30, "one more worker")


def test_the_lanes_of_homes_go_when_they_are_empty(sharing, wait_until):
    for kernel in sharing:
        kernel.run("job = q.map(look, range(40), chunksize=1)")
    for kernel in sharing:
        kernel.value("job.result(60)")

    lanes = "[lane for lane in q._session.ask(lambda store: store.home_lanes())]"
    wait_until(lambda: sharing[0].value(lanes) == [], 30, "no lanes of homes")


def test_a_kernel_without_workers_does_not_use_those_of_others(
    sharing, kernel_in, folders, start_worker
):
    third = kernel_in(folders[0])
    third.run(SHARED.format(workers=0) + LOOK)
    third.run(f"calls = [q.submit(look, i) for i in range({N_CALLS})]")
    third.run("import warnings; warnings.simplefilter('error', RuntimeWarning)")

    said = third.error("calls[0].result(20)")
    assert "no workers but those of other kernels" in said
    assert "nbstreamq worker --queue shared" in said
    start_worker("shared", folders[1])
    own = [folders[1].name, folders[1].name]
    assert third.value("[c.result(60) for c in calls]") == [own] * N_CALLS


# -- named jobs ---------------------------------------------------------------------------------

HELD = """
def held(n):
    import os, time, utils
    open(f"begun-{n}", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return utils.WHERE, os.getpid()
"""


def test_named_jobs_run_on_all_workers_of_their_folder(sharing, kernel_in, folders, wait_until):
    twin = kernel_in(folders[0])
    twin.run(SHARED.format(workers=2) + "q.run(2); pids = {w.pid for w in q.workers()}")
    sharing[0].run(HELD + "job = q.map(held, range(4), chunksize=1, name='sweep')")
    wait_until(lambda: len(list(folders[0].glob("begun-*"))) == 4, 30, "four at once")
    (folders[0] / "go").touch()

    found = sharing[0].value("job.result(60)")

    assert {where for where, _ in found} == {"one"}
    assert len({pid for _, pid in found}) == 4
    assert twin.value("[w for w, _ in q.attach('sweep').result(60)]") == ["one"] * 4
    assert sharing[1].value("[w for w, _ in q.attach('sweep').result(60)]") == ["one"] * 4


def test_a_restarted_kernel_gets_fresh_workers_and_old_ones_finish_named_jobs(
    kernel_in, folders, wait_until
):
    first = kernel_in(folders[0])
    first.run(SHARED.format(workers=2) + HELD)
    first.run("job = q.map(held, range(2), chunksize=1, name='sweep')")
    wait_until(lambda: len(list(folders[0].glob("begun-*"))) == 2, 30, "both run")
    old = first.value("[w.pid for w in q.workers()]")
    first.kill()
    second = kernel_in(folders[0])
    second.run(SHARED.format(workers=2) + "import os")
    fresh = second.value("q.map(lambda _: os.getpid(), range(20), chunksize=1).result(60)")
    (folders[0] / "go").touch()

    found = second.value("q.attach('sweep').result(60)")

    assert {pid for _, pid in found} == set(old)
    assert not set(fresh) & set(old)
    wait_until(lambda: not any(map(psutil.pid_exists, old)), 30, "the old ones' end")


@pytest.mark.timeout(150)
def test_a_named_job_without_workers_says_which_command_runs_it(
    kernel_in, folders, wait_until, start_command
):
    first = kernel_in(folders[0])
    first.run(SHARED.format(workers=0) + LOOK + "job = q.map(look, range(6), name='sweep')")
    wait_until(lambda: first.value("q.jobs()[0].complete"), 30, "all is submitted")
    first.kill()
    second = kernel_in(folders[1])
    second.run(SHARED.format(workers=2) + "job = q.attach('sweep')")
    second.run("assert q.submit(abs, -1).result(60) == 1")
    second.run("import warnings; warnings.simplefilter('error')")

    command = f"cd {folders[0]} && {sys.executable} -m nbstreamq worker --queue shared"
    assert command in second.error("job.result(20)")
    assert command in second.value("str(q.status())")
    assert command in second.value("job._session.survey(job._table)[1]")
    start_command(command)
    assert second.value("job.result(60)") == [["one", "one"]] * 6


def test_stopping_the_workers_of_one_leaves_those_of_the_other(kernel_in, folders):
    kernels = [kernel_in(folder) for folder in folders]
    for kernel in kernels:
        kernel.run("from nbstreamq import TaskQueue\nq = TaskQueue('shared', workers=2)")
        kernel.run("q.submit(int).result()")
    kernels[1].run("%load_ext nbstreamq\n%workers 0")
    kernels[1].run("q.shutdown()")

    kernels[0].run("assert q.map(abs, range(60)).result(30) == list(range(60))")
    assert kernels[0].value("len(q.workers())") == 2
