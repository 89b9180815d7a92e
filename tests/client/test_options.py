"""How a call is run: again after a failure, later, before others, only where a tag says so."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


class Flaky:
    """Functions for tasks that fail `n` times first; they count in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def failing(self, n):
        folder = str(self._folder)

        def fail_at_first(x=0):
            import os
            import time

            n_before = len([f for f in os.listdir(folder) if f.startswith(f"{x}-")])
            with open(os.path.join(folder, f"{x}-{n_before}"), "w") as file:
                file.write(str(time.time()))
            if n_before < n:
                raise OSError(f"failure {n_before + 1} of {x}")
            return x

        return fail_at_first

    def times(self, x=0):
        """When the attempts of item `x` began."""
        files = sorted(self._folder.glob(f"{x}-*"), key=lambda f: int(f.name.split("-")[1]))
        return [float(f.read_text()) for f in files]


@pytest.fixture
def flaky(tmp_path):
    folder = tmp_path / "flaky"
    folder.mkdir()
    return Flaky(folder)


class TestRetries:
    def test_none_by_default(self, shared_queue, flaky):
        future = shared_queue.submit(flaky.failing(1))
        with pytest.raises(OSError, match="failure 1 of 0"):
            future.result(10)
        assert future.attempts == len(flaky.times()) == 1

    def test_runs_it_again(self, shared_queue, flaky):
        future = shared_queue.options(retries=2).submit(flaky.failing(2), 5)
        assert future.result(10) == 5
        assert future.attempts == len(flaky.times(5)) == 3

    def test_spent(self, shared_queue, flaky):
        future = shared_queue.options(retries=2).submit(flaky.failing(9))
        with pytest.raises(OSError, match="failure 3 of 0"):
            future.result(10)
        assert future.attempts == len(flaky.times()) == 3

    def test_only_the_items_that_failed(self, shared_queue, flaky):
        fail_at_first = flaky.failing(1)
        job = shared_queue.options(retries=1).map(
            lambda x: fail_at_first(x) if x % 2 else -x, range(6), chunksize=6
        )
        assert job.result(10) == [0, 1, -2, 3, -4, 5]
        assert [len(flaky.times(x)) for x in range(6)] == [0, 2, 0, 2, 0, 2]

    def test_backoff_doubles(self, shared_queue, flaky):
        shared_queue.options(retries=2, backoff=0.2).submit(flaky.failing(2)).result(10)
        gaps = [b - a for a, b in itertools.pairwise(flaky.times())]
        assert gaps[0] >= 0.19
        assert gaps[1] >= 0.39

    def test_of_a_decorated_function(self, shared_queue, flaky):
        task = shared_queue.task(retries=1)(flaky.failing(1))
        assert task(3).result(10) == 3
        assert task.options(retries=0)(4).exception(10) is not None


class TestDelay:
    def test_starts_no_sooner(self, shared_queue):
        begun = time.time()
        future = shared_queue.options(delay=0.3).submit(time.time)
        assert future.result(10) >= begun + 0.29

    def test_others_pass(self, make_queue):
        queue = make_queue("-delay", workers=1)
        late = queue.options(delay=0.5).submit(time.time)
        assert queue.submit(time.time).result(10) < late.result(10)

    def test_is_shown_and_can_be_cancelled(self, make_queue, wait_until):
        queue = make_queue("-cancel", workers=0)
        future = queue.options(delay=60).submit(int)
        wait_until(
            lambda: sum(lane.delayed for lane in queue.status().lanes) == 1, describe="the delay"
        )
        assert future.cancel()


class TestLanes:
    def test_urgent_ones_run_first(self, make_queue, gate, tmp_path, wait_until):
        order = tmp_path / "order"

        def note(name, path=str(order)):
            with open(path, "a") as file:
                file.write(name + " ")

        queue = make_queue("-lanes", workers=1)
        held = queue.submit(gate.hold)
        wait_until(lambda: gate.n_reached == 1, describe="the worker is held up")
        futures = [queue.options(lane=x).submit(note, x) for x in ("low", "default", "high")]
        wait_until(
            lambda: sum(lane.waiting for lane in queue.status().lanes) == 3, describe="the tasks"
        )
        gate.open()
        for future in [held, *futures]:
            future.result(10)
        assert order.read_text().split() == ["high", "default", "low"]

    def test_tag_runs_where_it_is_served(self, make_queue, server_url, wait_until):
        queue = make_queue("-tag", workers=1)
        future = queue.options(lane="gpu").submit(os.getpid)
        other = queue.submit(os.getpid).result(10)
        command = [sys.executable, "-m", "nbstreamq", "worker", server_url, "--queue", queue.name]
        worker = subprocess.Popen([*command, "-n", "1", "--lane", "gpu"])
        try:
            assert future.result(20) != other
            tagged = [w for w in queue.workers() if "gpu" in w.lanes]
            assert [w.pid for w in tagged] == [future.result()]
        finally:
            worker.terminate()
            worker.wait(10)


class TestViews:
    def test_change_nothing_else(self, shared_queue, flaky):
        view = shared_queue.options(retries=1)
        assert view is not shared_queue
        assert view.name == shared_queue.name
        assert view.submit(flaky.failing(1), 1).result(10) == 1
        assert shared_queue.submit(flaky.failing(1), 2).exception(10) is not None

    def test_add_up(self, shared_queue, flaky):
        begun = time.time()
        view = shared_queue.options(retries=1, delay=9).options(delay=0.2)
        assert view.submit(flaky.failing(1)).result(5) == 0
        assert flaky.times()[0] >= begun + 0.19

    @pytest.mark.parametrize(
        "wrong", [{"retries": -1}, {"delay": "1"}, {"lane": ""}, {"lane": "@w"}, {"backoff": -0.1}]
    )
    def test_impossible_values(self, shared_queue, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            shared_queue.options(**wrong)

    def test_unknown_option(self, shared_queue):
        with pytest.raises(TypeError, match="colour"):
            shared_queue.options(colour="red")

    def test_time_limit_leaves_quick_calls_alone(self, shared_queue):
        assert shared_queue.options(time_limit=5).submit(abs, -1).result(10) == 1
