"""Which notebook this kernel runs, as far as Jupyter or VS Code tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..home import in_kernel

__all__ = ["tell_notebook"]

#: Where VS Code, in the notebook's variables, and Jupyter, in the environment, write the path.
_VSCODE, _JUPYTER = "__vsc_ipynb_file__", "JPY_SESSION_NAME"


def tell_notebook(shell: Any) -> None:
    """Have queues without a name belong to the notebook of `shell`, if it is a kernel's."""
    if hasattr(shell, "kernel"):
        in_kernel(lambda: shell.user_ns.get(_VSCODE) or _path_from_jupyter())


def _path_from_jupyter() -> str:
    """Return what Jupyter has told this kernel; empty if it has told another one.

    A kernel that a notebook starts, with papermill for instance, inherits its environment.
    """
    path = os.environ.get(_JUPYTER, "")
    launcher = os.environ.get("JPY_PARENT_PID", "")
    try:
        inherited = Path("/proc", launcher, "environ").read_bytes().split(b"\0")
    except OSError:  # not on Linux, or it has ended
        inherited = []
    return "" if os.fsencode(f"{_JUPYTER}={path}") in inherited else path
