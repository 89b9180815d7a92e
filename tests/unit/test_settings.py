"""What the environment says."""

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from nbstreamq.secret import Address, Secret
from nbstreamq.settings import Settings, n_cores


@pytest.fixture
def bare(monkeypatch):
    """An environment that says nothing of nbstreamq."""
    for name in ("URL", "SECRET", "SERVER", "RUNTIME_DIR", "DATA_DIR", "SERVER_IDLE", "SILENCE"):
        monkeypatch.delenv(f"NBSTREAMQ_{name}", raising=False)
    for name in ("MEMORY_DIR", "STORE"):
        monkeypatch.delenv(f"NBSTREAMQ_{name}", raising=False)
    monkeypatch.delenv("NBSTREAMQ_START_METHOD", raising=False)
    return monkeypatch


def test_without_variables_there_are_the_defaults(bare):
    settings = Settings.from_environment()
    assert (settings.url, settings.secret, settings.server_binary) == (None, None, None)
    assert (settings.server_idle, settings.start_method) == (300.0, None)


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("URL", "redis://h:1/2", "url", Address("redis://h:1/2")),
        ("SECRET", "hush", "secret", Secret("hush")),
        ("SERVER", "/opt/valkey-server", "server_binary", "/opt/valkey-server"),
        ("RUNTIME_DIR", "/run/x", "runtime_dir", Path("/run/x")),
        ("DATA_DIR", "/srv/x", "data_dir", Path("/srv/x")),
        ("MEMORY_DIR", "/run/y", "memory_dir", Path("/run/y")),
        ("STORE", "s3://b/x", "store", Address("s3://b/x")),
        ("SERVER_IDLE", "2.5", "server_idle", 2.5),
        ("START_METHOD", "spawn", "start_method", "spawn"),
        ("SILENCE", "20", "silence", 20.0),
    ],
)
def test_each_variable_sets_its_field(bare, variable, value, field, expected):
    bare.setenv(f"NBSTREAMQ_{variable}", value)
    assert getattr(Settings.from_environment(), field) == expected


@pytest.mark.parametrize("variable", ["URL", "SECRET", "SERVER", "DATA_DIR", "SERVER_IDLE"])
def test_an_empty_variable_says_nothing(bare, variable):
    unset = Settings.from_environment()
    bare.setenv(f"NBSTREAMQ_{variable}", "")
    assert Settings.from_environment() == unset


def test_an_idle_time_that_is_no_number_is_refused(bare):
    bare.setenv("NBSTREAMQ_SERVER_IDLE", "soon")
    with pytest.raises(ValueError, match="soon"):
        Settings.from_environment()


def test_folders_follow_xdg(bare, tmp_path):
    bare.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    bare.setenv("XDG_DATA_HOME", "/srv/data")
    settings = Settings.from_environment()
    assert settings.runtime_dir == tmp_path / "nbstreamq"
    assert settings.data_dir == Path("/srv/data/nbstreamq")


def test_a_runtime_folder_that_is_missing_is_passed_over(bare, tmp_path):
    bare.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert str(tmp_path) not in str(Settings.from_environment().runtime_dir)


def test_settings_are_frozen(bare):
    with pytest.raises(FrozenInstanceError):
        Settings.from_environment().url = "redis://h"


# -- cores ----------------------------------------------------------------------------------------


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
