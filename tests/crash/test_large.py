"""Large values when those who hold them die."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from nbstreamq import TaskQueue, WorkerLost
from nbstreamq.objects.mapped_files import MIN_FREE

CLIENT = """
import sys, time
import numpy as np
from nbstreamq import TaskQueue

queue = TaskQueue("large-client", workers=1)
array = np.ones(200_000)
ref = queue.put(array)
futures = [queue.submit(np.negative, array + k) for k in range(4)]
results = [future.result(30) for future in futures]
print(queue._session.large.value_store.backend.folders[0], flush=True)
print(queue.submit(__import__("os").getppid).result(30), flush=True)
time.sleep(60)
"""


@pytest.fixture
def local():
    """A queue of the embedded server, with one worker."""
    with TaskQueue("large-crash", workers=1) as queue:
        queue.submit(abs, 1).result(30)
        yield queue


def folder_of(queue):
    return Path(queue._session.large.value_store.backend.folders[0])


def files_of(queue):
    return [p for p in folder_of(queue).iterdir() if p.is_file() and "@" not in p.name]


def test_a_killed_client_leaves_no_files(start, wait_until):
    client = start("-c", CLIENT)
    folder = Path(client.line())
    assert folder.is_dir()
    client.line()
    client.kill(signal.SIGKILL)
    wait_until(lambda: not folder.exists(), timeout=20, describe="the supervisor to sweep")


def test_a_client_s_files_are_swept_by_the_next_one(start, wait_until):
    client = start("-c", CLIENT)
    folder = Path(client.line())
    supervisor = int(client.line())
    os.kill(supervisor, signal.SIGKILL)
    client.kill(signal.SIGKILL)
    client.wait()
    assert folder.is_dir()
    with TaskQueue("large-next", workers=0):
        assert not folder.exists()


def test_a_worker_that_dies_while_it_writes_leaves_one_free_file(local):
    def die(folder):
        from nbstreamq.objects import mapped_files

        file, _ = mapped_files._claim(mapped_files._entered(folder).at, MIN_FREE)
        os.pwrite(file, bytes(MIN_FREE), 0)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerLost):
        local.submit(die, str(folder_of(local))).result(30)
    (left,) = (folder_of(local) / "free").iterdir()
    before = left.stat().st_ino
    ref = local.put(np.ones(MIN_FREE // 8))
    assert before in [path.stat().st_ino for path in files_of(local)]
    assert local.submit(np.sum, ref).result(30) == MIN_FREE // 8


def test_what_a_dead_worker_had_is_there_for_the_next(local, gate):
    array = np.arange(200_000)

    def die_once(array):
        if gate("died").first():
            os.kill(os.getpid(), signal.SIGKILL)
        return array[1:]

    assert (local.submit(die_once, array).result(30) == array[1:]).all()


@pytest.mark.parametrize("name", [None, "sweep"])
def test_two_supervisors_of_a_machine_fetch_a_value_once(new_queue, start_node, gate, client, name):
    for _ in range(2):
        start_node(2)
    array = np.random.default_rng(1).random(500_000)

    def pick(k):
        gate(f"worker {k}").open()
        for other in range(4):
            gate(f"worker {other}").wait()
        return float(array[k]), "/fetched@" in Path("/proc/self/maps").read_text()

    def sent():
        return client.info("stats")["total_net_output_bytes"]

    before = sent()
    found = new_queue(workers=0).map(pick, range(4), chunksize=1, name=name).result(30)
    assert found == [(float(array[k]), True) for k in range(4)]
    assert 1 <= (sent() - before) / array.nbytes < 1.2


def test_a_fork_frees_nothing_of_its_parent_s(local):
    array = np.arange(200_000)
    ref = local.put(array)
    n_files = len(files_of(local))
    child = os.fork()
    if child == 0:
        try:
            del ref
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert len(files_of(local)) == n_files
    assert local.submit(np.sum, ref).result(30) == array.sum()
