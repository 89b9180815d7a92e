"""Run CPython's own tests of `concurrent.futures` against `TaskQueue`.

``python -m tests.foreign.cpython_executors`` needs a Python 3.13 that has the package
``test.test_concurrent_futures``. Each test that CPython runs for its process pool with the start
methods fork and spawn runs with a queue in the pool's place. The exit status is 1 if a test fails
that is not in `NOT_APPLICABLE`, or if one that is listed passes.

What a dead worker does differs on purpose: the pool breaks (`BrokenProcessPool`), and with a queue
the call that killed its workers ends with `WorkerLost` while the others go on. Both are
`BrokenExecutor`, which the tests of crashes ask for here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import unittest
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from .executor import QueueExecutor
from .own_folders import own_folders

ROOT = Path(__file__).parents[2]
MODULES = ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait")

_ON_DEMAND = "counts the pool's processes; a queue starts all of its workers with the first call"
_SEMAPHORE = "a semaphore of multiprocessing can only be inherited, and workers may be anywhere"
#: Tests that say something which is not meant for a queue, and why. A name without a class stands
#: for all start methods.
NOT_APPLICABLE = {
    "test_error_at_task_pickle": (
        "expects the error in the future; a queue refuses at the call what can't be pickled"
    ),
    "test_shutdown_deadlock_pickle": "the same; and it looks at the pool's thread",
    "test_error_at_task_unpickle": (
        "expects a broken pool; here the call ends with the error that unpickling raised"
    ),
    "test_exit_at_task_unpickle": "the same, with SystemExit",
    "test_error_during_result_unpickle_in_result_handler": (
        "expects a broken pool; here the call ends with the error that unpickling raised"
    ),
    "test_exit_during_result_unpickle_in_result_handler": "the same, with SystemExit",
    "test_exit_during_result_pickle_on_worker": (
        "expects SystemExit; here ResultNotPicklable says which task it was and why"
    ),
    "ProcessPoolForkFailingInitializerTest": (
        "expects a pool that is broken for good; here the error of a set-up is in the job that"
        " `everywhere` returns, and calls go on"
    ),
    "ProcessPoolSpawnFailingInitializerTest": "the same",
    "test_free_reference": (
        "expects an iterator that forgets its results; a job keeps them for `result()`, `job[i]`"
        " and the view, until the job itself is dropped"
    ),
    "test_idle_process_reuse_one": _ON_DEMAND,
    "test_idle_process_reuse_multiple": _ON_DEMAND,
    "test_saturation": _SEMAPHORE,
    "test_processes_terminate": _SEMAPHORE,
    "test_killed_child": "expects a broken pool; a queue runs the call again on another worker",
    "test_max_tasks_per_child": "a queue has no such parameter",
    "test_max_tasks_per_child_defaults_to_spawn_context": "a queue has no such parameter",
    "test_max_tasks_early_shutdown": "a queue has no such parameter",
    "test_python_finalization_error": "patches how the pool's own threads start",
    "test_cancel_futures": (
        "submits 50 calls, cancels them in the same millisecond, and expects that some run already;"
        " a queue leaves alone what it knows to run, and it knows of none so soon"
    ),
    "test_traceback": (
        "expects the worker's traceback as the text of a cause; here its frames are part of the"
        " exception's own traceback"
    ),
    "test_max_workers_too_large": "is for Windows",
}


def load_suite() -> unittest.TestSuite:
    """Return CPython's tests with `QueueExecutor` in place of the process pool."""
    try:
        util = importlib.import_module("test.test_concurrent_futures.util")
    except ImportError:
        sys.exit(
            f"{sys.executable} has no test.test_concurrent_futures: use a Python 3.13 that was"
            " installed with its `test` package."
        )
    util.ProcessPoolForkMixin.executor_type = QueueExecutor
    util.ProcessPoolSpawnMixin.executor_type = QueueExecutor
    suite = unittest.TestSuite()
    for name in MODULES:
        module = importlib.import_module(f"test.test_concurrent_futures.test_{name}")
        if name == "shutdown":
            vars(module)["assert_python_ok"] = _with_queue(vars(module)["assert_python_ok"])
        if name == "deadlock":
            vars(module)["BrokenProcessPool"] = BrokenExecutor
        for test in _tests(unittest.defaultTestLoader.loadTestsFromModule(module)):
            if _is_for_queue(test):
                suite.addTest(test)
    return suite


def _tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests(test)
        else:
            yield test


def _is_for_queue(test: unittest.TestCase) -> bool:
    """Tell whether a queue stands in for the executor: thread pools and forkserver are left out."""
    return getattr(test, "executor_type", None) is QueueExecutor


def _names(test: unittest.TestCase) -> set[str]:
    """Return the names under which `NOT_APPLICABLE` may list a test."""
    return {type(test).__name__, test.id().rpartition(".")[2]}


def _with_queue(run: Any) -> Any:
    """Return `assert_python_ok` for scripts in which the executor is a queue."""

    def assert_python_ok(option: str, script: str, **variables: str) -> Any:
        script = script.replace(
            "from concurrent.futures import QueueExecutor",
            "import multiprocessing; from tests.foreign.executor import QueueExecutor",
        )
        kept = {k: v for k, v in os.environ.items() if k.startswith("NBSTREAMQ_")}
        code, out, err = run(option, script, **kept, PYTHONPATH=str(ROOT), **variables)
        # What a task prints says which task it was; the exit says what it waits for; QueueClosed
        # is a RuntimeError.
        out = re.sub(rb"^\[\w+ \d+\] ", b"", out, flags=re.M)
        err = re.sub(rb"^nbstreamq: waiting for .*\n", b"", err, flags=re.M)
        return code, out, err.replace(b"nbstreamq.errors.QueueClosed:", b"RuntimeError:")

    return assert_python_ok


@contextlib.contextmanager
def _closed_queues() -> Iterator[None]:
    """Close the queues of the tests, and wait: else they would start the server again."""
    try:
        yield
    finally:
        for queue in QueueExecutor.opened:
            queue.shutdown(cancel_futures=True)


def main() -> int:
    """Run the tests; return the exit status."""
    with own_folders(), _closed_queues():
        suite = load_suite()
        tests = {test.id(): test for test in _tests(suite)}
        result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = {test.id() for test, _ in (*result.failures, *result.errors)}
    listed = {name for name, test in tests.items() if _names(test) & set(NOT_APPLICABLE)}
    for name in sorted(failed - listed):
        print("FAILED:", name)
    passed = tests.keys() - failed - {test.id() for test, _ in result.skipped}
    for name in sorted(passed & listed):
        print("LISTED AS NOT APPLICABLE, BUT PASSES:", name)
    print(f"{len(passed)} of {len(tests)} pass, {len(failed & listed)} do not apply")
    return bool(failed - listed or passed & listed)


if __name__ == "__main__":
    sys.exit(main())
