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
    heavy = {"IPython", "ipywidgets", "ipykernel", "redis", "numpy"}
    program = f"import sys, nbstreamq; print(sorted({heavy!r} & set(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_only_the_wire_imports_redis():
    importers = {path for path, tree in TREES.items() if "redis" in set(imports(tree))}
    assert {name_of(path) for path in importers} <= {
        "nbstreamq/wire/connection.py",
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_is_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(TREES[path])
        if isinstance(node, functions) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_the_public_names_are_sorted_and_exist():
    import nbstreamq

    names = nbstreamq.__all__
    assert names == sorted(names)
    assert all(hasattr(nbstreamq, name) for name in names)
