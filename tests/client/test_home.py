"""Where a queue without a name belongs, and what local workers have of their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nbstreamq
from nbstreamq import TaskQueue
from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings

REPOSITORY = Path(nbstreamq.__file__).parent.parent


@pytest.fixture
def embedded(short_folder, monkeypatch):
    """Folders of an embedded server that is not running yet."""
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")
    yield
    stop_server(Settings.from_environment())


def python(*arguments: Any, cwd: Path, **env: str) -> str:
    """Run a Python elsewhere and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


NAME = "from nbstreamq import TaskQueue\nwith TaskQueue(workers=0) as q: print(q.name)\n"


# -- the default name ---------------------------------------------------------------------------


def test_a_script_has_a_queue_of_its_own_wherever_it_is_started(embedded, tmp_path):
    script, other = tmp_path / "my job.py", tmp_path / "other" / "my job.py"
    other.parent.mkdir()
    for file in (script, other):
        file.write_text(NAME)

    name = python(script, cwd=tmp_path)

    assert name.startswith("my_job.py-")
    assert python(script, cwd=other.parent) == name
    assert python(other, cwd=tmp_path) not in ("", name)


def test_without_a_script_the_working_folder_has_one(embedded, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "link").symlink_to("study")

    name = python("-c", NAME, cwd=tmp_path / "study")

    assert name.startswith("study-")
    assert python("-c", NAME, cwd=tmp_path / "link") == name
    assert python("-c", NAME, cwd=tmp_path) != name


def test_a_package_that_runs_has_one(embedded, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__main__.py").write_text(NAME)

    assert python("-m", "pipeline", cwd=tmp_path).startswith("pipeline-")


@pytest.mark.parametrize("name", ["{a} b\t", "ä" * 300 + "c", "@x:y", "\udcff"])
def test_any_folder_makes_a_name(embedded, tmp_path, name):
    folder = tmp_path / name[:100]
    folder.mkdir()

    assert python("-c", NAME, cwd=folder, PYTHONIOENCODING="utf-8") != ""


def test_with_a_url_the_default_stays(server_url, queue_name, tmp_path, monkeypatch):
    with TaskQueue(url=server_url, workers=0) as queue:
        assert queue.name == "default"
    monkeypatch.setenv("NBSTREAMQ_URL", server_url)
    with TaskQueue(workers=0) as queue:
        assert queue.name == "default"


def test_a_job_is_found_after_a_restart(embedded, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os\n"
        "from nbstreamq import TaskQueue\n"
        "with TaskQueue(workers=1) as q:\n"
        "    print(*q.map(lambda _: os.getpid(), range(3), name='pids'))\n"
    )

    assert python(script, cwd=tmp_path) == python(script, cwd=tmp_path)


def test_jobs_of_a_renamed_script_are_found_with_their_queue(embedded, tmp_path):
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(
        "from nbstreamq import TaskQueue\n"
        "with TaskQueue(workers=1) as q:\n"
        "    q.map(abs, [-1, -2], name='sizes').result()\n"
        "    print(q.name)\n"
    )
    name = python(old, cwd=tmp_path)
    old.rename(new)
    new.write_text(
        "from nbstreamq import JobNotFound, TaskQueue\n"
        "with TaskQueue(workers=0) as q:\n"
        "    try:\n"
        "        q.attach('sizes')\n"
        "    except JobNotFound as error:\n"
        "        print(error)\n"
        "    assert q.jobs() == []\n"
        "    (job,) = q.jobs(all=True)\n"
        "    assert repr(job.queue) in repr(q.jobs(all=True))\n"
        "with TaskQueue(job.queue, workers=0) as q:\n"
        "    print(job.queue, *q.attach(job.name).result())\n"
    )

    said = python(new, cwd=tmp_path)
    assert f"TaskQueue({name!r}).attach('sizes')" in said
    assert said.endswith(f"{name} 1 2")


def test_jobs_of_queues_with_another_secret_are_passed_over(server_url, queue_name, make_queue):
    queue = make_queue(workers=1)
    queue.map(abs, [-1], name="ours").result(20)
    with TaskQueue(
        f"{queue_name}-x", server_url, workers=1, secret="0f" * 8 + "e7a3b4" * 8
    ) as other:
        other.map(abs, [-1], name="theirs").result(20)

        assert [job.name for job in queue.jobs(all=True) if queue_name in job.queue] == ["ours"]


def test_inside_a_task_it_is_the_queue_that_the_task_came_from(make_queue, queue_name):
    def inside() -> tuple[str, int]:
        with TaskQueue() as queue:
            return queue.name, queue.submit(abs, -3).result()

    queue = make_queue()

    assert queue.submit(inside).result(30) == (queue_name, 3)


def test_inside_a_task_of_the_embedded_server_too(embedded):
    def inside() -> tuple[str, int]:
        with TaskQueue() as queue:
            return queue.name, queue.submit(abs, -3).result()

    with TaskQueue(workers=1) as queue:
        assert queue.submit(inside).result(30) == (queue.name, 3)


# -- what workers have --------------------------------------------------------------------------


def test_workers_have_the_folder_path_and_environment_of_their_process(
    server_url, queue_name, tmp_path
):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "far_away.py").write_text("VALUE = 7\n")
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the standard library')\n")
    program = (
        "import os, sys\n"
        "from nbstreamq import TaskQueue\n"
        "sys.path.append(os.path.abspath('lib'))\n"
        "os.environ['OF_THE_KERNEL'] = 'yes'\n"
        "def look():\n"
        "    import os, far_away\n"
        "    return os.getcwd(), os.environ['OF_THE_KERNEL'], far_away.VALUE, sys.executable\n"
        "with TaskQueue(sys.argv[1], sys.argv[2], workers=1) as q:\n"
        "    os.chdir('/')\n"
        "    print(q.submit(look).result() == (sys.argv[3], 'yes', 7, sys.executable))\n"
    )

    said = python("-P", "-c", program, queue_name, server_url, tmp_path, cwd=tmp_path)

    assert said == "True"
