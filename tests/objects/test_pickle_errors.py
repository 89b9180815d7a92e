"""What can't be pickled is named, with the way to it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial

import numpy
import pytest

from nbstreamq.errors import NotPicklable
from nbstreamq.objects.functions import FunctionPickler
from nbstreamq.objects.pickling import dump


def message_of(value, what="an argument of fib()") -> str:
    with pytest.raises(NotPicklable) as caught:
        dump(value, what)
    return str(caught.value)


def test_an_item_is_named_by_its_number_in_the_whole_map(conn):
    with pytest.raises(NotPicklable, match=r"^item \[1002\]\[1\] of fib\(\) can't be sent"):
        dump([(1, 2), (3, 4), (5, conn)], "an item of fib()", first=1000)


def function_message(fn) -> str:
    with pytest.raises(NotPicklable) as caught:
        FunctionPickler().dump(fn)
    return str(caught.value)


@pytest.fixture
def conn():
    with sqlite3.connect(":memory:") as connection:
        yield connection
    connection.close()


def test_a_captured_connection_is_named_with_the_sizes_beside_it(notebook, conn):
    # Given a function that captures a connection and an array
    notebook |= {"conn": conn, "df": numpy.zeros(150_000_000, "u1"), "n": 1}
    notebook.run("def search(): return conn, df, n")
    # When it is sent, I expect all that one needs to know
    assert function_message(notebook["search"]) == (
        "search() can't be sent to a worker: it captures `conn` (sqlite3.Connection), which can't"
        " be pickled: cannot pickle 'sqlite3.Connection' object. Captured: `df` 150 MB, `conn`."
        " Open it inside the function, or pass what is needed to make it."
    )


def test_an_argument_is_named_by_its_path(conn):
    text = message_of((({"db": conn},), {}))
    assert text.startswith("argument args[0]['db'] of fib() can't be sent to a worker: it is a")


def test_a_keyword_argument_is_named(conn):
    assert "argument kwargs['db'] of fib()" in message_of(((), {"db": conn}))


def test_captures_are_followed_through_helpers(notebook, conn):
    notebook["conn"] = conn
    notebook.run("def helper(): return conn\ndef f(): return helper()")
    assert "it captures `helper`, which captures `conn`" in function_message(notebook["f"])


@pytest.mark.parametrize(("source", "way"), [
    ("def make(c):\n    def f(): return c\n    return f\nf = make(bad)", "captures `c` ("),
    ("def f(x, c=bad): pass", "captures `c` ("),
    ("def f(*, c=bad): pass", "captures `c` ("),
    ("class A: pass\na = A()\na.db = [bad]\ndef f(): return a", "captures `a.db[0]` ("),
    ("class A:\n    __slots__ = ('db',)\na = A()\na.db = bad\nf = lambda: a", "captures `a.db` ("),
    ("d = {'k': {1: bad}}\ndef f(): return d", "captures `d['k'][1]` ("),
    ("s = {bad}\ndef f(): return s", "captures `s (an element)` ("),
    ("class A:\n    def f(self): pass\na = A()\na.db = bad\nf = a.f", "captures `__self__.db` ("),
    ("class A:\n    db = bad\nf = lambda: A", "captures `A.db` ("),
])  # fmt: skip
def test_the_way_to_the_culprit(notebook, source, way):
    notebook["bad"] = threading.Lock()
    notebook.run(source)
    text = function_message(notebook["f"])
    assert way in text
    assert "_thread.lock" in text


def test_arguments_of_a_partial_are_named(notebook):
    assert "captures `args[0]` (_thread.lock)" in function_message(partial(print, threading.Lock()))
    assert "captures `sep` (_thread.lock)" in function_message(partial(print, sep=threading.Lock()))


@pytest.mark.parametrize(
    ("make", "advice", "of_a_result"),
    [
        (lambda: (x for x in ()), "Make a list of it first.", "Make a list of it first."),
        (threading.Lock, "Make it inside the function, or leave it out.", "what you need of it"),
        (threading.Condition, "Make it inside the function, or leave it out.", "what you need"),
        (lambda: open(os.devnull, "rb"), "or pass what it holds.", "Return what you need of it"),  # noqa: SIM115, PTH123
        (lambda: re.match("a", "a"), "Pass what you need of it, such as match.group()", "Return"),
        (threading.Thread, "ake it inside the function", "Return what you need of it"),
        (sys._getframe, "Pass its text", "Return its text"),
        (socket.socket, "Open it inside the function", "Return what you need of it"),
    ],
)
def test_each_kind_gets_its_own_advice(make, advice, of_a_result):
    with contextlib.closing(thing) if hasattr(thing := make(), "close") else nullcontext():
        assert advice in message_of((thing,))
        assert of_a_result in message_of([thing], "the result of task 3f-1")


def test_an_error_with_advice_gets_no_other_advice():
    class Job:
        def __reduce__(self):
            raise NotPicklable("A Job can't be pickled. Send its results.")

    assert message_of((Job(),)).endswith("Send its results.")


def test_results_are_sent_back_not_to_a_worker():
    text = message_of({"db": threading.Lock()}, "the result of task 3f-1")
    assert text.startswith("the result of task 3f-1 can't be sent back: it holds `['db']`")


def test_cycles_end(conn):
    cycle = [conn]
    cycle.append(cycle)
    assert "sqlite3.Connection" in message_of(((cycle,), {}))


def test_deep_nesting_is_explained():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert "recursion" in message_of((deep, {1: 2}, len)).lower()
    while deep:
        deep = deep[0]


def test_a_large_value_is_searched_in_bounded_time(conn):
    value = [[i, str(i)] for i in range(200_000)] + [conn]
    begun = time.monotonic()
    assert "sqlite3.Connection" in message_of((value,))
    assert time.monotonic() - begun < 5


def test_objects_with_hostile_methods_are_explained_all_the_same():
    class Hostile:
        def __reduce_ex__(self, protocol):
            raise ValueError("no way")

        def __repr__(self):
            raise RuntimeError

        def __getattr__(self, name):
            raise RuntimeError(name)

    assert "no way" in message_of(((Hostile(),), {}))
