"""The documents: the README's example prints what it says, and what they name exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(path):
    return path.name


def run(*command):
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=50, check=False
    )


def block(language):
    """Return the README's first block of code in `language`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    assert found
    return found[1]


def test_the_example_prints_what_the_readme_says(jupyter_home):
    script = jupyter_home / "example.py"
    script.write_text(block("python"))
    done = run(script)
    assert done.stderr == ""
    assert done.stdout == block("text")


def test_the_readme_is_short_and_begins_with_two_lines_that_work(jupyter_home):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(block("ipython"))])
    folder = {"metadata": {"path": str(jupyter_home)}}
    NotebookClient(notebook, timeout=40, resources=folder).execute()
    introduced, shown = notebook.cells[0].outputs
    assert "`q` is the queue" in introduced["text"]
    assert "of 100 done" in shown["data"]["text/html"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_map_of_the_code_names_files_that_exist():
    rows = re.findall(
        r"^\| .+? \| (.+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    missing = []
    for cells in rows:
        for cell, bases in zip(cells, (("nbstreamq", "."), (".",)), strict=True):
            folder = ""
            for name in re.findall(r"`([^` ]+(?:\.py|\.lua|/))`", cell):
                # `a/b.py`, `c.py`: the second is beside the first.
                place = name if "/" in name else folder + name
                folder = place[: place.rindex("/") + 1] if "/" in place else ""
                # `<verb>` stands for each of them.
                pattern = re.sub("<.*>", "*", place).rstrip("/")
                if not any(next((ROOT / base).glob(pattern), None) for base in bases):
                    missing.append(place)
    assert len(rows) > 20
    assert missing == []


def inside():
    """Return the pages about the inside of the package."""
    pages = ("architecture.md", "internals.md", "decisions.md")
    return "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages)


def test_the_pages_about_the_inside_name_files_that_exist():
    text = inside()
    names = set(re.findall(r"`([\w/]+\.(?:py|lua|js))`", text))
    bases = (ROOT, ROOT / "nbstreamq", ROOT / "nbstreamq/wire/lua", ROOT / "nbstreamq/notebook")
    assert len(names) > 20
    assert [name for name in names if not any((base / name).exists() for base in bases)] == []


def members_of(node):
    """Yield the names of methods, and of attributes that methods set."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr


def test_the_pages_about_the_inside_name_classes_and_methods_that_exist():
    text = inside()
    names = set(re.findall(r"`([A-Z]\w*[a-z]\w*(?:\.\w+)?)`", text))
    known = set()
    for path in (ROOT / "nbstreamq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                known |= {node.name, *(f"{node.name}.{name}" for name in members_of(node))}
    assert len(names) > 20
    assert sorted(names - known) == []


def test_the_tests_that_show_reliability_exist():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:tests/\w+/)?test_\w+\.py)`", text))
    paths = {name if "/" in name else f"tests/crash/{name}" for name in names}
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_protocol_page_is_up_to_date():
    done = run(ROOT / "docs" / "generate.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")
