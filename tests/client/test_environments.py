"""Workers with other packages than the client: what is said of them, and when."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from nbstreamq.cli import main
from nbstreamq.environment import Environment
from nbstreamq.notebook.terminal import job_text
from nbstreamq.notebook.view import JobView
from nbstreamq.objects.imports import modules_used

CODE = "def answer(): return 42\n"


def install(folder: Path, **versions: str) -> Path:
    """Install modules in a folder, as pip does, and return it."""
    for name, version in versions.items():
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (about / "top_level.txt").write_text(f"{name}_module\n")
        (folder / f"{name}_module.py").write_text(CODE)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, server_url):
    """A worker with other packages than this process; gives the name of its queue."""
    ours = install(tmp_path_factory.mktemp("ours"), rice="2.2", salt="1.0", tea="1.0", oil="5")
    theirs = install(tmp_path_factory.mktemp("theirs"), rice="2.1", salt="1.1", oil="5")
    name = f"environments-{os.getpid()}"
    command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "--queue", name, "-n", "1"]
    environ = os.environ | {"PYTHONPATH": f"{theirs}:{Path(__file__).parents[2]}"}
    worker = subprocess.Popen(command, env=environ, cwd=theirs.parent, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ours))
        yield name
    worker.terminate()
    worker.wait(20)


@pytest.fixture
def queue(foreign, server_url, wait_until):
    from nbstreamq import TaskQueue

    with TaskQueue(foreign, server_url, workers=0) as queue:
        wait_until(queue.workers, timeout=30, describe="the worker")
        yield queue


def test_it_is_said_before_the_first_result_which_packages_matter(queue):
    def cook():
        import rice_module

        return rice_module.answer()

    with pytest.warns(RuntimeWarning, match=r"2 packages differ on .*, 1 matters") as caught:
        future = queue.submit(cook)
    (warning,) = caught
    assert future.result() == 42
    host = os.uname().nodename
    text = f"2 packages differ on {host}, 1 matters: cook() uses rice 2.2, {host} has 2.1"
    assert str(warning.message).startswith(text)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert queue.submit(cook).result() == 42  # once


def test_a_missing_package_is_named_before_the_error(queue):
    import tea_module

    with pytest.warns(RuntimeWarning, match=r"has no tea, which <lambda>\(\) uses"):
        job = queue.map(lambda _: tea_module.answer(), range(2))
    job.wait()
    assert isinstance(job.errors[0], ModuleNotFoundError)
    picture = JobView(queue.map(lambda _: tea_module.answer(), range(2))).picture()
    assert "has no tea" in picture.note
    assert "has no tea" in job_text(picture)


def test_nothing_is_said_of_what_a_function_does_not_use(queue):
    import oil_module

    assert queue.submit(oil_module.answer).result() == 42
    assert JobView(queue.map(lambda _: oil_module.answer(), range(2))).picture().note == ""


def test_doctor_compares_all_packages(foreign, queue, server_url, capsys):
    main(["doctor", server_url, "--queue", foreign])
    (line,) = [li for li in capsys.readouterr().out.splitlines() if li.startswith("packages")]
    assert "2 packages in other versions (rice 2.1, here 2.2; salt 1.1, here 1.0)" in line
    assert "1 missing (tea)" in line


def test_local_workers_are_not_compared(make_queue, capsys):
    queue = make_queue()
    assert queue.submit(abs, -1).result() == 1
    main(["doctor", queue.status().server, "--queue", queue.name])
    assert "packages" not in capsys.readouterr().out


def test_modules_beside_the_notebook_count_with_what_they_import(beside):
    beside("kitchen.py", "from json import dumps\ndef cook(): return dumps(1)\n")
    import kitchen

    assert modules_used(kitchen.cook) == {"json"}


class Lazy:
    """Loads what it stands for when it is used, which fails here."""

    def __getattribute__(self, name):
        raise LookupError(f"{name} is used before there is a context")


lazy = Lazy()


def test_what_a_function_uses_is_found_beside_a_lazy_object():
    assert modules_used(lambda: (lazy, json)) == {"json"}


def test_what_a_long_chain_of_functions_uses_is_found():
    chain = functools.reduce(lambda inner, _: lambda: inner(), range(2_000), json.dumps)  # noqa: PLW0108
    assert modules_used(chain) == {"json"}


@pytest.mark.parametrize(
    "data", [b"[]", b'["3.11", {"a": 1}, []]', b'["3.11", {"a": "\\u001b"}, []]']
)
def test_a_malformed_environment_is_refused(data):
    with pytest.raises(ValueError):
        Environment.decode(data)


def test_an_environment_is_read_again_when_something_is_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path, rice="2.2")))
    before = Environment.here()
    install(tmp_path, salt="1.0")
    assert Environment.here().packages == before.packages | {"salt": "1.0"}
    assert Environment.decode(Environment.here().encode()) == Environment.here()
