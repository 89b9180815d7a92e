"""Systems other than Linux, which lack what it has: see elsewhere/sitecustomize.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SCRIPT = """
import os, sys, time
import numpy
from nbstreamq import MemoryLimitExceeded, TaskQueue, TimeLimitExceeded, WorkerLost

def kind_of(future):
    return type(future.exception(timeout=30))

def hog():
    taken = bytearray(600 * 2**20)
    time.sleep(60)

assert sys.platform == "elsewhere" and not os.access("/dev/shm", os.W_OK)
with TaskQueue(workers=2) as q:
    assert q.submit(lambda: sys.platform).result() == "elsewhere"
    assert q.map(lambda x: x * x, range(100)).result() == [x * x for x in range(100)]
    big = numpy.ones(1_000_000)
    assert q.submit(lambda: big * 2).result().sum() == 2_000_000
    assert q.submit(lambda: sum(q.map(abs, [-1, -2]).result())).result() == 3

    assert kind_of(q.submit(lambda: os.kill(os.getpid(), 9))) is WorkerLost
    assert kind_of(q.options(time_limit=0.2).submit(time.sleep, 60)) is TimeLimitExceeded
    hungry = q.options(memory_limit=300 * 2**20)
    assert kind_of(hungry.submit(hog)) is MemoryLimitExceeded
    assert q.submit(abs, -1).result() == 1
print("done")
"""


@pytest.mark.timeout(120)
def test_all_works_with_spawn_and_without_proc_shared_memory_or_sigchld(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = f"{HERE / 'elsewhere'}:{HERE.parents[1]}"
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": paths, "NBSTREAMQ_MEMORY_DIR": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
