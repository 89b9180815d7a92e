"""Many values as one pickled list: all come back, or those that can."""

from __future__ import annotations

import gc
import pickle
import pickletools
import sys
import threading
import types
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.objects.blobs import Blobs
from nbstreamq.objects.lists import MUCH, _split, dump_list, load_list


class Broken:
    """Can be pickled, and not unpickled."""

    def __init__(self, *parts):
        self.parts = parts

    def __setstate__(self, _state):
        raise ValueError("broken")


class Reduced:
    """Made again by a call, whose arguments it holds."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Reduced, (self.value,), {"more": self.value}

    def __eq__(self, other):
        return type(other) is Reduced and other.value == self.value

    __hash__ = None


@dataclass
class Point:
    x: object
    more: list[object] = field(default_factory=list)


SHARED = ["shared", {"by": "some"}]
simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=300),
    st.binary(max_size=300),
    st.builds(Broken),
    st.just(Point),
)
nested = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.tuples(inner),
        st.tuples(inner, inner, inner, inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.frozensets(st.integers(), min_size=1, max_size=4),
        st.builds(Reduced, inner),
        st.builds(Point, inner, st.lists(inner, max_size=3)),
        st.builds(Broken, inner),
    ),
    max_leaves=8,
)


def alone(value):
    """What comes of a value that is pickled alone."""
    try:
        return pickle.loads(pickle.dumps(value, 5))
    except ValueError:
        return "broken"


@given(st.lists(nested, max_size=12))
def test_those_that_can_be_had_are(values):
    failed = {}
    found = load_list(dump_list(values, None), failed)
    assert len(found) == len(values)
    for k, value in enumerate(values):
        assert found[k] == (None if k in failed else alone(value))
        # Nothing here refers to a part of a broken one, but to classes, names and constants.
        assert (k in failed) is (alone(value) == "broken")
    assert all(str(error) == "broken" for error in failed.values())


@given(st.lists(nested, max_size=12))
def test_elements_are_told_apart(values):
    data = pickle.dumps(values, 5)
    elements = _split(data)
    assert len(elements) == len(values)
    names = [what.name for element in elements for what, *_ in pickletools.genops(element)]
    assert names.count("STOP") == len(values)


@pytest.mark.parametrize("n", [1, 2, 999, 1000, 1001, 2500])
def test_lists_of_any_length(n):
    values = [Point(k, [SHARED]) for k in range(n)]
    values[n // 2] = Broken()
    failed = {}
    found = load_list(dump_list(values, None), failed)
    assert list(failed) == [n // 2]
    assert [p for p in found if p is not None] == [p for p in values if type(p) is Point]
    assert len({id(p.more[0]) for p in found if p}) == (n > 1), "they share what they shared"


def test_what_refers_to_a_part_of_a_broken_one_fails_like_it():
    part = Broken()
    failed = {}
    found = load_list(dump_list([1, [part, "a"], "b", Point(part), SHARED], None), failed)
    assert found == [1, None, "b", None, SHARED]
    assert failed[1] is failed[3]


def test_values_that_hold_themselves():
    ring: list[object] = []
    ring.append(ring)
    knot = (["x"], ring)
    knot[0].append(knot)
    failed = {}
    found = load_list(dump_list([Broken(), ring, knot, "end"], None), failed)
    assert list(failed) == [0]
    assert found[1][0] is found[1]
    assert found[2][0][1] is found[2]
    assert found[3] == "end"


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("last", ["end", Broken()])
def test_the_garbage_collector_is_left_as_it_was(enabled, last):
    data = dump_list([{"some": k} for k in range(MUCH)] + [last], None)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_list(data, {})
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_large_ones():
    values = [b"x" * 200_000, Broken(), "y" * 100_000, list(range(50_000))]
    failed = {}
    found = load_list(dump_list(values, None), failed)
    assert found == [values[0], None, *values[2:]]


def test_what_must_be_pickled_alone_is_left_to_that(place):
    numpy = pytest.importorskip("numpy")
    blobs = Blobs("test-lists", place)
    assert dump_list([1, threading.Lock()], None) is None
    assert dump_list([1, numpy.zeros(place.large)], blobs) is None
    assert place.values == {}
    assert load_list(dump_list([{}, numpy.zeros(3)], blobs), {})[1].tolist() == [0, 0, 0]


def test_a_class_that_is_not_here_takes_only_its_own(monkeypatch):
    module = types.ModuleType("only_there")
    exec("class Some:\n    def __init__(self, x):\n        self.x = x", vars(module))
    monkeypatch.setitem(sys.modules, "only_there", module)
    data = dump_list([Point(1), module.Some(2), {"x": 3}, module.Some(4), Point(5)], None)
    monkeypatch.delitem(sys.modules, "only_there")
    failed = {}
    assert load_list(data, failed) == [Point(1), None, {"x": 3}, None, Point(5)]
    assert {k: type(error) for k, error in failed.items()} == dict.fromkeys(
        [1, 3], ModuleNotFoundError
    )
