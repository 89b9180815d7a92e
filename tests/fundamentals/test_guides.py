"""The tutorial and the guides: their code runs, in order, and prints what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "tutorial.md", DOCS / "joblib.md", *sorted((DOCS / "guides").glob("*.md"))]
#: A block of Python, and below it what it prints, if that is shown.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
#: What the script prints after each block.
MARK = "=== end of block ===\n"


@pytest.fixture
def folder(short_folder, monkeypatch):
    """A working folder, and an embedded server of its own."""
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_DATA_DIR", str(short_folder()))
    monkeypatch.setenv("NBSTREAMQ_SERVER_IDLE", "60")
    yield short_folder()
    stop_server(Settings.from_environment())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_prints_what_it_says(page, folder):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    end = f"print({MARK!r}, end='', flush=True)\n"
    script = folder / "page.py"
    script.write_text("".join(f"{code}\n{end}" for code, _ in blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(MARK)[:-1] == [printed for _, printed in blocks]


def test_the_index_names_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}
    assert sorted(page for page in pages if f"]({page})" not in index) == []
