"""Random numbers: an item's own with a seed, and never the same by accident."""

from __future__ import annotations

import importlib.util
import random
import sys
import warnings
from random import random as drawn
from random import randrange

import numpy as np
import pytest
from numpy.random import rand

import nbstreamq
from nbstreamq import JobChanged
from nbstreamq.objects.random_numbers import own_state


def draw(_=None):
    return (
        nbstreamq.rng().random(),
        nbstreamq.rng().random(),
        random.random(),
        np.random.rand(),
        random.gauss(0, 1),
    )


def expected(seed, n):
    """What NumPy says of the first two numbers."""
    children = np.random.SeedSequence(seed).spawn(n)
    return [tuple(np.random.default_rng(child).random(2).tolist()) for child in children]


class TestSeed:
    def test_each_item_has_its_own_numbers(self, shared_queue):
        found = shared_queue.map(draw, range(50), seed=42).result(20)
        assert [numbers[:2] for numbers in found] == expected(42, 50)
        for column in zip(*found, strict=True):
            assert len(set(column)) == 50

    @pytest.mark.parametrize("seed", [0, 2**63, 2**200, [1, 2], np.arange(3), (5,), np.int64(7)])
    def test_any_seed_of_numpy(self, shared_queue, seed):
        found = shared_queue.map(draw, range(3), seed=seed).result(20)
        assert [numbers[:2] for numbers in found] == expected(seed, 3)

    def test_workers_chunks_and_bounds_change_nothing(self, make_queue, shared_queue):
        one = make_queue("-one", workers=1)
        first = one.map(draw, range(40), seed=1).result(20)
        assert shared_queue.map(draw, range(40), seed=1, chunksize=1).result(20) == first
        assert shared_queue.map(draw, range(40), seed=1, chunksize=7).result(20) == first
        assert list(shared_queue.map(draw, iter(range(40)), seed=1, buffersize=3)) == first
        assert shared_queue.task(draw).map(range(40), seed=1).result(20) == first
        assert shared_queue.map(draw, range(40), seed=2).result(20)[0] != first[0]

    def test_a_retry_has_the_same_numbers(self, shared_queue, tmp_path):
        def fail_first(item):
            numbers = draw()
            mark = tmp_path / f"{item}-{numbers}"
            if not mark.exists():
                mark.touch()
                raise ValueError
            return numbers

        found = shared_queue.options(retries=1).map(fail_first, range(10), seed=3).result(20)
        assert found == shared_queue.map(draw, range(10), seed=3).result(20)

    def test_failed_items_run_again_with_the_same_numbers(self, shared_queue, tmp_path):
        def fail(item):
            if item % 2:
                raise ValueError
            return draw()

        job = shared_queue.map(fail, range(10), seed=3)
        job.wait(20)
        job.retry_failed(draw)
        assert job.result(20) == shared_queue.map(draw, range(10), seed=3).result(20)

    def test_results_of_generators(self, shared_queue):
        def some(_):
            yield draw()

        found = shared_queue.map(some, range(5), seed=1).result(20)
        assert [one[0] for one in found] == shared_queue.map(draw, range(5), seed=1).result(20)

    def test_what_runs_afterwards_is_not_seeded(self, make_queue):
        queue = make_queue(workers=1)
        seen = set()
        for _ in range(3):
            queue.map(draw, range(3), seed=1).result(20)
            seen |= set(queue.submit(draw).result(20))
        assert len(seen) == 15

    def test_what_runs_while_an_item_waits(self, make_queue):
        queue = make_queue(workers=1)

        def outer(_):
            before = draw()
            inner = queue.submit(draw).result()
            seeded = queue.map(draw, range(2), seed=9).result()
            return before, inner, seeded, draw()

        first, second = (queue.map(outer, range(2), seed=1).result(20) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert one[0] == other[0]
            assert not set(one[1]) & set(other[1])
            assert one[2] == other[2] == queue.map(draw, range(2), seed=9).result(20)
            assert one[3] == other[3]

    def test_it_is_a_part_of_what_a_named_job_is(self, shared_queue):
        job = shared_queue.map(draw, range(5), name="seeded", seed=[1, 2])
        found = job.result(20)
        assert shared_queue.map(draw, range(5), name="seeded", seed=(1, 2)).result(20) == found
        for seed in (None, 5):
            with pytest.raises(JobChanged, match=f"its seed is \\[1, 2\\], but {seed} is given"):
                shared_queue.map(draw, range(5), name="seeded", seed=seed)
        assert shared_queue.map(draw, range(5), seed=[1, 2]).result(20) == found
        assert shared_queue.attach("seeded")[4].replay() == found[4]
        job.delete()

    def test_without_numpy(self, make_queue):
        queue = make_queue(workers=1)
        with_numpy = queue.map(lambda _: random.random(), range(3), seed=1).result(20)
        queue = make_queue("-bare", workers=1)

        def hide():
            sys.modules["numpy"] = None

        queue.everywhere(hide).result(20)
        assert queue.map(lambda _: random.random(), range(3), seed=1).result(20) == with_numpy
        job = queue.map(lambda _: nbstreamq.rng(), range(2), seed=1)
        with pytest.raises(ModuleNotFoundError, match=r"nbstreamq\.rng\(\).*not installed"):
            job.result(20)


def test_without_a_seed_numbers_differ(shared_queue):
    calls = [shared_queue.submit(draw) for _ in range(20)]
    found = [numbers for call in calls for numbers in call.result(20)]
    found += [number for numbers in shared_queue.map(draw, range(20)) for number in numbers]
    assert len(set(found)) == 200
    assert len(set(draw())) == 5


@pytest.mark.parametrize("fn", [random.random, drawn, np.random.rand, np.random.normal])
def test_functions_that_share_a_state_draw_from_the_worker_s(shared_queue, fn):
    assert len({shared_queue.submit(fn).result(20) for _ in range(10)}) == 10


def test_methods_of_the_shared_generators_that_functions_capture(shared_queue):
    def numbers():
        return drawn(), rand(), randrange(2**60)

    found = [number for _ in range(10) for number in shared_queue.submit(numbers).result(20)]
    assert len(set(found)) == 30


class Dice(random.Random):
    """A generator of somebody's own."""


class TestWarning:
    """A generator that travels is a copy each time: its numbers repeat."""

    @pytest.mark.parametrize(
        "make", [np.random.default_rng, np.random.RandomState, random.Random, Dice]
    )
    def test_of_a_generator_that_a_function_captures(self, make_queue, make):
        queue, generator = make_queue(workers=1), make(1)

        def number(_=None):
            return generator.random()

        with pytest.warns(RuntimeWarning, match=r"number\(\) captures.*nbstreamq\.rng\(\).*seed="):
            queue.submit(number).result(20)
        with warnings.catch_warnings():  # once
            warnings.simplefilter("error")
            queue.map(number, range(3)).result(20)

    def test_of_a_method_of_a_generator(self, make_queue):
        queue = make_queue(workers=1)
        with pytest.warns(RuntimeWarning, match=r"captures.*Generator"):
            queue.submit(np.random.default_rng(1).normal).result(20)
        with pytest.warns(RuntimeWarning, match=r"captures.*Random"):
            queue.submit(random.Random(1).gauss, 0, 1).result(20)

    @pytest.mark.parametrize("make", [np.random.default_rng, np.random.PCG64, Dice])
    def test_of_an_argument(self, make_queue, make):
        queue, generator = make_queue(workers=1), make(1)
        kind = type(generator).__qualname__
        with pytest.warns(RuntimeWarning, match=rf"An argument of type\(\) .*{kind}"):
            queue.submit(type, generator).result(20)

    def test_of_one_for_all_items(self, make_queue):
        queue, generator = make_queue(workers=1), random.Random(1)
        with pytest.warns(RuntimeWarning, match=r"Items of len\(\) .*Random"):
            queue.map(len, [[generator]] * 5, chunksize=1).result(20)

    def test_not_of_one_for_each_item(self, make_queue):
        queue, parent = make_queue(workers=1), np.random.default_rng(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = queue.map(lambda g: g.random(), parent.spawn(5)).result(20)
            queue.map(type, map(np.random.RandomState, range(5))).result(20)
            queue.map(type, map(np.random.Philox, range(5))).result(20)
            found += queue.map(lambda g: g.random(), map(random.Random, range(5))).result(20)
            found += [queue.submit(lambda g: g.random(), g).result(20) for g in parent.spawn(5)]
        assert len(set(found)) == 15

    @pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch")
    def test_of_a_generator_of_torch(self, make_queue):
        import torch

        generator = torch.Generator()
        with pytest.warns(RuntimeWarning, match="captures.*Generator"):
            make_queue(workers=1).submit(lambda: [generator.initial_seed()]).result(20)


def test_the_kernel_s_own_state_is_as_it_was():
    random.seed(1)
    np.random.seed(1)
    before = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    with own_state():
        assert (random.random(), np.random.rand()) != before
    assert (random.random(), np.random.rand()) == before
