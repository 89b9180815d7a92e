"""Many values pickled together: all come back, or those that can."""

from __future__ import annotations

import enum
import gc
import pickle
import sys
import threading
import types
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.objects.large_values import ValueWriter
from nbstreamq.objects.pickling import dump_batch, load_batch
from nbstreamq.objects.remote_errors import dump_error
from nbstreamq.objects.results import dump_outcomes, load_outcomes


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

    @dataclass
    class Inner:
        y: int


class Colour(enum.Enum):
    RED = 1


SHARED = ["shared", {"by": "some"}]
simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=300),
    st.binary(max_size=300),
    st.builds(Broken),
    st.builds(Point.Inner, st.integers()),
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


def together(values, writer=None):
    """What is found, and what has failed, after there and back."""
    found, failed = load_batch(dump_batch(values, writer))
    assert len(found) == len(values)
    assert all(found[k] is None for k in failed)
    return found, failed


def alone(value):
    """What comes of a value that is pickled alone."""
    try:
        return pickle.loads(pickle.dumps(value, 5))
    except ValueError:
        return "broken"


@given(st.lists(nested, max_size=12))
def test_values_that_can_be_unpickled_are_not_lost(values):
    found, failed = together(values)
    for k, value in enumerate(values):
        assert found[k] == (None if k in failed else alone(value))
        # Nothing here refers to a part of a broken one, but to classes, names and constants.
        assert (k in failed) is (alone(value) == "broken")
    assert all(str(error) == "broken" for error in failed.values())


