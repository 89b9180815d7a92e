"""Completion of the magics' arguments: options, and names of jobs and variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from ..client.job import Job
from ..client.queue import TaskQueue
from ..errors import NbstreamqError

__all__ = ["complete_magics"]

_MAGICS = ("%attach", "%cancel", "%queue", "%workers", "%%pmap", "%%task")


def complete_magics(shell: Any) -> None:
    """Have `shell` complete what follows a magic's name."""
    for magic in _MAGICS:
        shell.set_hook("complete_command", _completer(magic), str_key=magic)


def _completer(magic: str) -> Callable[[Any, Any], list[str]]:
    def complete(shell: Any, event: Any) -> list[str]:
        kind = "cell" if magic.startswith("%%") else "line"
        parser = shell.magics_manager.magics[kind][magic.lstrip("%")].parser
        options = [o for action in parser._actions for o in action.option_strings]  # noqa: SLF001
        found = [*options, *_values(magic, shell.user_ns)]
        return sorted(text for text in found if text.startswith(event.symbol))

    return complete


def _values(magic: str, variables: dict[str, Any]) -> Iterable[str]:
    """Return what may stand behind a magic, beside options."""
    if magic == "%cancel":
        return [k for k, v in variables.items() if isinstance(v, Job | Future) and k[0] != "_"]
    queue = variables.get("q")
    if magic == "%attach" and isinstance(queue, TaskQueue):
        try:
            return [job.name for job in queue.jobs()]
        except NbstreamqError:  # no answer is no reason to disturb who is typing
            return []
    return []
