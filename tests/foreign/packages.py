"""The wheel and the sdist: built, installed in clean environments, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: Starts the embedded server, prints its address, and keeps it until the standard input ends.
MIXED_SERVER = """
import sys
from nbstreamq import TaskQueue
with TaskQueue("mixed", workers=0) as queue:
    print(queue.status().server, flush=True)
    sys.stdin.read()
"""
#: Prints which Pythons run its calls, once there are two workers.
MIXED_CLIENT = """
import sys, time
from nbstreamq import TaskQueue
with TaskQueue("mixed", sys.argv[1], workers=0) as queue:
    while len(queue.workers()) < 2:
        time.sleep(0.05)
    print(sorted(set(queue.map(lambda _: "%d.%d" % sys.version_info[:2], range(100)))))
"""


def run(*words, **options):
    """Run a command in no folder of the project; return what it printed."""
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=900, check=False, **options
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def new_environment(folder, python, *packages):
    """Return the Python of a new environment that has only these packages."""
    run(python, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin/python"


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder that has the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    builder = new_environment(folder / "builder", sys.executable, "build")
    run(builder, "-m", "build", "--outdir", folder, ROOT)
    return folder


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("version", "kind"),
    [("3.11", "*.tar.gz"), ("3.11", "*.whl"), ("3.12", "*.whl"), ("3.13", "*.whl")],
)
def test_it_is_installed_and_used(version, kind, built, tmp_path):
    (package,) = built.glob(kind)
    found = run(ROOT / "tests/find_python", version).strip()
    python = new_environment(tmp_path / "new", found, package, "mypy")
    script = tmp_path / "user_script.py"
    script.write_text((HERE / "user_script.py").read_text())
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def use(*words):
        return run(python, *words, cwd=tmp_path, env=env)

    assert use(script) == "0.1 0.4 [2.0, 3.0] [1.0, 2.0] True\n"
    assert "no issues" in use("-m", "mypy", "--strict", script)
    assert f"Python {version}." in use("-m", "nbstreamq", "--version")
    assert "one started here and ran a call" in use("-m", "nbstreamq", "doctor")


@pytest.mark.timeout(1800)
def test_calls_run_on_workers_with_the_python_of_their_client(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    pythons = {
        version: new_environment(
            tmp_path / version, run(ROOT / "tests/find_python", version).strip(), wheel
        )
        for version in ("3.11", "3.12")
    }
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        [pythons["3.11"], "-c", MIXED_SERVER],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = server.stdout.readline().strip()
    words = ["-m", "nbstreamq", "worker", url, "--queue", "mixed", "-n", "1"]
    workers = [subprocess.Popen([p, *words], cwd=tmp_path, env=env) for p in pythons.values()]
    try:
        for version, python in pythons.items():
            found = run(python, "-c", MIXED_CLIENT, url, cwd=tmp_path, env=env)
            assert found == f"['{version}']\n"
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(20)
        server.communicate()


@pytest.mark.timeout(1800)
def test_uv_gives_a_unit_the_packages_of_its_client(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    python = new_environment(tmp_path / "new", sys.executable, wheel, "uv", "idna==3.10")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"PATH": f"{python.parent}:{env['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    find = run(python, "-c", "from nbstreamq.launch.sync import *; print(sync_lines())", env=env)
    use = "import idna, nbstreamq, sys; print(idna.__version__, sys.prefix)"

    found = [run("sh", "-c", f'{find}\nexec "$path" -c "{use}"', env=env) for _ in range(2)]

    version, prefix = found[0].split()
    assert version == "3.10"
    assert Path(prefix).is_relative_to(tmp_path / "cache/nbstreamq/environments")
    assert found[1] == found[0]