@pytest.mark.parametrize("n", [1, 2, 999, 1000, 1001, 2500])
def test_lists_of_any_length(n):
    values = [Point(k, [SHARED]) for k in range(n)]
    values[n // 2] = Broken()
    found, failed = together(values)
    assert list(failed) == [n // 2]
    assert [p for p in found if p is not None] == [p for p in values if type(p) is Point]
    assert len({id(p.more[0]) for p in found if p}) == (n > 1), "they share what they shared"


def test_without_classes_there_is_one_pickle():
    values = [{"x": k, "y": [k, SHARED]} for k in range(2500)]
    assert pickle.loads(dump_batch(values, None).data) == values
    assert together(values) == (values, {})


def test_values_of_numpy_are_one_pickle_too():
    numpy = pytest.importorskip("numpy")
    values = [numpy.float64(1.5), numpy.int8(3), {"a": numpy.arange(3)}, numpy.dtype("f4")]
    assert dump_batch(values, None).ends == []
    found, _ = together(values)
    assert [*found[:2], found[2]["a"].tolist(), found[3]] == [1.5, 3, [0, 1, 2], values[3]]
    assert dump_batch([numpy.array([Point(1)])], None).ends, "there may be anything in it"


def test_a_value_that_shares_a_part_with_a_broken_one_fails_too():
    part = Broken()
    found, failed = together([1, [part, "a"], "b", Point(part), SHARED])
    assert found == [1, None, "b", None, SHARED]
    assert failed[1] is failed[3]


def test_half_made_values_are_not_returned():
    parent = Point(1)
    child = Point(parent)
    parent.more = [child, Broken()]
    found, failed = together([parent, child, [child], Point(5)])
    assert list(failed) == [0, 1, 2]
    assert found[3] == Point(5)


def test_values_that_hold_themselves():
    ring: list[object] = []
    ring.append(ring)
    knot = (["x"], ring)
    knot[0].append(knot)
    broken_knot = ([Broken()],)
    broken_knot[0].append(broken_knot)
    for values in ([knot, Broken(), ring, "end"], [Broken(), ring, knot], ["x", broken_knot, knot]):
        found, failed = together(values)
        assert list(failed) == [
            k for k, v in enumerate(values) if v in (broken_knot,) or type(v) is Broken
        ]
        for k, value in enumerate(values):
            if value is knot:
                assert found[k][0][1] is found[k]
            if value is ring:
                assert found[k][0] is found[k]
    found, _ = together([knot, Broken(), [SHARED, "other"], [SHARED], ["other"]])
    assert found[2:] == [[SHARED, "other"], [SHARED], ["other"]]


def test_a_class_of_a_notebook_outlives_its_broken_instances():
    names = {"__name__": "__main__"}
    exec(
        "class Money:\n"
        "    def __init__(self, x, check=True):\n"
        "        if check and x < 0: raise ValueError('negative')\n"
        "        self.x = x\n"
        "    def __reduce__(self): return Money, (self.x,)\n",
        names,
    )
    money = names["Money"]
    found, failed = together([money(-1, check=False), money(2), [money(3)], money(4)])
    assert {k: str(error) for k, error in failed.items()} == {0: "negative"}
    assert [found[1].x, found[2][0].x, found[3].x] == [2, 3, 4]


def test_a_missing_class_loses_only_its_instances(monkeypatch):
    module = types.ModuleType("only_there")
    exec("class Some:\n    def __init__(self, x):\n        self.x = x", vars(module))
    monkeypatch.setitem(sys.modules, "only_there", module)
    values = [Point(1), module.Some(2), {"x": 3}, module.Some(4), Point(5), Colour.RED, Decimal(2)]
    dumped = dump_batch(values, None)
    monkeypatch.delitem(sys.modules, "only_there")
    found, failed = load_batch(dumped)
    assert found == [Point(1), None, {"x": 3}, None, Point(5), Colour.RED, Decimal(2)]
    assert {k: type(e) for k, e in failed.items()} == dict.fromkeys([1, 3], ModuleNotFoundError)


def raised(error):
    raise error


class Raising:
    """Raises an error when it is unpickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return raised, (self.error,)


def test_any_kind_of_error_is_reported():
    part = Raising(KeyError("key"))
    _, failed = together([part, [part], 3])
    assert {k: repr(error) for k, error in failed.items()} == dict.fromkeys(
        [0, 1], "KeyError('key')"
    )


def test_one_interrupt_ends_the_loading():
    found, failed = together([1, Raising(KeyboardInterrupt()), 3])
    assert found == [None] * 3
    assert {k: type(error) for k, error in failed.items()} == dict.fromkeys(
        range(3), KeyboardInterrupt
    )


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("last", ["end", Broken()])
def test_the_garbage_collector_is_left_as_it_was(enabled, last):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        together([{"some": k} for k in range(1000)] + [last])
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("last", ["end", Broken(), Point(1)])
def test_large_values(last):
    values = [b"x" * 200_000, last, "y" * 100_000, list(range(50_000))]
    found, failed = together(values)
    assert found == [values[0], None if failed else last, *values[2:]]


def test_values_that_need_a_pickle_of_their_own_are_left_out(backend):
    numpy = pytest.importorskip("numpy")
    writer = ValueWriter("test-together", backend)
    assert dump_batch([1, threading.Lock()], None) is None
    assert dump_batch([1, numpy.zeros(backend.min_external_bytes)], writer) is None
    assert dump_batch([Point(1), numpy.zeros(backend.min_external_bytes)], writer) is None
    assert backend.values == {}
    assert together([{}, numpy.zeros(3)], writer)[0][1].tolist() == [0, 0, 0]


def test_errors_of_the_task_and_of_unpickling_are_kept_apart():
    errors = {1: dump_error(ValueError("there"), task="t")}
    values, found = load_outcomes(dump_outcomes([Point(1), None, Broken(), 4], errors, str))
    assert values == [Point(1), None, None, 4]
    assert {k: str(error) for k, error in found.items()} == {1: "there", 2: "broken"}
    assert "unpickled here" in found[2].__notes__[0]
    part = Broken()
    _, found = load_outcomes(dump_outcomes([part, [part]], {}, str))
    assert len(found[0].__notes__) == 1
    assert found[0] is found[1]
