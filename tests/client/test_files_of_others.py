"""Files of others are left alone, and others can't change or follow ours.

Large values of a queue with the embedded server are files in ``NBSTREAMQ_MEMORY_DIR`` and
``NBSTREAMQ_DATA_DIR/values``, where somebody else may have files, or may have planted some.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbstreamq import FolderRefused, TaskQueue
from nbstreamq.launch.server import stop_server
from nbstreamq.settings import Settings

ROOT = Path(__file__).parents[2]
STRANGER = 12345
#: What a session leaves when its process is killed.
DEAD = """
import os, numpy
from nbstreamq import TaskQueue
queue = TaskQueue("dead", workers=0)
queue.put(numpy.ones(100_000))
print(queue._session.large.value_store.backend.folders[0], flush=True)
os.kill(os.getpid(), 9)
"""

only_root = pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")


@pytest.fixture
def folders(monkeypatch, short_folder):
    """Folders of a new user: for memory, data and sockets; ``folders.memory`` is not made."""
    base = short_folder()
    base.chmod(0o711)
    for name in ("memory", "data", "run"):
        monkeypatch.setenv(
            f"NBSTREAMQ_{name.upper()}{'TIME' * (name == 'run')}_DIR", f"{base}/{name}"
        )
    yield base
    stop_server(Settings.from_environment())


def contents(folder):
    """Return path -> content of all that is below a folder."""
    return {
        path: path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b""
        for path in sorted(folder.rglob("*"))
    }


def leave_a_dead_session():
    """Return the folder of a session whose process was killed."""
    done = subprocess.run(
        [sys.executable, "-c", DEAD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    folder = Path(done.stdout.strip())
    assert folder.is_dir(), done.stderr
    return folder


def use_large_values(queue):
    """Have something large go to a worker and come back."""
    array = np.arange(300_000.0)
    assert (queue.submit(lambda a: a + 1, array).result(60) == array + 1).all()


FOREIGN = [
    "my_experiment/results.csv",
    "my_experiment/free/important.txt",
    "with_owner/owner",
    "with_owner/data",
    "0123456789ab/owner",
    "0123456789ab/0123456789abcdef0123456789abcdef",
    "fedcba987654/free/1-2-3",
    "fedcba987654/owner",
    "notes.txt",
    "lock",
]


@pytest.mark.parametrize("where", ["memory", "data/values"])
def test_what_others_made_stays(folders, where, wait_until):
    folder = folders / where
    for name in FOREIGN:
        path = folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    for path in (folders / "data", folder):
        path.chmod(0o700) if path.exists() else None
    before = contents(folder)
    dead = leave_a_dead_session()

    with TaskQueue("q", workers=1) as queue:
        use_large_values(queue)
        wait_until(lambda: not dead.exists(), describe="the dead session's files to go")

    assert contents(folder) == before


def test_the_runtime_folder_stays_if_it_is_in_the_memory_folder(folders, monkeypatch, wait_until):
    memory = folders / "memory"
    memory.mkdir(mode=0o700)
    monkeypatch.setenv("NBSTREAMQ_RUNTIME_DIR", str(memory / "nbstreamq"))
    dead = leave_a_dead_session()
    with TaskQueue("q", workers=1) as queue:
        use_large_values(queue)
        wait_until(lambda: not dead.exists(), describe="the dead session's files to go")
        assert (memory / "nbstreamq" / "server.sock").exists()


def test_what_others_made_in_the_runtime_folder_stays(folders):
    run = folders / "run"
    run.mkdir(mode=0o700)
    names = ["workers-notes.log", "workers-empty.log", "workers.lock", "closing", "workers-my.sock"]
    for name in names:
        (run / name).write_text("" if "empty" in name else f"mine: {name}")
        os.utime(run / name, (1e9, 1e9))  # old
    before = {name: (run / name).read_text() for name in names}
    with TaskQueue("q", workers=1) as queue:
        assert queue.submit(abs, -1).result(60) == 1
    stop_server(Settings.from_environment())
    assert {name: (run / name).read_text() for name in names} == before


def test_a_memory_folder_in_another_one_s_keeps_its_values(folders, monkeypatch, wait_until):
    with TaskQueue("outer", workers=1) as outer:
        outer_ref = outer.put(np.ones(300_000))
        session = Path(outer._session.large.value_store.backend.folders[0])
        for inside in (session.parent / "inner", session / "inner"):
            monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", str(inside))
            with TaskQueue("inner", workers=1) as inner:
                ref = inner.put(np.ones(300_000))
                assert inner.submit(abs, -1).result(30) == 1  # from now on its workers sweep
                dead = leave_a_dead_session()
                monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", str(session.parent))
                with TaskQueue("other", workers=1) as other:
                    use_large_values(other)
                monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", str(inside))
                wait_until(lambda dead=dead: not dead.exists(), describe="the inner one's sweep")
                assert inner.submit(np.sum, ref).result(30) == 300_000
        assert outer.submit(np.sum, outer_ref).result(30) == 300_000
    assert not any(path.is_file() for path in session.parent.rglob("*"))


def worker_command(url, name):
    return [sys.executable, "-m", "nbstreamq", "worker", url, "-n", "1", "--queue", name]


@pytest.fixture
def by_hand(server_url, queue_name, wait_until):
    """``by_hand()``: a queue with a URL, whose worker was started by ``nbstreamq worker``."""
    started = []

    def start():
        process = subprocess.Popen(worker_command(server_url, queue_name), cwd=ROOT)
        queue = TaskQueue(queue_name, server_url, workers=0)
        started.append((process, queue))
        wait_until(queue.workers, timeout=30, describe="the worker")
        return queue

    yield start
    for process, queue in started:
        queue.shutdown(cancel_futures=True)
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_workers_of_a_url_use_no_open_folder(folders, by_hand, mode):
    for name in FOREIGN:
        path = folders / "memory" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    (folders / "memory").chmod(mode)
    before = contents(folders / "memory")
    use_large_values(by_hand())
    after = contents(folders / "memory")
    assert before.items() <= after.items()
    assert (after == before) == (mode != 0o700)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_a_memory_folder_that_is_open_to_others_is_refused(folders, mode):
    (folders / "memory").mkdir()
    (folders / "memory").chmod(mode)
    with pytest.raises(FolderRefused, match="chmod 700"):
        TaskQueue("q", workers=0)
    assert contents(folders / "memory") == {}


def test_a_memory_folder_that_cannot_be_made_is_refused_by_name(folders, monkeypatch):
    monkeypatch.setenv("NBSTREAMQ_MEMORY_DIR", "/proc/nbstreamq")  # where nobody can
    with pytest.raises(FolderRefused, match=r"/proc/nbstreamq.* Set NBSTREAMQ_MEMORY_DIR"):
        TaskQueue("q", workers=0)


def test_a_memory_folder_that_is_a_link_is_refused(folders):
    (folders / "elsewhere").mkdir(mode=0o700)
    settings = Settings.from_environment()
    (folders / "memory").symlink_to(folders / "elsewhere")
    from nbstreamq.objects.mapped_files import SessionFolder, sweep

    with pytest.raises(FolderRefused, match="is a link"):
        SessionFolder("s", settings)
    with pytest.raises(FolderRefused, match="is a link"):
        sweep(settings)


def test_one_s_own_link_to_a_private_folder_works(folders):
    (folders / "elsewhere").mkdir(mode=0o700)
    (folders / "memory").symlink_to(folders / "elsewhere")
    with TaskQueue("q", workers=1) as queue:
        use_large_values(queue)


def as_stranger(work, *arguments):
    """Carry out `work` in a process of another user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            work(*arguments)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def plant(memory, victim, lock):
    """Make the folder that the victim will use, with everything that has ever done harm."""
    os.umask(0)
    memory.mkdir(mode=0o777)
    if lock == "link":
        (memory / "lock").symlink_to(victim)
    elif lock == "pipe":
        os.mkfifo(memory / "lock", 0o666)
    for session in ("0123456789ab", "precious"):
        (memory / session / "free").mkdir(mode=0o777, parents=True)
        (memory / session).chmod(0o777)
        (memory / session / "owner").touch()


