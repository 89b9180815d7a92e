"""Who watches: live views, magics and rich displays; the only part that knows IPython.

Imported when IPython asks for it, never by a worker.
"""

from __future__ import annotations

from typing import Any

from .live import show_by_default
from .magics import NbstreamqMagics, complete_magics, tell_notebook

__all__ = ["load"]


def load(shell: Any) -> None:
    """Give an IPython shell our magics, and its displays of jobs, futures and queues."""
    tell_notebook(shell)
    shell.register_magics(NbstreamqMagics)
    complete_magics(shell)
    show_by_default(shell)
