"""A second interpreter, cells as a notebook runs them, and a backend for large values."""

from __future__ import annotations

import importlib
import linecache
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
READ = """
import pickle, sys
sys.path.insert(0, {root!r})
data = pickle.loads(sys.stdin.buffer.read())
def answer(value):
    sys.stdout.buffer.write(value if isinstance(value, bytes) else pickle.dumps(value))
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., Any]:
    """Run a script in a fresh Python, in another folder: it has `data`, and calls `answer`."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(script: str, data: Any, *, raw: bool = False) -> Any:
        code = READ.format(root=str(ROOT)) + script
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            input=pickle.dumps(data),
            capture_output=True,
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout if raw else pickle.loads(done.stdout)

    return run


@pytest.fixture
def call_elsewhere(elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """Call a dumped function in a fresh Python; its result is a plain value."""

    def call(data: bytes, *args: Any) -> Any:
        script = (
            "from nbstreamq.objects.functions import load_function\n"
            "function, args = data\n"
            "answer(load_function(function)(*args))\n"
        )
        return elsewhere(script, (data, args))

    return call


class Notebook(dict[str, Any]):
    """A namespace that cells are run in, as in the `__main__` of a kernel."""

    def __init__(self) -> None:
        super().__init__(__name__="__main__")
        self.n_cells = 0

    def run(self, source: str) -> None:
        self.n_cells += 1
        filename = f"<cell {id(self)}-{self.n_cells}>"
        lines = source.splitlines(keepends=True)
        linecache.cache[filename] = (len(source), None, lines, filename)
        exec(compile(source, filename, "exec"), self)


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write modules into a folder beside the notebook, from where they can be imported here."""
    folder = tmp_path / "beside"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if (folder / name.partition(".")[0]).exists() or (folder / f"{name}.py").exists():
            del sys.modules[name]


class DictBackend:
    """Keeps large values in a dictionary, as a server would."""

    min_external_bytes = 2**16

    def __init__(self):
        self.values = {}
        self.n_written = 0

    def write(self, data):
        self.n_written += 1
        self.values[str(self.n_written)] = bytes(data)
        return str(self.n_written)

    def read(self, address):
        return bytearray(self.values[address[0]])

    def free(self, address):
        self.values.pop(address[0], None)  # twice, if the store is closed in between

    def close(self):
        pass


@pytest.fixture
def backend():
    return DictBackend()
