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
from nbstreamq.objects.identity import identity

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
PRINT = "from nbstreamq.objects.identity import identity; print(identity(target))"
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


def test_the_same_in_every_process_wherever_it_stands(identities):
    assert len(set(identities({}, {}, {"line": "# a line more"}))) == 1


def test_the_same_in_a_script_and_in_a_notebook_s_cells():
    """Where a module is imported in the same file, calls into it are compiled otherwise."""
    source = "def nap(x):\n    while x:\n        x = time.sleep(x) or time.time() > 3\n    return x"
    script: dict[str, Any] = {}
    exec(f"import time\n{source}", script)
    cells: dict[str, Any] = {"time": time}
    exec(source, cells)
    assert script["nap"].__code__.co_code != cells["nap"].__code__.co_code
    assert identity(script["nap"]) == identity(cells["nap"])


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
