"""What an IPython shell gets: the magics, the queue `q`, and displays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from IPython import get_ipython

from ..client.waiting import handler_after
from ..home import in_kernel, with_magics
from .live import catch_up, show_by_default
from .outputs import begin_cell, end_cell

#: Where VS Code, in the notebook's variables, and Jupyter, in the environment, write its path.
_VSCODE, _JUPYTER = "__vsc_ipynb_file__", "JPY_SESSION_NAME"


def adapt(shell: Any) -> None:
    """Have an IPython shell show jobs and queues in our way; twice does no harm."""
    show_by_default(shell)
    shell.events.register("pre_run_cell", begin_cell)
    for at_end in (catch_up, end_cell):
        shell.events.register("post_run_cell", at_end)
    if hasattr(shell, "kernel"):
        in_kernel(lambda: shell.user_ns.get(_VSCODE) or _path_from_jupyter())
        shell.events.register("post_run_cell", _listen_when_idle)


def load(shell: Any) -> None:
    """Give an IPython shell the magics and the queue `q`, too, and say so."""
    from .magics import NbstreamqMagics, complete_magics

    adapt(shell)
    magics = NbstreamqMagics(shell)
    shell.register_magics(magics)
    complete_magics(shell)
    with_magics()
    magics.bind_queue()


def _listen_when_idle(*_: object) -> None:
    """Notice interrupts for a while after a cell whose wait was interrupted.

    ipykernel puts back a handler of SIGINT after each cell, to ignore it; this replaces that.
    """
    kernel = get_ipython().kernel
    if hasattr(kernel, "saved_sigint_handler"):
        kernel.saved_sigint_handler = handler_after(kernel.saved_sigint_handler)


def _path_from_jupyter() -> str:
    """Return the notebook's path that Jupyter told this kernel; empty if it told another one.

    A kernel that a notebook starts, with papermill for instance, inherits its environment.
    """
    path = os.environ.get(_JUPYTER, "")
    launcher = os.environ.get("JPY_PARENT_PID", "")
    try:
        inherited = Path("/proc", launcher, "environ").read_bytes().split(b"\0")
    except OSError:  # this is not Linux, or the launcher has ended
        inherited = []
    return "" if os.fsencode(f"{_JUPYTER}={path}") in inherited else path
