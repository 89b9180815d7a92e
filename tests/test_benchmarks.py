"""`make bench`: a session runs and ends all it started, and what is missing is said."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import tomllib
from pathlib import Path

import psutil
import pytest

from benchmarks.lone_call import count_functions, count_requests
from benchmarks.page import put_between, tables
from benchmarks.rounds import run_session
from nbstreamq import TaskQueue

#: Python functions that a lone call enters at most, in the client and in the worker; and how many
#: more if the client sleeps until the result comes, as it does where others use the processor.
MOST_FUNCTIONS, TO_SLEEP = 100, 4


def test_a_session_finds_what_was_asked_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Sessions are killed at the end; the next one that starts here would sweep up their values.
    monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", str(tmp_path))
    # Short, since sockets are in it.
    folder = tempfile.mkdtemp(prefix="nbq")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    for peer in ("nbstreamq", "ProcessPoolExecutor"):
        session = run_session(peer, ["latency", "memory"])
        assert session["errors"] == {}
        assert set(session["found"]) == {"first", "latency", "memory"}
        assert all(found["value"] > 0 for found in session["found"].values())
    assert list(Path(folder).iterdir()) == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if folder in str(p.info["cmdline"])]
    Path(folder).rmdir()


def test_a_peer_that_is_not_installed_is_skipped_and_the_reason_is_told() -> None:
    if importlib.util.find_spec("ray"):
        pytest.skip("ray is installed")
    assert "No module named 'ray'" in run_session("ray", ["latency"])["skipped"]


def test_medians_ratios_and_problems_are_shown() -> None:
    def session(latency: float, submits: float) -> dict[str, object]:
        found = {"latency": latency, "submits": submits}
        values = {k: {"value": v, "n": 1, "scaled": False} for k, v in found.items()}
        return {"found": values, "errors": {}}

    ours = [session(100, 4000), session(300, 2000), session(200, 3000)]
    theirs = [session(400, 6000), session(400, 6000), session(400, 6000)]
    theirs[0]["errors"] = {"array": "no arrays"}
    text = tables(
        {"sessions": {"nbstreamq": ours, "other": theirs, "gone": [{"skipped": "not there"}]}}
    )
    assert "**200**" in text
    assert "400 (2.00)" in text  # twice as slow
    assert "6,000 (0.50)" in text  # twice as many
    assert "* other: 100 MB array there and back: no arrays" in text
    assert "* gone: skipped: not there" in text


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: written by make -->\nold\n<!-- end of x -->\nb\n", "utf-8")
    put_between(page, "x", "new")
    assert page.read_text("utf-8") == (
        "a\n<!-- x: written by make -->\nnew\n<!-- end of x -->\nb\n"
    )
    with pytest.raises(ValueError, match="has no"):
        put_between(page, "y", "new")


@pytest.mark.parametrize("lock", ["requirements-dev.lock", "requirements-bench.lock"])
def test_a_lock_file_has_all_that_the_package_needs(lock):
    """Nothing but `make bench` installs the second: it would be noticed late."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[>=<;]", line)[0] for line in project["dependencies"]}
    assert wanted <= {line.partition("==")[0] for line in (root / lock).read_text().splitlines()}


def test_a_lone_call_enters_few_functions_and_costs_a_worker_one_request(
    server_url: str, queue_name: str
) -> None:
    with TaskQueue(queue_name, server_url, workers=1) as queue:
        assert sum(count_functions(queue)) <= MOST_FUNCTIONS + TO_SLEEP
        # A request is repeated every 30 s.
        assert count_requests(queue) < 1.5
