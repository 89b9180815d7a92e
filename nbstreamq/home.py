"""Where this process belongs: its notebook, script or folder, and which workers run its calls."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: The minor version of this Python. Functions travel as bytecode, which is the same within one.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Characters of a tag that tell homes apart. The minor version of Python follows them, as ``311``.
TAG_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class Home:
    """The kernel, folder and interpreter whose local workers may run a call.

    Attributes
    ----------
    folder
        Working folder of the kernel when the queue was made.
    python
        Path of its interpreter.
    calls
        Tag of calls without a job name. In this folder only this process has it, and its children
        by fork or multiprocessing, which have the same authkey.
    jobs
        Tag of named jobs. Every process in this folder with this interpreter has it.

    A tag ends with the minor version of Python, such as ``1f3a9c20311``.
    """

    folder: str
    python: str
    calls: str
    jobs: str

    @property
    def tags(self) -> tuple[str, str]:
        """The tags whose tasks local workers of this home run."""
        return self.calls, self.jobs


def here() -> Home:
    """Return the home of what this process submits now."""
    from multiprocessing import current_process  # as slow to import as the rest of this module

    try:
        folder = os.path.realpath(Path.cwd())
    except FileNotFoundError:  # the folder was deleted, and workers need one
        folder = os.path.realpath(Path.home())
    return Home(
        folder=folder,
        python=sys.executable,
        calls=_digest(f"{current_process().authkey.hex()}\0{folder}") + python_tag(PYTHON),
        jobs=_digest(f"{sys.prefix}\0{folder}") + python_tag(PYTHON),
    )


def python_tag(python: str) -> str:
    """Return the part of a tag that says a minor version: ``311`` for ``3.11``."""
    return python.replace(".", "")


def own_queue() -> str:
    """Return the name of the private queue of this notebook, script or folder.

    It is readable, and the same after a restart: ``analysis.ipynb-1f3a9c20``.
    """
    path = _find_notebook() if _find_notebook else _script()
    if not path:
        path = here().folder
    elif os.path.isabs(path):  # noqa: PTH117
        path = os.path.realpath(path)
    readable = re.sub(r"[^\w.-]+|^-", "_", Path(path).name)[:40]
    return f"{readable or 'root'}-{_digest(path)}"


def in_kernel(find_notebook: Callable[[], str]) -> None:
    """Say that this process is a notebook's kernel.

    Parameters
    ----------
    find_notebook
        Returns the path of the notebook; empty if it is not known.
    """
    global _find_notebook  # noqa: PLW0603 - a process is one kernel, or none
    _find_notebook = find_notebook


def with_magics() -> None:
    """Say that the magics work here."""
    global _has_magics  # noqa: PLW0603 - as above
    _has_magics = True


def how_to_start(n: int) -> str:
    """Return what a person writes here to start local workers."""
    return f"%workers {n}" if _has_magics else f"q.run({n})"


def _script() -> str:
    """Return the path of the script, or of the package, that this process runs; empty if none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return os.path.dirname(path) if os.path.basename(path) == "__main__.py" else path  # noqa: PTH119, PTH120


def _digest(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=TAG_LENGTH // 2).hexdigest()


_find_notebook: Callable[[], str] | None = None
_has_magics = False
