"""Starts a Python process like this one, with its import path, log levels and warnings filters."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from contextlib import suppress
from typing import Any

#: -P until it has the path: a file `queue.py` in the working folder must not hide a module.
_BOOT = (
    "import json, runpy, sys; state = json.loads(sys.argv.pop(1)); sys.path[:] = state['path'];"
    " from nbstreamq.launch import python; python.inherited = state;"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

#: State of the kernel that started this process, directly or through other processes.
inherited: dict[str, Any] = {}


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `module` as ``python -m`` does, with this process's path.

    `take_on` gives it the other settings of this process.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    state = json.dumps((inherited or _state()) | {"path": path})
    return [sys.executable, "-P", "-c", _BOOT, state, module, *arguments]


def take_on() -> None:
    """Set the recursion limit, log levels and warnings filters that the kernel had.

    A process that no kernel has started stays as it is.
    """
    if not inherited:
        return
    sys.setrecursionlimit(inherited["recursion_limit"])
    logging.disable(inherited["disabled_log_level"])
    for name, level in inherited["log_levels"].items():
        logging.getLogger(name).setLevel(level)
    warnings.resetwarnings()
    for action, message, category, module, line in reversed(inherited["warnings"]):
        with suppress(ImportError, AttributeError):  # its category is in a module that is not here
            warnings.filterwarnings(action, message, _class_named(category), module, line)


def _state() -> dict[str, Any]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    levels = {one.name: one.level for one in loggers if isinstance(one, logging.Logger)}
    return {
        "recursion_limit": sys.getrecursionlimit(),
        "disabled_log_level": logging.root.manager.disable,
        "log_levels": {name: level for name, level in levels.items() if level},
        "warnings": [
            (action, _text(message), f"{kind.__module__}:{kind.__qualname__}", _text(module), line)
            for action, message, kind, module, line in warnings.filters
            if isinstance(kind, type)
        ],
    }


def _text(pattern: Any) -> str:
    """Return a pattern of a filter as text; C code has plain strings for whole names."""
    return getattr(pattern, "pattern", pattern) or ""


def _class_named(path: str) -> type[Warning]:
    module, _, name = path.partition(":")
    found: type[Warning] = getattr(importlib.import_module(module), name)
    return found
