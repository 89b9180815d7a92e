"""Values <-> bytes."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbstreamq.errors import NotPicklable
from nbstreamq.objects.pickling import dump, load

simple = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.booleans(),
    st.none(),
    st.complex_numbers(allow_nan=False),
)
nested = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.text(), inner),
        st.tuples(st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)),
    ),
    max_leaves=10,
)


@given(nested)
def test_values_come_back_equal_and_of_the_same_type(value):
    copy = load(dump(value, "a value"))
    assert copy == value
    assert type(copy) is type(value)


@given(nested)
def test_simple_values_need_no_cloudpickle_to_be_read(value):
    assert b"cloudpickle" not in dump(value, "a value")


@pytest.mark.parametrize("wrap", [
    lambda f: f,
    lambda f: (f,),
    lambda f: [1, f],
    lambda f: ((f,), {}),
    lambda f: ((1,), {"key": f}),
    lambda f: {"a": [f]},
])  # fmt: skip
def test_functions_of_main_always_travel_by_value(notebook, elsewhere, wrap):
    # Given a function defined in a cell, anywhere in a value
    notebook.run("def f(): return 42")
    data = dump(wrap(notebook["f"]), "an argument of g()")
    # When it is unpickled where that name does not exist, I expect no error
    assert elsewhere("pickle.loads(data); answer(True)", data)


def test_subclasses_of_simple_types_keep_their_class(notebook, elsewhere):
    notebook.run("class Metres(int):\n    unit = 'm'")
    data = dump((notebook["Metres"](3),), "an argument of g()")
    assert elsewhere("answer(pickle.loads(data)[0].unit)", data) == "m"


def test_a_namedtuple_is_not_taken_for_a_tuple():
    Pair = namedtuple("Pair", "a b")
    assert load(dump(Pair(1, 2), "a value")) == Pair(1, 2)


def test_an_instance_comes_home_as_instance_of_the_same_class(notebook, elsewhere):
    # Given a class defined in a cell
    notebook.run("class Point:\n    n = 1\n    def __init__(self, x): self.x = x")
    cls = notebook["Point"]
    data = dump(cls(3), "an argument of g()")
    # When another process changes and returns it, while the class is edited here
    cls.n = 2
    returned = elsewhere(
        "from nbstreamq.objects.pickling import dump, load\n"
        "point = load(data); point.x += 1; answer(dump(point, 'the result'))",
        data,
        raw=True,
    )
    # I expect an instance of this very class, and the class as it is here
    point = load(returned)
    assert type(point) is cls
    assert (point.x, cls.n) == (4, 2)


def test_coming_home_leaves_the_methods_of_a_class_alone(notebook, elsewhere):
    # Given a class with a method that uses a global
    notebook.run("k = 1\nclass Model:\n    def get(self): return k")
    method = notebook["Model"].get
    data = dump(notebook["Model"](), "an argument of g()")
    returned = elsewhere(
        "from nbstreamq.objects.pickling import dump, load\n"
        "answer(dump(load(data), 'the result'))", data, raw=True,
    )  # fmt: skip
    # When its instance was there and back again
    model = load(returned)
    # I expect that the method still sees the notebook's globals
    notebook["k"] = 2
    assert notebook["Model"].get is method
    assert model.get() == 2


def test_an_edited_class_is_updated_where_it_was_already_received(notebook, elsewhere):
    notebook.run("class Model:\n    n = 1")
    first = dump(notebook["Model"](), "an argument of g()")
    notebook["Model"].n = 2
    second = dump(notebook["Model"](), "an argument of g()")
    assert elsewhere("answer([pickle.loads(d).n for d in data])", [first, second]) == [1, 2]


def test_what_cannot_travel_is_refused_by_name():
    with pytest.raises(NotPicklable, match=r"argument args\[0\]\['lock'\] of fib\(\)"):
        dump((({"lock": threading.Lock()},), {}), "an argument of fib()")


def test_a_failure_says_its_cause_without_the_frames_of_a_pickler():
    with pytest.raises(NotPicklable, match=r"cannot pickle '_thread\.lock' object") as caught:
        dump(threading.Lock(), "an argument of fib()")
    assert caught.value.__cause__ is None


def test_running_out_of_memory_is_not_called_unpicklable():
    class Huge:
        def __reduce__(self):
            raise MemoryError

    with pytest.raises(MemoryError):
        dump(Huge(), "an argument of fib()")


def test_importing_the_package_does_not_import_cloudpickle():
    script = (
        "import sys, nbstreamq.objects.functions, nbstreamq.objects.pickling,"
        " nbstreamq.objects.remote_errors\n"
        "sys.exit('cloudpickle' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_payloads_are_plain_pickles():
    assert pickle.loads(dump({"a": [1, (2,)]}, "a value")) == {"a": [1, (2,)]}
