"""The second interrupt of a wait, when the first one has ended the cell and the kernel is idle."""

from __future__ import annotations

from typing import Any

from IPython import get_ipython

from ..client.interrupts import handler_after

__all__ = ["listen_when_idle"]


def listen_when_idle(shell: Any) -> None:
    """Have interrupts noticed for a while after a cell in which a wait was interrupted."""
    if hasattr(shell, "kernel"):
        shell.events.register("post_run_cell", _keep_listening)


def _keep_listening(*_: object) -> None:
    """Replace the handler of SIGINT that ipykernel puts back after a cell, to ignore it."""
    kernel = get_ipython().kernel
    if hasattr(kernel, "saved_sigint_handler"):
        kernel.saved_sigint_handler = handler_after(kernel.saved_sigint_handler)
