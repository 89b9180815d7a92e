"""Workers beside those of Dask, and in Ray, on their local clusters.

``make test-foreign`` runs this in an environment of its own, which has them.
"""

from __future__ import annotations

import contextlib
import os
import signal

import distributed
import psutil
import pytest
import ray

from tests.real_workers import gate, new_queue

__all__ = ["gate", "new_queue"]

pytestmark = [
    pytest.mark.timeout(180),
    # What these packages do is up to them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    # Ray may take some seconds to start an actor, so waits say why they last.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:waiting for:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SECRET = "4d1f7c0a9b3e5d2846f0a1c7b8e9d3f2"


@contextlib.contextmanager
def local_cluster(n_workers, **options):
    with (
        distributed.LocalCluster(n_workers, dashboard_address=None, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def dask():
    """A client of two workers of Dask, which are processes."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ray_cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module", params=["dask", "ray"])
def place(request):
    """What `q.run` gets as ``on``."""
    if request.param == "dask":
        return request.getfixturevalue("dask")
    request.getfixturevalue("ray_cluster")
    return "ray"


def square(x):
    return x * x


def has_ended(pid):
    # Its parent may not have asked yet how it ended.
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def supervisor():
    return os.getppid()


class TestUnits:
    def test_run_calls_and_end(self, place, new_queue, wait_until):
        queue = new_queue(workers=0)
        units = queue.run(2, on=place)
        assert queue.map(square, range(10)).result(60) == [x * x for x in range(10)]
        wait_until(lambda: len(queue.workers()) == 2, 60, "both workers")
        units.scale(0)
        wait_until(lambda: not queue.workers(), 60, "the workers to leave")
        wait_until(lambda: {u.state for u in units} == {"ended"}, 60, "the units to end")
        assert units.scale(1) is None
        assert queue.submit(square, 3).result(60) == 9

    def test_a_lost_unit_is_replaced_and_its_call_runs_again(self, place, new_queue, gate):
        queue = new_queue(workers=0)
        queue.run(1, on=place)

        def work():
            if gate("lost").first():
                os.kill(os.getppid(), signal.SIGKILL)
                gate("never").wait()
            return "done"

        assert queue.submit(work).result(100) == "done"

    def test_a_shutdown_ends_them(self, place, new_queue, wait_until):
        queue = new_queue(workers=0, secret=SECRET)
        units = queue.run(1, on=place)
        pid = queue.submit(supervisor).result(60)
        assert "nbstreamq worker" in units.script()
        assert SECRET not in units.script()
        queue.shutdown()
        wait_until(lambda: has_ended(pid), 40, "the supervisor to end")


def test_units_end_with_their_worker_of_dask(new_queue, wait_until):
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as client,
    ):
        queue = new_queue(workers=0)
        queue.run(1, on=client)
        pid = queue.submit(supervisor).result(60)
        (worker,) = client.run(os.getpid).values()
        os.kill(worker, signal.SIGKILL)  # its nanny starts another one
        wait_until(lambda: has_ended(pid), 40, "the supervisor to end")
        assert queue.submit(square, 4).result(60) == 16, "Units has started another one"


def test_dask_keeps_no_secret(dask, new_queue):
    queue = new_queue(workers=0, secret=SECRET)
    queue.run(1, on=dask)
    assert queue.submit(square, 2).result(60) == 4

    def kept(dask_scheduler):
        return [*dask_scheduler.worker_plugins.values()], repr(dask_scheduler.tasks)

    assert SECRET not in repr(dask.run_on_scheduler(kept))