@pytest.fixture
def planted(folders):
    """``planted(lock)``: a stranger has made the memory folder; return a file that he wants."""
    victim = folders / "thesis.txt"
    victim.write_text("four years")
    victim.chmod(0o600)
    folders.chmod(0o1777)

    def make(lock):
        as_stranger(plant, folders / "memory", victim, lock)
        return victim

    return make


@only_root
@pytest.mark.parametrize("lock", ["link", "pipe"])
def test_a_planted_memory_folder_is_refused(folders, planted, lock):
    victim = planted(lock)
    before = contents(folders / "memory")
    with pytest.raises(FolderRefused, match=f"another user \\(uid {STRANGER}\\)"):
        TaskQueue("q", workers=1)
    assert victim.read_text() == "four years"
    assert contents(folders / "memory") == before


@only_root
@pytest.mark.parametrize("lock", ["link", "pipe"])
def test_a_planted_memory_folder_does_no_harm_to_workers_of_a_url(folders, planted, by_hand, lock):
    victim = planted(lock)
    queue = by_hand()
    session = folders / "memory" / queue._session.id

    def plant_session():
        os.umask(0)
        (session / "free").mkdir(parents=True)
        (session / "owner").touch()

    as_stranger(plant_session)
    before = contents(folders / "memory")
    use_large_values(queue)
    assert contents(folders / "memory") == before, "nothing of value came there"
    assert victim.read_text() == "four years"


