"""What the environment says."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from nbstreamq.secret import Address, Secret
from nbstreamq.settings import Settings


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
        ("STORE", "/shared/x", "store", Address("file:///shared/x")),
        ("SERVER_IDLE", "2.5", "server_idle", 2.5),
        ("SERVER_IDLE", "1h30m", "server_idle", 5400.0),
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
