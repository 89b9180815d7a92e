"""Compare nbstreamq with other tools: ``python -m benchmarks [--peers A B ...]``.

Each round runs every peer once, one after the other, in a fresh interpreter with two workers. The
tables show medians over the rounds. An interrupted run continues when it is started again. A
complete run, with all peers, is written into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .machine import machine
from .measures import MEASURES
from .page import tables, write_page
from .peer import PEERS
from .rounds import run_session

ROOT = Path(__file__).parents[1]
#: Results of an interrupted run.
PARTIAL = ROOT / "build" / "benchmark.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=[], help=", ".join(PEERS))
    arguments = parser.parse_args()
    if unknown := set(arguments.peers) - set(PEERS):
        parser.error(f"no peer of this name: {', '.join(sorted(unknown))}")
    # SIGTERM ends the run as Ctrl-C does, without leaving processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted: run it again to continue"))
    names = [name for name in PEERS if not arguments.peers or name in arguments.peers]
    names = list(dict.fromkeys(["nbstreamq", *names]))
    results = _results_so_far({"rounds": arguments.rounds, "names": names, **machine(ROOT)})
    for number in range(arguments.rounds):
        for name in names:
            if number == len(results["sessions"].setdefault(name, [])):
                _run(results, name, number)
    print(tables(results))
    if names == list(PEERS):
        write_page(results, ROOT)
    PARTIAL.unlink()


def _results_so_far(head: dict[str, Any]) -> dict[str, Any]:
    """Return the results of an interrupted run of the same kind, or empty ones."""
    if PARTIAL.exists():
        found: dict[str, Any] = json.loads(PARTIAL.read_text(encoding="utf-8"))
        if found["head"] == head:
            _tell(f"continuing with {PARTIAL}")
            return found
    return {"head": head, "date": datetime.now(UTC).date().isoformat(), "sessions": {}}


def _run(results: dict[str, Any], name: str, number: int) -> None:
    """Run one peer once, and save its results."""
    sessions = results["sessions"][name]
    broken = next((s["skipped"] for s in sessions if "skipped" in s), None)
    # A measure that failed is not tried again; one that does not vary is measured once.
    done = {m for session in sessions for m in session.get("errors", ())}
    measures = [key for key, m in MEASURES.items() if key not in done and not m.once]
    if broken is None:
        begun = time.monotonic()
        session = run_session(name, measures)
        if "skipped" in session:  # once more: how some of them start is a race
            session = run_session(name, measures)
        for key in [key for key, m in MEASURES.items() if m.once and number == 0]:
            _add(session, run_session(name, [key]), key)
        seconds = time.monotonic() - begun
        _tell(f"round {number + 1} of {results['head']['rounds']}: {name}, {seconds:.0f} s")
        for what, problem in session.get("errors", {}).items():
            _tell(f"    {name}: no {what}: {problem}")
    else:
        session = {"skipped": broken}
    if "skipped" in session:
        if name == "nbstreamq":
            sys.exit(f"nbstreamq does not run: {session['skipped']}")
        _tell(f"    SKIPPED: {name}: {session['skipped']}")
    sessions.append(session)
    PARTIAL.parent.mkdir(exist_ok=True)
    PARTIAL.write_text(json.dumps(results), encoding="utf-8")


def _add(session: dict[str, Any], other: dict[str, Any], key: str) -> None:
    """Add the results of another session of the same peer."""
    for part in ("found", "errors"):
        if key in other.get(part, {}):
            session.setdefault(part, {})[key] = other[part][key]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