@only_root
def test_a_stranger_gets_at_no_value(folders):
    folders.chmod(0o1777)
    with TaskQueue("q", workers=1) as queue:
        ref = queue.put(np.ones(300_000))
        place = Path(queue._session.large.value_store.backend.folders[0])
        (value,) = [
            path for path in place.iterdir() if path.is_file() and path.stat().st_size > 1000
        ]

        def attack():
            for attempt in (
                value.read_bytes,
                lambda: value.write_bytes(b"x"),
                value.unlink,
                lambda: place.rename(folders / "mine"),
                lambda: place.parent.rename(folders / "mine"),
                lambda: list(place.iterdir()),
                (place / "free" / "x").touch,
            ):
                try:
                    attempt()
                except OSError:
                    continue
                os._exit(3)

        as_stranger(attack)
        assert queue.submit(np.sum, ref).result(30) == 300_000


@only_root
def test_a_value_in_a_folder_that_was_swapped_is_not_read(folders):
    """A parent folder that others can write to: they move ours away, and put theirs there."""
    folders.chmod(0o777)
    with TaskQueue("q", workers=1) as queue:
        ref = queue.put(np.ones(300_000))
        place = Path(queue._session.large.value_store.backend.folders[0])
        (value,) = [
            path for path in place.iterdir() if path.is_file() and path.stat().st_size > 1000
        ]
        content = value.read_bytes()

        def swap():
            os.umask(0)
            place.parent.rename(folders / "theirs")
            place.mkdir(parents=True)
            value.write_bytes(content)

        as_stranger(swap)
        with pytest.raises(FolderRefused, match="another user"):
            queue.submit(np.sum, ref).result(30)
        as_stranger(
            lambda: (place.parent.rename(folders / "x"), (folders / "theirs").rename(place.parent))
        )


def test_a_lock_that_leads_elsewhere_does_no_harm(folders):
    memory, victim = folders / "memory", folders / "thesis.txt"
    victim.write_text("four years")
    memory.mkdir(mode=0o700)
    (memory / "lock").symlink_to(victim)
    with TaskQueue("q", workers=1) as queue:
        use_large_values(queue)
    (memory / "lock").unlink()
    os.mkfifo(memory / "lock", 0o600)
    with TaskQueue("q", workers=1) as queue:
        use_large_values(queue)
    assert victim.read_text() == "four years"
