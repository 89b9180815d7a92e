"""joblib and scikit-learn run on a queue."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from threadpoolctl import threadpool_info


@pytest.fixture(scope="module")
def q(shared_queue):
    return shared_queue


def square(x):
    return x * x


def reciprocal(x):
    return 1 / x


def sum_of_squares(n):
    """A loop inside a loop."""
    return sum(Parallel(n_jobs=-1)(delayed(square)(x) for x in range(n)))


def nested(depth):
    if depth == 0:
        return 1
    return sum(Parallel(n_jobs=2)(delayed(nested)(depth - 1) for _ in range(2)))


# -- registration -------------------------------------------------------------------------------

REGISTERED = """
from joblib.parallel import BACKENDS
print("nbstreamq" in BACKENDS)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import joblib, nbstreamq",
        "import nbstreamq, joblib",
        "import nbstreamq, importlib.util; importlib.util.find_spec('joblib.parallel')",
    ],
)
def test_joblib_knows_the_backend_whichever_is_imported_first(imports, run_script):
    assert run_script(imports + REGISTERED) == "True\n"


def test_importing_nbstreamq_does_not_import_joblib(run_script):
    program = "import sys, nbstreamq; print('joblib' in sys.modules)"
    assert run_script(program) == "False\n"


def test_choosing_the_backend_starts_nothing(run_script):
    program = """
import nbstreamq, psutil
from joblib import parallel_config
with parallel_config("nbstreamq"):
    print(psutil.Process().children())
"""
    assert run_script(program) == "[]\n"


def test_the_backend_is_chosen_by_its_name(run_script):
    program = """
import nbstreamq
from joblib import Parallel, delayed
if __name__ == "__main__":
    print(Parallel(n_jobs=2, backend="nbstreamq")(delayed(abs)(x) for x in [-1, -2]))
"""
    assert run_script(program) == "[1, 2]\n"


# -- calls --------------------------------------------------------------------------------------


def test_results_come_in_order(q):
    with parallel_config(q.joblib()):
        assert Parallel()(delayed(square)(x) for x in range(1000)) == [*map(square, range(1000))]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_come_one_by_one(q, return_as):
    with parallel_config(q.joblib()):
        results = Parallel(return_as=return_as)(delayed(square)(x) for x in range(20))
        assert sorted(results) == [*map(square, range(20))]


def test_workers_run_the_calls(q):
    with parallel_config(q.joblib()):
        pids = Parallel()(delayed(os.getpid)() for _ in range(4))
    assert set(pids) <= {worker.pid for worker in q.workers()}


def test_an_error_shows_the_name_of_the_function_and_its_line(q):
    with parallel_config(q.joblib()), pytest.raises(ZeroDivisionError) as caught:
        Parallel()(delayed(reciprocal)(x) for x in [1, 0])
    assert "return 1 / x" in str(caught.value.__cause__)
    assert "reciprocal(" in caught.value.__notes__[0]


def test_a_timeout_cancels_the_calls(q, gate):
    with parallel_config(q.joblib()), pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.1)(delayed(gate("never").wait)() for _ in range(4))
    assert q.submit(square, 2).result(timeout=10) == 4


def test_an_error_cancels_the_calls_that_run(q, gate):
    def fail_when_the_other_runs(x):
        gate("runs").wait()
        return 1 / x

    def wait_forever(_):
        gate("runs").open()
        gate("never").wait()

    calls = [delayed(wait_forever)(0), delayed(fail_when_the_other_runs)(0)]
    with parallel_config(q.joblib()), pytest.raises(ZeroDivisionError):
        Parallel(batch_size=1)(calls)
    assert q.submit(square, 2).result(timeout=10) == 4


def test_dropping_one_generator_leaves_another_alone(q, gate):
    with parallel_config(q.joblib()):
        kept = Parallel(return_as="generator", batch_size=1)(delayed(square)(x) for x in range(200))
        dropped = Parallel(return_as="generator", batch_size=1)(
            delayed(gate("never").wait)() for _ in range(4)
        )
        with pytest.warns(UserWarning, match="were still being processed"):
            del dropped
        assert list(kept) == [*map(square, range(200))]


def test_jobs_are_counted_from_all_workers(q, one_worker, wait_until):
    # One that stood in for a task that waited may still be leaving.
    wait_until(lambda: len(q.workers()) == 2, describe="two workers")
    with parallel_config(q.joblib()):
        assert [effective_n_jobs(n) for n in (-1, 1, 7)] == [2, 1, 7]
    # With 1 job, joblib would make the calls in this process.
    with parallel_config(one_worker.joblib()):
        assert effective_n_jobs(-1) == 2
        assert Parallel()(delayed(os.getpid)() for _ in range(2)) != [os.getpid()] * 2


