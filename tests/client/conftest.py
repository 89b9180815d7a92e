"""Queues on the session's server, with workers; and ways to hold their tasks up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbstreamq
from nbstreamq import TaskQueue
from tests.objects.conftest import beside
from tests.real_workers import shared_queue

__all__ = ["beside", "gate", "make_queue", "queue", "run_script", "shared_queue"]

REPOSITORY = Path(nbstreamq.__file__).parent.parent
#: Seconds after which a script hangs.
SCRIPT_TIMEOUT = 40


@pytest.fixture
def make_queue(server_url: str, queue_name: str) -> Iterator[Callable[..., TaskQueue]]:
    """``make_queue(workers=2, **options)`` makes a queue of this test, shut down at its end."""
    made: list[TaskQueue] = []

    def make(suffix: str = "", workers: int = 2, **options: Any) -> TaskQueue:
        options.setdefault("url", server_url)
        made.append(TaskQueue(queue_name + suffix, workers=workers, **options))
        return made[-1]

    yield make
    for queue in made:
        queue.shutdown(cancel_futures=True)


@pytest.fixture
def queue(make_queue: Callable[..., TaskQueue]) -> TaskQueue:
    """A queue of this test with two workers."""
    return make_queue()


class Gate:
    """Holds tasks up until it is opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def hold(self) -> Callable[..., Any]:
        """A function for tasks: it returns its first argument once the gate is open."""
        folder = self._folder

        def hold(value: Any = None, *_: Any) -> Any:
            import time
            import uuid

            (folder / f"reached-{uuid.uuid4().hex}").touch()
            end = time.monotonic() + 30
            while not (folder / "open").exists():
                if time.monotonic() > end:
                    raise TimeoutError("the gate was never opened")
                time.sleep(0.002)
            return value

        return hold

    @property
    def n_reached(self) -> int:
        """How many tasks have come to the gate."""
        return len(list(self._folder.glob("reached-*")))

    def open(self) -> None:
        """Let all pass, now and later."""
        (self._folder / "open").touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that is closed."""
    folder = tmp_path / "gate"
    folder.mkdir()
    gate = Gate(folder)
    yield gate
    gate.open()


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., str]:
    """``run_script(source, *args, **env)`` runs a script elsewhere; returns what it printed."""

    def run(source: str, *args: str, **env: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(source)
        done = subprocess.run(
            [sys.executable, str(script), *args],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SCRIPT_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
