"""Jupyter with nothing of this machine's user: its configuration, data and history are our own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
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
JUPYTER_FOLDERS = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")


@pytest.fixture
def jupyter_home(short_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who has just installed Jupyter; kernels find this nbstreamq."""
    home = short_folder()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
    for name in JUPYTER_FOLDERS:
        monkeypatch.setenv(f"JUPYTER_{name}", str(home / name.lower()))
    # What an activated or configured Jupyter of the user would add.
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JUPYTER_TOKEN", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return home


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    folder: Path

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api", timeout=2) as reply:
                return reply.status == 200
        except OSError:
            return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.fixture
def lab(jupyter_home, monkeypatch, wait_until) -> Iterator[Lab]:
    """JupyterLab on this machine only, in an empty folder."""
    work = jupyter_home / "work"
    work.mkdir()
    for name, settings in LAB_SETTINGS.items():
        file = jupyter_home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    lab = Lab(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), work)
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
