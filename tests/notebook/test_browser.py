"""The quickstart as a person sees it: a real JupyterLab, in a real browser."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Page, expect, sync_playwright

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01-quickstart.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Nothing but the page itself: no sandbox for root, no traffic of the browser's own.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
#: Nobody is asked about news, and every cell is in the page, also those out of sight.
LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
#: Milliseconds that JupyterLab has to show the notebook, and to run it.
LOAD_MS, RUN_MS = 60_000, 300_000


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str
    token: str

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api", timeout=2) as reply:
                return reply.status == 200
        except OSError:
            return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def save_without_outputs(path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


@pytest.fixture
def lab(jupyter_home, monkeypatch, wait_until) -> Iterator[Lab]:
    """JupyterLab on this machine only, in a folder that holds the notebook without its outputs."""
    work = jupyter_home / "work"
    work.mkdir()
    save_without_outputs(work / NOTEBOOK.name)
    for name, settings in LAB_SETTINGS.items():
        file = jupyter_home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    lab = Lab(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(jupyter_home / "settings"))
    monkeypatch.setenv("JUPYTERLAB_WORKSPACES_DIR", str(jupyter_home / "workspaces"))
    monkeypatch.setenv("JUPYTER_TOKEN", lab.token)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={lab.url.rpartition(':')[2]}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={work}"]
    log = jupyter_home / "lab.log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, cwd=work)
    try:
        wait_until(lambda: lab.answers() or server.poll() is not None, 60, "JupyterLab")
        assert server.poll() is None, log.read_text()
        yield lab
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of the chromium that is installed here; playwright's own is never downloaded."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no chromium on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def open_notebook(page: Page, lab: Lab) -> None:
    page.goto(f"{lab.url}/lab/tree/{NOTEBOOK.name}?token={lab.token}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=LOAD_MS)
    # The toolbar says idle even before there is a kernel; then a dialog would ask for one.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LOAD_MS)


def run_all_cells(page: Page) -> None:
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    n_cells = page.locator(".jp-Notebook .jp-CodeCell").count()
    last = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").last
    expect(last).to_have_text(f"[{n_cells}]:", timeout=RUN_MS)


def outputs_of(page: Page, source: str) -> Any:
    """Return what stands below the cell that holds `source`."""
    cell = page.locator(".jp-Notebook .jp-CodeCell", has_text=source).first
    return cell.locator(".jp-OutputArea-output")


@pytest.mark.browser
@pytest.mark.timeout(500)
def test_the_quickstart_runs_in_jupyterlab(lab, page, tmp_path):
    open_notebook(page, lab)
    assert page.locator(".jp-OutputArea-output").count() == 0

    run_all_cells(page)

    search = outputs_of(page, "scores = job.result()").first
    expect(search).to_contain_text("240 settings on")
    expect(search).to_contain_text("times as fast as the plain loop")
    expect(outputs_of(page, "table = results.pivot").locator("img")).to_be_visible()
    fitted = outputs_of(page, "model = fit(best)")
    expect(fitted.filter(has_text="[fit 0] learning from").first).to_be_attached()
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.count() == 0, errors.all_inner_texts()
    search.scroll_into_view_if_needed()
    screenshot = Path(os.environ.get("NBSTREAMQ_TEST_SCREENSHOTS", tmp_path)) / "quickstart.png"
    page.screenshot(path=screenshot)
    assert screenshot.stat().st_size > 10_000
