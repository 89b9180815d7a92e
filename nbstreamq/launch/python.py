"""A Python process that can import what this one can."""

from __future__ import annotations

import json
import sys

__all__ = ["python_command"]

#: Safe (-P) until it has the path: a file `queue.py` in the working folder must not come first.
_BOOT = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` as ``python -m`` does, with this process's path."""
    path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return [sys.executable, "-P", "-c", _BOOT, path, module, *arguments]
