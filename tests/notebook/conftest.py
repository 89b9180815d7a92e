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
from typing import Any

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


def set_up_home(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HOME", str(home))
    patch.setenv("IPYTHONDIR", str(home / "ipython"))
    patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
    for name in JUPYTER_FOLDERS:
        patch.setenv(f"JUPYTER_{name}", str(home / name.lower()))
    # What an activated or configured Jupyter of the user would add.
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JUPYTER_TOKEN", "XDG_RUNTIME_DIR"):
        patch.delenv(name, raising=False)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def jupyter_home(short_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of a user who has just installed Jupyter; kernels find this nbstreamq."""
    home = short_folder()
    set_up_home(home, monkeypatch)
    return home


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    url: str
    token: str
    folder: Path

    def ask(self, path: str, method: str = "GET") -> Any:
        """Return what Jupyter's REST API answers."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.loads(reply.read() or "null")

    def answers(self) -> bool:
        try:
            return bool(self.ask(""))
        except OSError:
            return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def running_lab(short_folder: Callable[[], Path], wait_until: Any) -> Iterator[Lab]:
    """JupyterLab on this machine only, for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        home = short_folder()
        set_up_home(home, patch)
        yield from start_lab(home, patch, wait_until)


def start_lab(home: Path, patch: pytest.MonkeyPatch, wait_until: Any) -> Iterator[Lab]:
    work = home / "work"
    work.mkdir()
    for name, settings in LAB_SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    lab = Lab(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), work)
    patch.setenv("JUPYTERLAB_SETTINGS_DIR", str(home / "settings"))
    patch.setenv("JUPYTERLAB_WORKSPACES_DIR", str(home / "workspaces"))
    patch.setenv("JUPYTER_TOKEN", lab.token)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={lab.url.rpartition(':')[2]}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={work}"]
    log = home / "lab.log"
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
def lab(running_lab: Lab) -> Iterator[Lab]:
    """JupyterLab without kernels; they end with the test."""
    yield running_lab
    for kernel in running_lab.ask("/kernels"):
        running_lab.ask(f"/kernels/{kernel['id']}", "DELETE")


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
