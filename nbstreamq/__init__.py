"""Parallel map for notebooks: durable like a message broker, as easy as ``map``."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .client.registration import register_backend as _register_backend

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Load all public names when the first one is used: commands and the watchdog need none."""
    public = importlib.import_module(".public", __name__)
    names = globals()
    names.update({known: getattr(public, known) for known in ("__all__", *public.__all__)})
    try:
        return names[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    __getattr__("__all__")
    return sorted(globals())


_register_backend()
if "IPython" in sys.modules or "marimo" in sys.modules:
    __getattr__("__all__")  # jobs are shown there from now on
