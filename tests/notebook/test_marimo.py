"""marimo: live views, HTML when a notebook is exported, and cells that run again by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings
from tests.notebook.conftest import free_port

MARIMO = [sys.executable, "-m", "marimo", "--yes", "--quiet"]
#: A cell of this notebook runs again when the slider moves. The test opens the gates.
NOTEBOOK = """\
import marimo

app = marimo.App()


@app.cell
def _():
    import time
    from pathlib import Path

    import marimo as mo

    from nbstreamq import TaskQueue

    q = TaskQueue(workers=4)
    return Path, TaskQueue, mo, q, time


@app.cell
def _(mo):
    slider = mo.ui.slider(1, 9, value=2, label="n")
    slider
    return (slider,)


@app.cell
def _(Path, q, slider, time):
    n = slider.value

    def slow(x):
        while x and not Path(f"gate {n}").exists():
            time.sleep(0.05)
        return n * x

    job = q.map(slow, range(3))
    job.add_done_callback(lambda job, n=n: Path(f"ended {n}").write_text(repr(job)))
    job
    return job, n, slow


@app.cell
def _(Path, n, q, time):
    def wait(x):
        while not Path("gate").exists():
            time.sleep(0.05)
        return -x

    kept = q.options(lane="high").map(wait, range(1), name="kept")
    sweep = q.map(abs, range(n), name="sweep", replace="auto")
    n
    return kept, sweep


@app.cell
def _(kept, q):
    kept
    return


@app.cell
def _(kept, q):
    q
    return


@app.cell
def _(q):
    @q.submit
    def answer():
        return 6 * 7

    answer
    return (answer,)


@app.cell
def _(Path, q):
    def fails(x):
        assert Path("fixed").exists()
        return x

    broken = q.map(fails, [1])
    broken
    return (broken,)


@app.cell
def _(q):
    q.workers()
    return


@app.cell
def _(TaskQueue):
    elsewhere = TaskQueue("elsewhere", workers=0)
    elsewhere.run(1, on="slurm")
    return


if __name__ == "__main__":
    app.run()
"""
#: The commands of a Slurm that has no free node, and no jobs of an earlier session.
SLURM = {
    "sbatch": "echo 100",
    "squeue": 'case "$*" in *PENDING,RUNNING*) ;; *) echo 100 PENDING Resources;; esac',
    "scancel": "",
}
#: In an open notebook this cell would wait for workers that the slider's job holds.
WAITING_CELL = """\
@app.cell
def _(q, time):
    def pause(seconds):
        time.sleep(seconds)

    for _ in q.map(pause, [1.2] * 4, chunksize=1):
        pass
    _done = [future.result() for future in [q.submit(pause, 0.2) for _ in range(30)]]
    return


@app.cell
def _(q, time):
    f"sleep returned {q.submit(time.sleep, 1.2).result()}"
    return


