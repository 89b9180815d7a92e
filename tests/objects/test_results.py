"""Outcomes of items as one body: simple ones in one pickle, however large."""

from __future__ import annotations

import pickle

import pytest

from nbstreamq.errors import NoRoom, ResultNotPicklable
from nbstreamq.objects.large_values import ValueWriter, register
from nbstreamq.objects.results import dump_outcomes, load_outcomes

N = 20_000


@pytest.fixture(autouse=True)
def readable(backend):
    register("test-outcomes", backend)


@pytest.mark.parametrize("values", [[k / 7 for k in range(N)], [f"{k:50}" for k in range(N)]])
def test_many_simple_values_are_one_pickle(backend, values):
    body = dump_outcomes(values, {}, str, ValueWriter("test-outcomes", backend))

    assert len(body) < backend.min_external_bytes
    assert [pickle.loads(whole) for whole in backend.values.values()] == [(True, values, {})]
    assert load_outcomes(body) == (values, {})


def test_few_values_are_in_the_message(backend):
    assert load_outcomes(dump_outcomes([1, 2], {}, str, ValueWriter("test-outcomes", backend))) == (
        [1, 2],
        {},
    )
    assert backend.values == {}


def test_without_room_only_large_results_are_lost(backend, monkeypatch):
    def full(_data):
        raise NoRoom("all is full")

    monkeypatch.setattr(backend, "write", full)
    small, large = (
        {"x": "a" * (backend.min_external_bytes - 100)},
        {"y": "b" * backend.min_external_bytes},
    )
    body = dump_outcomes(
        [small, large, small, "c" * 10], {}, str, ValueWriter("test-outcomes", backend)
    )
    values, errors = load_outcomes(body)
    assert values == [small, None, small, "c" * 10]
    assert {k: type(error) for k, error in errors.items()} == {1: ResultNotPicklable}
    assert "all is full" in str(errors[1])
