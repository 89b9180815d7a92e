"""Small real jobs of tools that take an executor, a pool or a map, next to their own backend.

``make test-foreign`` runs this in an environment of its own, which has the tools.
"""

from __future__ import annotations

import adaptive
import dask
import dask.array
import dask.bag
import emcee
import numpy as np
import optuna
import pytest
import xarray

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