"""
VIEW = "figure[aria-label='Job {}']"


@pytest.fixture
def folder(jupyter_home, short_folder, monkeypatch, wait_until) -> Iterator[Path]:
    """A folder with the notebook, and an embedded server of its own."""
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")
    values = short_folder()
    monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", str(values))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(jupyter_home / "config"))
    work = short_folder()
    (work / "slider.py").write_text(NOTEBOOK)
    for name, command in SLURM.items():
        (work / name).write_text(f"#!/bin/sh\n{command}\n")
        (work / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{work}:{os.environ['PATH']}")
    yield work
    (work / "gate").touch()  # after a failure the named job would still wait, and its worker
    # The kernel has ended, and its supervisor needs the server until it has ended, too.
    ended = lambda: all(file.name.startswith("fetched@") for file in values.iterdir())
    wait_until(ended, 30, "the end of the kernel's supervisor")
    stop_server(Settings.from_environment())


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture
def url(folder, wait_until) -> Iterator[str]:
    """The notebook, open in marimo."""
    with served("edit", folder, wait_until) as url:
        yield url


@contextmanager
def served(how: str, folder: Path, wait_until: Callable[..., object]) -> Iterator[str]:
    """Return the address of the notebook in a marimo that runs meanwhile."""
    port = free_port()
    command = [*MARIMO, how, "slider.py", "--headless", "--no-token"]
    command += ["--skip-update-check"] if how == "edit" else []
    log = folder / "marimo.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url) or server.poll() is not None, 60, "marimo")
        assert server.poll() is None, log.read_text()
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_slider_runs_a_cell_again_and_cancels_its_old_job(url, folder, page, wait_until):
    ended: Callable[[int], Path] = lambda n: folder / f"ended {n}"
    page.goto(url)
    page.locator(".cm-content").first.wait_for(timeout=120_000)
    page.keyboard.press("Control+Shift+R")
    view, kept = page.locator(VIEW.format("slow")), page.locator(VIEW.format("kept"))

    # When a job is a cell's last expression, I expect to see it run
    expect(view).to_contain_text("1 of 3 done", timeout=120_000)
    expect(kept).to_contain_text("1 running", timeout=30_000)
    expect(view.get_by_role("button", name="Cancel")).to_be_visible()

    # When the slider moves, I expect the old job to be cancelled, and to see the new one
    slider = page.get_by_role("slider").first
    value = slider.get_attribute("aria-valuenow")

    def moves():  # a key that is pressed while the page is drawn is lost
        slider.press("ArrowRight")
        return slider.get_attribute("aria-valuenow") != value

    wait_until(moves, 30, "the slider to move")
    wait_until(ended(2).exists, 60, "the end of the old job")
    assert "2 cancelled" in ended(2).read_text()
    expect(view).to_contain_text("1 of 3 done", timeout=30_000)
    (folder / "gate 3").touch()
    expect(view).to_contain_text("3 of 3 done", timeout=30_000)

    # When workers elsewhere are awaited, I expect to see why
    units = page.get_by_role("table").filter(has_text="0 of 1 workers on slurm")
    expect(units).to_contain_text("Resources", timeout=30_000)

    # When a job has failed, I expect its view to offer another try
    broken = page.locator(VIEW.format("fails"))
    expect(broken).to_contain_text("0 of 1 done · 1 failed", timeout=30_000)
    (folder / "fixed").touch()
    expect(broken.get_by_role("button", name="Cancel")).to_be_hidden()
    broken.get_by_role("button", name="Retry failed").click()
    expect(broken).to_contain_text("1 of 1 done", timeout=30_000)

    # When the slider has moved, I expect the named job to go on
    expect(kept).to_contain_text("1 running", timeout=30_000)
    (folder / "gate").touch()
    expect(kept).to_contain_text("1 of 1 done", timeout=30_000)
    expect(page.get_by_text("sweep").first).to_be_visible()
    shoot(page, "marimo.png")


def shoot(page, name):
    if shots := os.environ.get("NBSTREAMQ_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(shots) / name, full_page=True)


def add_waiting_cell(folder):
    begin, main, end = NOTEBOOK.partition("if __name__")
    (folder / "slider.py").write_text(begin + WAITING_CELL + main + end)
    (folder / "gate 2").touch()
    (folder / "gate").touch()


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_an_app_shows_jobs_and_waits_and_cancels_by_its_slider(folder, page, wait_until):
    add_waiting_cell(folder)
    with served("run", folder, wait_until) as url:
        page.goto(url)

        # When a cell waits, I expect to see how far it is
        expect(page.locator(VIEW.format("pause")).first).to_contain_text(
            "of 4 done", timeout=120_000
        )
        calls = page.locator(VIEW.format("pause")).nth(1)
        expect(calls).to_contain_text("of 30 done", timeout=30_000)
        shoot(page, "app.png")
        expect(calls).to_contain_text("30 of 30 done", timeout=30_000)
        view = page.locator(VIEW.format("slow"))
        expect(view).to_contain_text("3 of 3 done", timeout=30_000)
        value = page.get_by_text("sleep returned None")
        expect(value).to_be_visible(timeout=30_000)

        # When the slider moves, I expect the new job, live
        page.get_by_role("slider").first.press("ArrowRight")
        expect(view).to_contain_text("1 of 3 done", timeout=30_000)
        view.get_by_role("button", name="Cancel").click()
        expect(view).to_contain_text("2 cancelled", timeout=30_000)

        # When a cell that waited has a value, I expect it to stay
        expect(value).to_be_visible()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_exported_notebook_holds_the_finished_pictures(folder):
    add_waiting_cell(folder)
    command = [*MARIMO, "export", "html", "slider.py", "-o", "slider.html"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (folder / "slider.html").read_text()
    assert "3 of 3 done" in page
    assert "marimo-anywidget" not in page
    assert "4 workers" in page  # of the queue
    assert "sweep" in page
    assert page.count("4 of 4 done") == 1  # what a cell waited for
    assert page.count("30 of 30 done") == 1
    assert "sleep returned None" in page  # the value of a cell that waited
