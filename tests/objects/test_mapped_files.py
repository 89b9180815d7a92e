"""Files that hold large values: how they are read, freed, written again, and swept."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import nbstreamq
from nbstreamq.errors import NbstreamqError, NoRoom
from nbstreamq.objects.mapped_files import (
    FetchedFiles,
    MappedFiles,
    SessionFolder,
    free,
    read,
    sweep,
)
from nbstreamq.settings import Settings

SIZE = 1_200_000


@pytest.fixture
def settings(tmp_path):
    folders = {"memory_dir": tmp_path / "memory", "data_dir": tmp_path / "data"}
    return replace(Settings.from_environment(), **folders)


@pytest.fixture
def folder(settings):
    folder = SessionFolder("s1", settings)
    yield folder
    folder.close()


def write(folder, byte, size=SIZE):
    return folder.write(memoryview(bytes([byte]) * size)), size


def surroundings(settings):
    """Where a Python runs that has the same folders."""
    folders = {"MEMORY_DIR": settings.memory_dir, "DATA_DIR": settings.data_dir}
    env = os.environ | {f"NBSTREAMQ_{name}": str(path) for name, path in folders.items()}
    return {"cwd": Path(nbstreamq.__file__).parents[1], "env": env}


def inode(address):
    return Path(address[0]).stat().st_ino


def test_a_value_that_is_read_can_be_changed(folder):
    address = write(folder, 1)
    view = read(address)
    view[0] = 9
    assert (view[0], view[1], len(view)) == (9, 1, SIZE)
    assert read(address)[0] == 1, "it is the reader's own"


def test_a_freed_file_is_written_again(folder):
    address = write(folder, 1)
    before = inode(address)
    free(address)
    assert read(address) is None
    again = write(folder, 2, SIZE - 1000)
    assert inode(again) == before
    assert Path(again[0]).stat().st_size == SIZE - 1000
    assert bytes(read(again)) == b"\2" * (SIZE - 1000)


def test_a_view_stays_as_it_is_when_its_file_is_freed(folder):
    address = write(folder, 1)
    view = read(address)
    before = inode(address)
    free(address)
    assert inode(write(folder, 2)) != before
    assert bytes(view) == b"\1" * SIZE
    del view
    assert inode(write(folder, 3)) == before


def test_a_small_value_does_not_take_a_large_free_file(folder):
    address = write(folder, 1, 10 * SIZE)
    before = inode(address)
    free(address)
    assert inode(write(folder, 2)) != before


def test_small_files_are_not_kept(folder):
    free(write(folder, 1, 300_000))
    assert list(Path(folder.folders[0], "free").iterdir()) == []


def test_free_files_are_few_and_small(folder, monkeypatch):
    monkeypatch.setattr("nbstreamq.objects.mapped_files.MAX_FREE", 3 * SIZE)
    addresses = [write(folder, k) for k in range(5)]
    for address in addresses:
        free(address)
    assert len(list(Path(folder.folders[0], "free").iterdir())) == 3
    free(write(folder, 9, 4 * SIZE))
    assert list(Path(folder.folders[0], "free").iterdir()) == []


def test_a_file_that_is_being_written_is_not_deleted(folder, monkeypatch):
    """Another process has locked a free file, and there is no room for one more."""
    free(write(folder, 1))
    (path,) = Path(folder.folders[0], "free").iterdir()
    address = write(folder, 2, 10 * SIZE)
    monkeypatch.setattr("nbstreamq.objects.mapped_files.MAX_FREE_FILES", 1)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        free(address)
        assert path.exists()
    free(write(folder, 3, 10 * SIZE))
    assert not path.exists()


def test_values_are_copied_when_there_are_too_many_descriptors(folder, monkeypatch):
    monkeypatch.setattr("nbstreamq.objects.mapped_files._MAX_MAPPED", 0)
    view = read(write(folder, 1))
    assert type(view) is bytearray
    assert view == b"\1" * SIZE


def test_a_closed_session_has_no_files_and_takes_none(settings):
    folder = SessionFolder("s2", settings)
    address = write(folder, 1)
    view = read(address)
    folder.close()
    assert view[0] == 1
    assert read(address) is None
    free(address)
    with pytest.raises(NbstreamqError, match="shut down"):
        write(MappedFiles("s2", settings), 1)


def test_a_dead_session_is_swept_and_a_living_one_is_not(settings, folder):
    address = write(folder, 1)
    script = (
        "import os\n"
        "from nbstreamq.objects.mapped_files import SessionFolder\n"
        "from nbstreamq.settings import Settings\n"
        "folder = SessionFolder('dead', Settings.from_environment())\n"
        "folder.write(memoryview(bytes(10)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False, **surroundings(settings))
    assert (settings.memory_dir / "dead").exists()
    assert (settings.data_dir / "values" / "dead").exists()
    sweep(settings)
    assert not (settings.memory_dir / "dead").exists()
    assert not (settings.data_dir / "values" / "dead").exists()
    assert read(address)[0] == 1


@pytest.fixture
def small_memory(settings):
    """A folder in memory with room for 2 MiB."""
    settings.memory_dir.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", settings.memory_dir]
    if os.getuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount")
    yield settings
    subprocess.run(["umount", "-l", settings.memory_dir], check=True)


def test_values_go_to_disk_with_a_warning_when_memory_is_full(small_memory):
    folder = SessionFolder("s3", small_memory)
    first = write(folder, 1, 2**20)
    with pytest.warns(UserWarning, match="is full"):
        second = write(folder, 2, 2**21)
    assert second[0].startswith(str(small_memory.data_dir))
    assert read(second)[2**20] == 2
    write(folder, 2, 2**21)  # it was said
    free(first)
    third = write(folder, 3, 2**21 - 2**17)
    assert third[0].startswith(str(small_memory.memory_dir)), "what is free makes room"
    folder.close()


def test_no_room_at_all_is_an_error(small_memory):
    full = replace(small_memory, data_dir=small_memory.memory_dir / "data")
    folder = SessionFolder("s4", full)
    with pytest.raises(NoRoom, match=r"no room for a value of 4\.2 MB"):
        write(folder, 1, 2**22)
    assert list(Path(folder.folders[0], "free").iterdir()) == []
    folder.close()


def test_a_closed_folder_closes_no_file_that_got_its_number(settings):
    folder = SessionFolder("s5", settings)
    folder.close()
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    folder.forget()  # as each process does that is forked from now on
    for file in files:
        os.close(file)


# -- values from elsewhere ----------------------------------------------------------------------


class Source:
    """Reads values that are all of one byte, and notes which were fetched."""

    def __init__(self, settings):
        self.settings = settings
        self.fetched = []

    def read(self, byte, size=SIZE, before=lambda: None):
        def fetch():
            self.fetched.append(byte)
            return bytearray([byte]) * size

        files = FetchedFiles(self.settings)  # as each worker has
        before()
        view = files.read(f"{byte:032x}", size, fetch)
        assert bytes(view) == bytes([byte]) * size
        return view, files

    def kept(self):
        roots = self.settings.memory_dir, self.settings.data_dir / "values"
        files = [file for root in roots for file in root.glob("fetched@*/*")]
        return sorted(int(file.name, 16) for file in files if len(file.name) == 32)


@pytest.fixture
def source(settings):
    return Source(settings)


def test_processes_that_read_a_value_at_the_same_time_fetch_it_once(source):
    n_readers = 4
    all_are_there = threading.Barrier(n_readers)
    with ThreadPoolExecutor(n_readers) as pool:
        found = list(pool.map(lambda _: source.read(1, before=all_are_there.wait), range(4)))
    assert source.fetched == [1]
    assert source.kept() == [1]
    found[0][0][0] = 9
    assert found[1][0][0] == 1, "each reader has its own view"


def test_a_killed_fetcher_leaves_no_part_and_blocks_nobody(source):
    script = (
        "import time\n"
        "from nbstreamq.objects.mapped_files import FetchedFiles\n"
        "from nbstreamq.settings import Settings\n"
        "def fetch():\n"
        "    print('fetching', flush=True)\n"
        "    time.sleep(60)\n"
        f"FetchedFiles(Settings.from_environment()).read('{1:032x}', {SIZE}, fetch)\n"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=-1, **surroundings(source.settings)
        ) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        assert other.stdout.readline() == b"fetching\n"
        waiting = pool.submit(source.read, 1)
        assert not waiting.done()
        assert source.fetched == []
        other.kill()
        waiting.result(20)
    assert source.fetched == [1]
    assert source.kept() == [1]


def test_a_value_that_is_gone_or_refused_is_not_kept(source):
    files = FetchedFiles(source.settings)
    assert files.read("0" * 32, SIZE, lambda: None) is None
    with pytest.raises(ZeroDivisionError):
        files.read("0" * 32, SIZE, lambda: 1 // 0)
    source.read(0)


def test_the_longest_unused_value_makes_room(source, monkeypatch):
    monkeypatch.setattr("nbstreamq.objects.mapped_files.MAX_FETCHED", 3 * SIZE)
    in_use = source.read(1)
    for byte in (2, 3, 4, 2, 5):
        source.read(byte)
    assert source.fetched == [1, 2, 3, 4, 5]
    assert source.kept() == [1, 2, 4, 5]
    assert bytes(in_use[0]) == b"\1" * SIZE


def test_fetched_values_exist_while_a_process_uses_the_folder(source):
    _, files = source.read(1)
    sweep(source.settings)
    assert source.kept() == [1]
    del files
    sweep(source.settings)
    assert not list(source.settings.memory_dir.iterdir())
    source.read(1)
    assert source.fetched == [1, 1]


def test_a_full_memory_makes_room_then_the_disk_has_some(small_memory):
    source = Source(small_memory)
    source.read(1)
    in_use = source.read(2)
    assert source.kept() == [2]
    source.read(3)
    source.read(3)
    assert source.fetched == [1, 2, 3]
    assert [path.stat().st_size for path in small_memory.data_dir.glob("values/fetched@*/*3")] == [
        SIZE
    ]
    assert bytes(in_use[0]) == b"\2" * SIZE


def test_without_any_room_each_process_fetches_for_itself(small_memory):
    source = Source(replace(small_memory, data_dir=small_memory.memory_dir / "data"))
    for _ in "12":
        assert type(source.read(1, 2**22)[0]) is bytearray
    assert source.fetched == [1, 1]
    assert source.kept() == []


def test_without_a_private_folder_each_process_fetches_for_itself(source):
    source.settings.memory_dir.mkdir(mode=0o755)
    source.settings.data_dir.touch()
    for _ in "12":
        source.read(1)
    assert source.fetched == [1, 1]
