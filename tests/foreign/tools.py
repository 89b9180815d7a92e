"""Small real jobs of tools that take an executor, a pool or a map, next to their own backend.

``make test-foreign`` runs this in an environment of its own, which has the tools.
"""

from __future__ import annotations

from multiprocessing.pool import ThreadPool

import adaptive
import dask
import dask.array
import dask.bag
import dynesty
import emcee
import numpy as np
import optuna
import pipefunc
import pytest
import scipy.integrate
import scipy.optimize
import xarray
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import ElementwiseProblem
from pymoo.optimize import minimize
from pymoo.parallelization.starmap import StarmapParallelization
from tqdm import tqdm

from tests.real_workers import shared_queue

__all__ = ["shared_queue"]


@pytest.fixture(scope="module")
def q(shared_queue):
    return shared_queue


def square(x):
    return x * x


def log_of_gaussian(point):
    return -0.5 * float(np.sum(np.square(point)))


# -- executors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scheduler", "pool"])
def test_dask(q, how):
    words = dask.bag.from_sequence(["a b", "b c", "c c"] * 20, npartitions=6)
    found = words.map(str.split).flatten().frequencies()
    options = {"scheduler": q} if how == "scheduler" else {"scheduler": "processes", "pool": q}
    assert sorted(found.compute(**options)) == sorted(found.compute(scheduler="sync"))


def test_xarray(q):
    data = xarray.DataArray(np.arange(60.0).reshape(6, 10), dims=("time", "place"))
    anomalies = data.chunk(time=1, place=10) - data.mean("time")
    with dask.config.set(scheduler=q):
        found = anomalies.std("place").compute()
    xarray.testing.assert_allclose(found, (data - data.mean("time")).std("place"))


def test_adaptive(q):
    def learn(**options):
        learner = adaptive.Learner1D(square, bounds=(-1, 1))
        adaptive.runner.BlockingRunner(learner, npoints_goal=20, **options)
        return learner

    found = learn(executor=q, ntasks=2)
    assert found.npoints >= 20
    assert all(y == square(x) for x, y in found.data.items())
    assert set(found.bounds) <= found.data.keys()


def test_pipefunc(q):
    @pipefunc.pipefunc(output_name="y", mapspec="x[i] -> y[i]")
    def y(x):
        return x * x

    @pipefunc.pipefunc(output_name="total")
    def total(y):
        return int(sum(y))

    pipeline, inputs = pipefunc.Pipeline([y, total]), {"x": [*range(10)]}
    own = pipeline.map(inputs, parallel=False, storage="dict")
    found = pipeline.map(inputs, executor=q, storage="dict", chunksizes=1)
    assert found["total"].output == own["total"].output == 285


def test_optuna(q):
    def optimize(evaluate):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        trials = [study.ask() for _ in range(10)]
        values = evaluate(square, [trial.suggest_float("x", -1, 1) for trial in trials])
        for trial, value in zip(trials, values, strict=True):
            study.tell(trial, value)
        return study.best_value

    assert optimize(q.map) == optimize(map)


# -- pools and maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["queue", "pool"])
def test_emcee(q, how):
    def chain(pool):
        start = np.random.default_rng(0).normal(size=(8, 2))
        np.random.seed(0)
        sampler = emcee.EnsembleSampler(8, 2, log_of_gaussian, pool=pool)
        sampler.run_mcmc(start, 10)
        return sampler.get_chain()

    assert np.array_equal(chain(q if how == "queue" else q.pool()), chain(None))


def test_dynesty(q):
    def evidence(pool):
        sampler = dynesty.NestedSampler(
            log_of_gaussian,
            _prior,
            2,
            nlive=50,
            pool=pool,
            queue_size=2,
            rstate=np.random.default_rng(0),
        )
        sampler.run_nested(dlogz=2.0, print_progress=False)
        return sampler.results.logz[-1]

    with ThreadPool(2) as own:
        expected = evidence(own)
    assert evidence(q) == evidence(q.pool()) == expected


def _prior(unit):
    return 10 * unit - 5


class Sphere(ElementwiseProblem):
    """The sum of squares."""

    def __init__(self, **options):
        super().__init__(n_var=3, n_obj=1, xl=-1.0, xu=1.0, **options)

    def _evaluate(self, x, out, *_, **__):
        out["F"] = float(np.sum(x**2))


@pytest.mark.parametrize("how", ["queue", "pool"])
def test_pymoo(q, how):
    def best(**options):
        return minimize(Sphere(**options), GA(pop_size=10), ("n_gen", 3), seed=1).F

    starmap = q.starmap if how == "queue" else q.pool().starmap
    assert best(elementwise_runner=StarmapParallelization(starmap)) == best()


def test_scipy(q):
    def optimum(workers):
        return scipy.optimize.differential_evolution(
            log_of_gaussian,
            [(-1, 2)] * 2,
            maxiter=3,
            rng=0,
            updating="deferred",
            workers=workers,
            polish=False,
        ).x

    assert np.array_equal(optimum(q.map), optimum(1))
    integral, _ = scipy.integrate.quad_vec(square, 0, 1, workers=q.map)
    assert integral == pytest.approx(1 / 3)


def test_tqdm(q, capsys):
    job = q.map(square, range(100))
    assert sum(tqdm(job, total=len(job))) == 328350
    assert "100/100" in capsys.readouterr().err
