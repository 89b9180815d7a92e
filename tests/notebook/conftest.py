"""Jupyter with nothing of this machine's user: its configuration, data and history are our own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
