"""Callbacks of users: what they raise is logged, as `concurrent.futures` does, and harms nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

__all__ = ["call_all"]


def call_all(callbacks: Iterable[Callable[[], object]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            logging.getLogger(__name__).exception("exception calling callback %r", callback)
