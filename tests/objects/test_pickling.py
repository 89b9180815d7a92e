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
from nbstreamq.objects.pickling import dump, dump_plain_call, load

plain = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.booleans(),
    st.none(),
    st.complex_numbers(allow_nan=False),
)
nested = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner),
        st.tuples(inner, inner),
        st.dictionaries(st.text(), inner),
        st.tuples(st.lists(inner).map(tuple), st.dictionaries(st.text(), inner)),
    ),
    max_leaves=10,
)


@given(nested)
def test_values_come_back_equal_and_need_no_cloudpickle(value):
    data = dump(value, "a value")
    copy = pickle.loads(data)
    assert copy == value
    assert type(copy) is type(value)
    assert b"cloudpickle" not in data


@given(st.lists(plain).map(tuple), st.dictionaries(st.text(), plain))
def test_plain_arguments_are_the_same_in_the_short_way(args, kwargs):
    data = dump_plain_call(args, kwargs, 2**30)
    assert load(data) == load(dump((args, kwargs), "arguments")) == (args, kwargs)
    assert dump_plain_call(args, kwargs, len(data)) is None, "it is too large"


class Name(str):
    """Not plain: its class may be a notebook's."""

    __slots__ = ()


@pytest.mark.parametrize(("args", "kwargs"), [
    (([],), {}),
    ((len,), {}),
    ((Name("a"),), {}),
    ((), {"a": Name("a")}),
    ((), {Name("a"): 1}),
])  # fmt: skip
def test_other_arguments_do_not_take_the_short_way(args, kwargs):
    assert dump_plain_call(args, kwargs, 2**30) is None


@pytest.mark.parametrize("wrap", [
    lambda f: f,
    lambda f: (f,),
    lambda f: [1, f],
    lambda f: ((f,), {}),
    lambda f: ((1,), {"key": f}),
    lambda f: {"a": [f]},
])  # fmt: skip
def test_functions_of_main_are_always_pickled_by_value(notebook, elsewhere, wrap):
    # Given a function defined in a cell, anywhere in a value
    notebook.run("def f(): return 42")
    data = dump(wrap(notebook["f"]), "an argument of g()")
    # When it is unpickled where that name does not exist, I expect no error
    assert elsewhere("pickle.loads(data); answer(True)", data)


def test_subclasses_of_plain_types_keep_their_class(notebook, elsewhere):
    notebook.run("class Metres(int):\n    unit = 'm'")
    data = dump((notebook["Metres"](3),), "an argument of g()")
    assert elsewhere("answer(pickle.loads(data)[0].unit)", data) == "m"


def test_a_namedtuple_is_not_taken_for_a_tuple():
    Pair = namedtuple("Pair", "a b")
    assert load(dump(Pair(1, 2), "a value")) == Pair(1, 2)


def test_an_instance_comes_back_with_the_same_class(notebook, elsewhere):
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


def test_an_instance_that_comes_back_does_not_change_methods(notebook, elsewhere):
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


def test_an_argument_that_cannot_be_pickled_is_named():
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