def test_threads_of_numerical_libraries_are_limited(q):
    def n_threads():
        import numpy as np  # its library has threads

        np.ones(1)
        return {pool["num_threads"] for pool in threadpool_info()}

    with parallel_config(q.joblib(), inner_max_num_threads=1):
        assert Parallel()(delayed(n_threads)() for _ in range(2)) == [{1}, {1}]


# -- loops inside loops -------------------------------------------------------------------------


def test_one_worker_runs_loops_inside_loops(one_worker):
    with parallel_config(one_worker.joblib()):
        assert Parallel()(delayed(sum_of_squares)(n) for n in range(5)) == [0, 0, 1, 5, 14]
        assert Parallel()(delayed(nested)(2) for _ in range(2)) == [4, 4]


def test_a_loop_inside_a_loop_stays_in_its_worker_unless_it_says_otherwise(q):
    def pids():
        return {os.getpid(), *Parallel()(delayed(os.getpid)() for _ in range(4))}

    with parallel_config(q.joblib()):
        assert [len(found) for found in Parallel()(delayed(pids)() for _ in range(4))] == [1] * 4


def test_an_error_in_an_inner_loop_reaches_the_outer_one(one_worker):
    def outer(x):
        return Parallel(n_jobs=2)(delayed(reciprocal)(x) for _ in range(3))

    with parallel_config(one_worker.joblib()), pytest.raises(ZeroDivisionError):
        Parallel()(delayed(outer)(x) for x in [1, 0])


# -- kept results -------------------------------------------------------------------------------


def test_a_name_keeps_results(q, tmp_path):
    def count(x):
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{x}\n")
        return x

    def run(name, *inputs):
        with parallel_config(q.joblib(name)):
            assert Parallel(batch_size=1)(delayed(count)(x) for x in inputs) == [*inputs]
        return sorted(map(int, (tmp_path / "calls").read_text().split()))

    assert run("kept", 1, 2) == [1, 2]
    assert run("kept", 3, 2, 1) == [1, 2, 3]
    assert run("other", 1) == [1, 1, 2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from nbstreamq import TaskQueue
from joblib import Parallel, delayed, parallel_config

def count(folder, x):
    with open(folder + "/calls", "a") as file:
        file.write(f"{x} ")
    return x

if __name__ == "__main__":
    folder, url, name, n_alive = sys.argv[1:]
    q = TaskQueue(name, url, workers=2)
    with parallel_config(q.joblib("killed")):
        results = Parallel(return_as="generator", batch_size=1)(
            delayed(count)(folder, x) for x in range(20)
        )
        for x in results:
            if x == int(n_alive):
                os.kill(os.getpid(), signal.SIGKILL)
    q.shutdown()
"""


def test_a_run_after_a_killed_one_makes_only_the_calls_that_are_missing(
    tmp_path, server_url, queue_name, run_script
):
    def calls():
        return sorted(map(int, (tmp_path / "calls").read_text().split()))

    with pytest.raises(AssertionError):
        run_script(KILLED, str(tmp_path), server_url, queue_name, "7")
    before = calls()
    assert before[:8] == [*range(8)]
    run_script(KILLED, str(tmp_path), server_url, queue_name, "-1")
    assert set(calls()) == {*range(20)}
    twice = [x for x in range(20) if calls().count(x) > 1]
    assert len(twice) <= 2, "only what ran when it was killed runs again"


# -- scikit-learn -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def search(**options):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    forest = RandomForestClassifier(n_estimators=10, random_state=0, **options)
    return GridSearchCV(forest, {"max_depth": [2, 5]}, cv=2)


def test_a_forest_inside_a_search_runs_on_one_worker(one_worker, digits):
    with parallel_config(one_worker.joblib()):
        found = search(n_jobs=-1).fit(*digits)
    expected = search().fit(*digits)
    assert (
        found.cv_results_["mean_test_score"].tolist()
        == expected.cv_results_["mean_test_score"].tolist()
    )
    assert (found.predict(digits[0]) == expected.predict(digits[0])).all()


def test_a_search_under_a_name_resumes(q, digits):
    def scores(grid):
        with parallel_config(q.joblib("grid")):
            return grid.fit(*digits).cv_results_["mean_fit_time"].tolist()

    first = scores(search())
    wider = search().set_params(param_grid={"max_depth": [2, 3, 5]}, verbose=0)
    times = scores(wider)
    assert [times[0], times[2]] == first, "these fits were not made again"
