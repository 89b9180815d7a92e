"""The shape of the package: what it loads, who imports what, how long its functions are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "nbstreamq").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(tree):
    """Return the top-level names that a module imports, late imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"IPython", "ipywidgets", "ipykernel", "marimo", "redis", "numpy"}
    program = f"import sys, nbstreamq; print(sorted({heavy!r} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_only_the_wire_imports_redis():
    importers = {path for path, tree in TREES.items() if "redis" in set(imports(tree))}
    names = ("addresses", "connection", "replies")
    assert {name_of(path) for path in importers} <= {f"nbstreamq/wire/{name}.py" for name in names}


def n_lines(function):
    """Return how many lines a function has, without its docstring."""
    n = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        n -= function.body[0].end_lineno - function.body[0].lineno + 1
    return n


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_is_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(TREES[path]) if isinstance(node, functions)]
    assert [f"{f.name}: {n_lines(f)} lines" for f in found if n_lines(f) > 60] == []


def test_the_public_names_are_sorted_and_exist():
    import nbstreamq

    names = nbstreamq.__all__
    assert names == sorted(names)
    assert all(hasattr(nbstreamq, name) for name in names)
