"""How many cores there are: of the machine, the process, its container."""

import os

import pytest

from nbstreamq.cores import n_cores


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """``cores(membership, {file: text})``: n_cores() of a process in such control groups."""
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def count(membership, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "self").write_text(membership)
        return n_cores(tmp_path, tmp_path / "self")

    return count


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("6400000 100000", 8),
        ("max 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_a_container_has_the_cores_of_its_quota(cores, text, n):
    assert cores("0::/\n", {"cpu.max": f"{text}\n"}) == n


def test_the_least_quota_of_all_groups_around_holds(cores):
    files = {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
    assert cores("0::/a/b\n", files) == 3


def test_a_container_may_be_told_its_path_outside(cores):
    assert cores("0::/docker/4f2a\n", {"cpu.max": "200000 100000\n"}) == 2


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "n"), [("250000", 3), ("-1", 8)])
def test_version_1_has_two_files(cores, folder, quota, n):
    files = {
        f"{folder}/docker/x/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/docker/x/cpu.cfs_period_us": "100000\n",
    }
    membership = "9:name=systemd:/a:b\n4:cpu,cpuacct:/docker/x\n3:cpuset:/\n0::/\n"
    assert cores(membership, files) == n


def test_without_control_groups_all_cores_that_the_process_may_run_on(cores, tmp_path):
    assert n_cores(tmp_path, tmp_path / "missing") == 8


def test_what_the_user_told_python_decides(cores, monkeypatch):
    monkeypatch.setenv("PYTHON_CPU_COUNT", "5")
    assert cores("0::/\n", {"cpu.max": "200000 100000\n"}) == 5


@pytest.mark.parametrize("value", ["default", "0", "-1", "x"])
def test_what_python_would_not_take_changes_nothing(cores, monkeypatch, value):
    monkeypatch.setenv("PYTHON_CPU_COUNT", value)
    assert cores("0::/\n", {"cpu.max": "200000 100000\n"}) == 2
