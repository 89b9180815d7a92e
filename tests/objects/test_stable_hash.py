"""Whether a function is the same, in another process or after an edit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import nbstreamq
from nbstreamq.objects import stable_hash as identity_module
from nbstreamq.objects.stable_hash import inputs_hash, stable_hash

REPOSITORY = Path(nbstreamq.__file__).parent.parent
BASE = '''
import abc
import dataclasses
import enum
import numpy
import typing
{line}
FACTOR = {factor}
NAMES = {names}
SHARED = {{"alpha", "beta", "gamma", "delta"}}

class Base:
    limit = {limit}

    @property
    def doubled(self):
        return 2 * self.limit

    @classmethod
    def make(cls):
        return cls()

class Model(Base):
    def score(self, x):
        return super().__repr__() and x in {{"one", "two", "three"}}

@dataclasses.dataclass
class Setting:
    rate: float = 0.5

def helper(x):
    return x {operator} FACTOR

def recursive(n):
    return n and recursive(n - 1)

class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...

T = typing.TypeVar("T")

class Box(typing.Generic[T]):
    def __init__(self, value: T):
        self.value = value

class Names(set):
    pass

class Mode(enum.Flag):
    A = 1
    B = 2

ARRAY = numpy.arange({array})
Mode.A | Mode.B

def outer(depth):
    def inner(x, scale={scale}):
        """What it does."""
        more = ARRAY, Shape, Box, Names(NAMES), Mode.A | Mode.B
        return helper(x), NAMES, SHARED, Model(), Setting, recursive(depth), inner, scale, more
    return inner

target = outer({depth})
'''
PRINT = "from nbstreamq.objects.stable_hash import stable_hash; print(stable_hash(target))"
SAME = {
    "line": "",
    "factor": 3,
    "names": ["a"],
    "limit": 5,
    "operator": "*",
    "scale": 1.5,
    "depth": 2,
    "array": 50_000,
}


@pytest.fixture
def identities(tmp_path):
    """``identities(changes, ...)``: that of the target with each, in a process of its own."""

    def find(*variants):
        found = []
        for number, changes in enumerate(variants):
            script = tmp_path / f"script{number}.py"
            source = BASE.format(**(SAME | changes))
            script.write_text(f"{source}\n{PRINT}")
            env = {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": str(number)}
            command = [sys.executable, script]
            done = subprocess.run(
                command, env=os.environ | env, capture_output=True, text=True, check=True
            )
            found.append(done.stdout)
        return found

    return find


def test_the_same_in_every_process_wherever_it_is_defined(identities):
    assert len(set(identities({}, {}, {"line": "# a line more"}))) == 1


def test_the_same_in_a_script_and_in_a_notebook_s_cells():
    """Where a module is imported in the same file, calls into it are compiled otherwise."""
    source = "def nap(x):\n    while x:\n        x = time.sleep(x) or time.time() > 3\n    return x"
    script: dict[str, Any] = {}
    exec(f"import time\n{source}", script)
    cells: dict[str, Any] = {"time": time}
    exec(source, cells)
    assert script["nap"].__code__.co_code != cells["nap"].__code__.co_code
    assert stable_hash(script["nap"]) == stable_hash(cells["nap"])


def test_another_after_any_change(identities):
    changes = [
        {"factor": 4},
        {"names": ["b"]},
        {"limit": 6},
        {"operator": "+"},
        {"scale": 2.5},
        {"depth": 3},
        {"array": 50_001},
    ]
    assert len(set(identities({}, *changes))) == 1 + len(changes)


def made(source):
    found: dict[str, Any] = {"nothing": None}
    exec(source, found)
    return found["f"]


CODE = """
def f(x):
    class Inner:
        def double(self):
            return 2 * x
    try:
        y = Inner().double()
    except ValueError:
        y = len("text")
    return y, "text", None
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    try:", "    # why\n\n    try:"),
        ("    class", '    """What it does."""\n    class'),
        ("        def", '        """What it is."""\n        def'),
        ("            return", '            """What it does."""\n            return'),
    ],
    ids=["comment", "docstring", "docstring of a class", "docstring of a method"],
)
def test_comments_and_docstrings_do_not_count(old, new):
    assert stable_hash(made(CODE)) == stable_hash(made(CODE.replace(old, new, 1)))


def test_what_an_error_handler_protects_is_part_of_the_code():
    body = "        a += 1\n    except TypeError:\n        a = 0"
    inside = f"def f(x):\n    try:\n        a = len(x)\n{body}"
    outside = f"def f(x):\n    a = len(x)\n    try:\n{body}"
    assert stable_hash(made(inside)) != stable_hash(made(outside))


def test_the_order_of_a_dict_does_not_count():
    def with_global(value):
        found: dict[str, Any] = {"rates": value}
        exec("def f(x):\n    return rates[x]", found)
        return found["f"]

    one, two = {"a": 1, "b": {2: 3, "c": 4}}, {"b": {"c": 4, 2: 3}, "a": 1}
    assert stable_hash(with_global(one)) == stable_hash(with_global(two))
    assert stable_hash(with_global(one)) != stable_hash(with_global({**one, "a": 2}))
    assert inputs_hash([one]) == inputs_hash([two])


def test_a_dict_may_hold_itself():
    found: list[Any] = []
    for _ in range(2):
        loop: dict[str, Any] = {"b": 1, "a": []}
        loop["self"] = loop
        found.append(stable_hash(loop))
    assert found[0] == found[1]


def test_equal_strings_count_as_one_object():
    word, same = "some text", "".join(["some ", "text"])
    assert word is not same
    for one, two in (([word, word], [word, same]), ([(word, word)], [(word, same)])):
        assert inputs_hash(one) == inputs_hash(two)
    row = (1, word)
    assert inputs_hash([row, row]) == inputs_hash([row, (1, same)])


def test_the_parts_of_a_function():
    def make(scale, limit):
        def f(x, *, most=limit):
            return min(x * scale, most)

        return f

    first, second = (identity_module.part_hashes(make(*v)) for v in ((2, 10), (3, 11)))
    differing = [part for part in first if first[part] != second[part]]
    assert differing == ["`scale`", "the default of `most`"]
    assert list(identity_module.part_hashes(abs)) == [""]
