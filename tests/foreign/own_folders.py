"""Folders of their own for the tests of others, which run outside of our fixtures."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings


@contextlib.contextmanager
def own_folders() -> Iterator[None]:
    """Keep the embedded server away from the user's own; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="nbq") as folder:
        for name in ("RUNTIME", "DATA", "MEMORY"):
            os.environ[f"NBSTREAMQ_{name}_DIR"] = f"{folder}/{name.lower()}"
        try:
            yield
        finally:
            stop_server(Settings.from_environment())
