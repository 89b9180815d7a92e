"""Registers nbstreamq's backend with joblib, whichever of the two packages is imported first.

joblib looks for a backend in a dict of its own, and has no entry points. So the backend has to be
put there when joblib is imported, and importing joblib here would make `import nbstreamq` slow.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: The module of joblib that has the dict.
_MODULE = "joblib.parallel"


def register_backend() -> None:
    """Have joblib know the backend ``"nbstreamq"``: now, or when joblib is imported."""
    if _MODULE in sys.modules:
        _add_backend(importlib.import_module(_MODULE))  # another thread may be importing it
    else:
        sys.meta_path.insert(0, _ImportWatcher(_MODULE, _add_backend))


def _add_backend(parallel: Any) -> None:
    parallel.register_parallel_backend("nbstreamq", _make_backend)


def _make_backend(**options: Any) -> Any:
    """Return a new backend; nothing is started before it is used."""
    import joblib  # it is slow to import, and so is what uses it

    if not hasattr(joblib.ParallelBackendBase, "submit"):
        raise ImportError(
            f"The backend of nbstreamq needs joblib 1.5 or newer, and this is {joblib.__version__}:"
            " pip install --upgrade joblib"
        )
    from .joblib import QueueBackend

    return QueueBackend(**options)


class _ImportWatcher:
    """Finds one module as the import system would, and calls `on_import` once it is executed."""

    def __init__(self, name: str, on_import: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._on_import = on_import

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec; None for all other modules, which other finders find."""
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # The class has the original one.
            execute(module)
            with suppress(ValueError):  # Somebody may have replaced the list.
                sys.meta_path.remove(self)
            self._on_import(module)

        loader.exec_module = exec_module
