"""`env="sync"`: the lock of this Python's packages, and how it is installed elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from nbstreamq.launch.launcher import Setting
from nbstreamq.launch.sync import lock_here, sync_lines


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(name, url=None, **about)``: a distribution 1.0, as pip installs it from there."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(name, url=None, **about):
        folder = tmp_path / "site" / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text(f"{folder.name}/RECORD,,\n")
        if url:
            (folder / "direct_url.json").write_text(json.dumps({"url": url, **about}))

    return write


def lines_of(name):
    return [line for line in lock_here().splitlines() if name in line]


def test_a_package_from_an_index_is_locked_by_its_version(install):
    install("Tea_pot")
    assert lines_of("tea") == ["tea-pot==1.0"]


def test_packages_from_elsewhere_are_locked_by_their_place(install, tmp_path):
    vcs = {"vcs": "git", "commit_id": "c0ffee", "requested_revision": "main"}
    install("tea", "https://example.org/tea.git", vcs_info=vcs)
    install("milk", "https://example.org/milk.whl", archive_info={})
    install("sugar", tmp_path.as_uri(), dir_info={"editable": True})
    install("honey", tmp_path.as_uri(), dir_info={})
    install("lemon", "file:///home/conda/feedstock/work", dir_info={})
    assert lines_of("tea") == ["tea @ git+https://example.org/tea.git@c0ffee"]
    assert lines_of("milk") == ["milk @ https://example.org/milk.whl"]
    assert f"-e {tmp_path.as_uri()}" in lock_here().splitlines()
    assert lines_of("honey")[0] == f"honey @ {tmp_path.as_uri()}"
    assert lines_of("lemon") == ["lemon==1.0"], "conda says where it was built"


def test_a_package_in_a_folder_of_a_repository_is_found_there(install):
    vcs = {"vcs": "git", "commit_id": "c0ffee"}
    install("tea", "https://example.org/shop.git", vcs_info=vcs, subdirectory="drinks/tea")
    install("milk", "https://example.org/shop.zip", archive_info={}, subdirectory="milk")
    assert lines_of("tea") == [
        "tea @ git+https://example.org/shop.git@c0ffee#subdirectory=drinks/tea"
    ]
    assert lines_of("milk") == ["milk @ https://example.org/shop.zip#subdirectory=milk"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pass@example.org/tea.git", "https://example.org/tea.git"),
        ("https://token@example.org:8443/tea.git", "https://example.org:8443/tea.git"),
        (
            "https://${ME}:${TOKEN}@example.org/tea.git",
            "https://${ME}:${TOKEN}@example.org/tea.git",
        ),
        ("ssh://git@example.org/tea.git", "ssh://git@example.org/tea.git"),
    ],
)
def test_a_lock_shows_no_password(install, url, shown):
    install("tea", url, vcs_info={"vcs": "git", "commit_id": "c0ffee"})
    assert lines_of("tea") == [f"tea @ git+{shown}@c0ffee"]


def test_another_install_from_the_same_folder_is_another_lock(install, tmp_path):
    install("honey", tmp_path.as_uri(), dir_info={})
    before = lock_here()
    os.utime(tmp_path / "site/honey-1.0.dist-info/RECORD", ns=(1, 1))
    assert lock_here() != before


@pytest.fixture
def prepare(uv, tmp_path):
    """``prepare()`` starts the part of a unit's script that finds or makes the environment."""
    script = f'{sync_lines()}\necho "$path"\n'

    def start(script=script, path=f"{uv.folder}:{os.environ['PATH']}"):
        return subprocess.Popen(
            ["sh", "-c", script],
            env=os.environ | {"PATH": path, "HOME": "/", "XDG_CACHE_HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    start.script = script
    return start


def test_it_is_installed_once_for_each_machine(prepare, uv, tmp_path, wait_until):
    uv.set("hold", on=True)
    both = [prepare(), prepare()]
    wait_until(lambda: uv.n_installs, describe="an install")
    uv.set("hold", on=False)
    (first, said), (second, _) = [one.communicate(timeout=30) for one in both]
    assert first == second == prepare().communicate(timeout=30)[0]
    assert uv.n_installs == 1
    assert Path(first.strip()).is_relative_to(tmp_path / "nbstreamq/environments")
    assert "nbstreamq: uv prepares the environment on" in said


def test_a_killed_install_leaves_no_half_environment(prepare, uv, wait_until):
    uv.set("hold", on=True)
    killed = prepare()
    wait_until(lambda: uv.n_installs, describe="an install")
    for process in (*psutil.Process(killed.pid).children(recursive=True), killed):
        process.kill()
    killed.communicate(timeout=30)
    uv.set("hold", on=False)
    path, _ = prepare().communicate(timeout=30)
    assert uv.n_installs == 2
    assert Path(path.strip()).exists()


def test_what_can_not_be_installed_is_said_in_one_line(prepare, uv, tmp_path):
    def why(*arguments):
        process = prepare(*arguments)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 3
        return said.splitlines()[-1]

    assert "has no uv, which env='sync' needs. Install it there" in why(prepare.script, "/bin")
    uv.set("fail", on=True)
    assert why().endswith("uv says error: there is no tea==1.0")
    local = "-e file:///nowhere/proj"
    script = prepare.script.replace("<<'END OF LOCK'\n", f"<<'END OF LOCK'\n{local}\n")
    assert f"'{local}' is installed from a folder or file that is not on this" in why(script)
    assert not list(tmp_path.glob("nbstreamq/environments/*/complete"))


def test_an_interpreter_and_an_environment_exclude_each_other():
    with pytest.raises(ValueError, match="python and env"):
        Setting(python="python3", env="sync")
