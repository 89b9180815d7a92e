"""Run joblib's own tests of its backends with nbstreamq's.

``python -m tests.foreign.joblib_parallel`` runs each test of ``joblib.test.test_parallel`` that
joblib runs for every backend it knows. The exit status is 1 if a test fails that is not in
`NOT_APPLICABLE`, or if one that is listed passes.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from nbstreamq.client.joblib import QueueBackend, default_queue

from .own_folders import own_folders

_NOT_IMPORTED = "a process of loky does not import nbstreamq, so joblib has no such backend there"
#: Tests that say something which is not meant for a queue, and why.
NOT_APPLICABLE = {
    "test_nested_loop[loky-nbstreamq]": _NOT_IMPORTED,
    "test_nested_loop[back_compat_backend-nbstreamq]": _NOT_IMPORTED,
}


class OfOurBackend:
    """A plugin of pytest that selects the tests, and counts how they end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out the tests of other backends."""
        items[:] = [item for item in items if _is_ours(item)]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how a test has ended."""
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid.rpartition("::")[2]] = report.outcome


def _is_ours(item: Any) -> bool:
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    return any(isinstance(v, QueueBackend) or v == "nbstreamq" for v in values)


def main() -> int:
    """Run the tests; return the exit status."""
    plugin = OfOurBackend()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:valkey", "-c", "/dev/null"]
    # Not imported here: its tests know the backends that were registered before.
    tests = importlib.util.find_spec("joblib.test.test_parallel")
    with own_folders():
        pytest.main([*options, str(tests and tests.origin)], plugins=[plugin])
        default_queue().shutdown(cancel_futures=True)
    outcomes = plugin.outcomes
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    passed = {name for name, outcome in outcomes.items() if outcome == "passed"}
    for name in sorted(failed - NOT_APPLICABLE.keys()):
        print("FAILED:", name)
    for name in sorted(passed & NOT_APPLICABLE.keys()):
        print("LISTED AS NOT APPLICABLE, BUT PASSES:", name)
    print(
        f"{len(passed)} of {len(outcomes)} pass, {len(failed & NOT_APPLICABLE.keys())} do not apply"
    )
    return bool(not passed or failed - NOT_APPLICABLE.keys() or passed & NOT_APPLICABLE.keys())


if __name__ == "__main__":
    sys.exit(main())
