"""Run tests of scikit-learn's searches and forests with nbstreamq's backend as joblib's default.

``python -m tests.foreign.sklearn_suites`` runs a selection that uses `joblib.Parallel` in many
ways. The exit status is 1 if a test fails.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest

from nbstreamq.client.joblib import default_queue

from .own_folders import own_folders

FILES = ("model_selection/tests/test_search.py", "ensemble/tests/test_forest.py")
#: Searches of each kind, and forests: results, errors, nested loops, callables, probabilities.
SELECTION = (
    "test_grid_search or test_random_search or test_refit or test_search_cv or test_predict_proba"
    " or test_pickle or test_trivial or test_no_refit or test_unsupervised"
    " or test_classification_toy or test_parallel"
)

#: A test that gives a generator to the calls: no backend with processes can send that.
NOT_APPLICABLE = "test_grid_search_cv_splits_consistency"


class OnOurBackend:
    """A plugin of pytest that runs each test where loops are parallel on our workers."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """Run a test."""
        with joblib.parallel_config("nbstreamq", n_jobs=2):
            yield


def main() -> int:
    """Run the tests; return the exit status."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    files = [str(Path(found.origin).parent / name) for name in FILES]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:valkey", "-c", "/dev/null"]
    with own_folders():
        options += ["-k", f"({SELECTION}) and not {NOT_APPLICABLE}"]
        status = pytest.main([*options, *files], plugins=[OnOurBackend()])
        default_queue().shutdown(cancel_futures=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
