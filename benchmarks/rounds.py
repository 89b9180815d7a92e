"""Run one session, read its results, and end every process that it started."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from .processes import MARK, end

__all__ = ["run_session"]

ROOT = Path(__file__).parents[1]
#: Seconds for one measure, and for the start.
LIMIT = 60.0
Lines = queue.Queue[tuple[float, bytes]]


def run_session(name: str, measures: list[str]) -> dict[str, Any]:
    """Return a peer's results by measure: ``found``, ``errors``, ``versions`` or ``skipped``."""
    with tempfile.TemporaryDirectory(prefix="nbq-", ignore_cleanup_errors=True) as folder:
        places = dict.fromkeys(
            ("TMPDIR", "NBSTREAMQ_RUNTIME_DIR", "NBSTREAMQ_DATA_DIR", "IPYTHONDIR"), folder
        )
        # Start a separate server, so that other queues on this machine are not affected.
        env = os.environ | places | {MARK: folder, "NBSTREAMQ_SERVER_IDLE": "1"}
        env.pop("NBSTREAMQ_URL", None)
        errors = Path(folder, "errors")
        command = [sys.executable, "-m", "benchmarks.session", name, *measures]
        begun = time.perf_counter()
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                cwd=ROOT,  # workers import this package from there
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        lines: Lines = queue.Queue()
        reader = threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            return _read(lines, measures, errors, begun)
        finally:
            end(folder)
            process.wait()
            reader.join()


def _forward(out: IO[bytes], lines: Lines) -> None:
    """Pass on each line with the time it arrived, and an empty one at the end."""
    with out:
        for line in out:
            lines.put((time.perf_counter(), line))
    lines.put((time.perf_counter(), b""))


def _read(lines: Lines, measures: list[str], errors: Path, begun: float) -> dict[str, Any]:
    session: dict[str, Any] = {"found": {}, "errors": {}, "versions": {}}
    left = ["first", *measures]
    while True:
        try:
            at, line = lines.get(timeout=LIMIT)
        except queue.Empty:
            return _cut_off(session, left, f"no answer in {LIMIT:.0f} s")
        if not line:
            return _cut_off(session, left, _last_line(errors))
        said = json.loads(line)
        if "over" in said:
            return session
        if "versions" in said:
            session["versions"] = said["versions"]
            continue
        left.remove(said["measure"])
        if said["measure"] == "first":
            session["found"]["first"] = {"value": (at - begun) * 1e3, "n": 1, "scaled": False}
        elif "error" in said:
            session["errors"][said["measure"]] = said["error"]
        else:
            session["found"][said["measure"]] = said["found"]


def _cut_off(session: dict[str, Any], left: list[str], why: str) -> dict[str, Any]:
    """Return the session, of which nothing more comes."""
    if "first" in left:
        return {"skipped": why}
    if left:
        session["errors"][left[0]] = why
    return session


def _last_line(errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it ended without a word"
