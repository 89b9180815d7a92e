"""Import modules again whose files were edited while the worker runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..objects.modules import file_of, is_edited

#: Time of change, size and inode of a file: these stay the same until somebody edits it.
_Stamp = tuple[int, int, int]


class Edits:
    """Forgets imported modules when one of their files was edited, so that they are imported again.

    Only what is beside a notebook or installed as editable is looked at. Modules that came with a
    function are not: they have no file here.

    Parameters
    ----------
    on_edit
        Called when modules were forgotten.
    """

    def __init__(self, on_edit: Callable[[], None]) -> None:
        self._on_edit = on_edit
        self._seen = set(sys.modules)
        self._last = self._newest()
        self._looked = time.time_ns()
        #: Name of a module -> its file, and the stamp of that when it was imported.
        self._stamps: dict[str, tuple[str, _Stamp | None]] = {}

    def forget_edited(self) -> None:
        """Forget all such modules if one of them was edited.

        All, since others have taken from it what they import. To be called when no task runs, not
        even one that waits: what that has made is of the older modules.
        """
        now = time.time_ns()
        # As `_newest`, without the call.
        if (len(sys.modules), next(reversed(sys.modules))) != self._last:
            self._look_for_new()
        if not self._stamps:
            self._looked = now
            return
        # One that was edited since the last look may have been imported before that.
        edited = [
            name
            for name, (file, stamp) in self._stamps.items()
            if (found := _stamp_of(file)) != stamp and found is not None
        ]
        self._looked = now
        if edited:
            self._forget()
            self._on_edit()

    @staticmethod
    def _newest() -> tuple[int, str]:
        return len(sys.modules), next(reversed(sys.modules))

    def _look_for_new(self) -> None:
        for name, module in list(sys.modules.items()):
            if name not in self._seen and module is not None and is_edited(module):
                file = file_of(module)
                stamp = _stamp_of(file)
                was_edited = stamp is not None and stamp[0] > self._looked
                self._stamps[name] = file, (0, 0, 0) if was_edited else stamp
        self._seen = set(sys.modules)
        self._last = self._newest()

    def _forget(self) -> None:
        for name, (file, _) in self._stamps.items():
            sys.modules.pop(name, None)
            # It has the age of the source in seconds, and would miss a second edit within one.
            Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
        self._stamps.clear()
        self._seen = set(sys.modules)
        self._last = self._newest()
        importlib.invalidate_caches()


def _stamp_of(file: str) -> _Stamp | None:
    """Return the stamp of a file; None if it is not there."""
    try:
        found = os.stat(file)  # noqa: PTH116 - a Path takes longer to make than this takes
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
