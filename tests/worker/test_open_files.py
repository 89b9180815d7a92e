"""How many files a supervisor and its workers have open, and what happens where few are allowed."""

import os
import resource
import subprocess
import sys
import textwrap

import psutil

SCRIPT = """
import resource, sys, time, warnings
soft, hard, n, url, name = *map(int, sys.argv[1:4]), *sys.argv[4:]
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from nbstreamq import TaskQueue

def limit():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

with TaskQueue(name, url, workers=0) as q, warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    q.run(n)
    most = next((int(w.message.args[0].split(" about ")[1].split()[0]) for w in said), n)
    while len(q.workers()) < min(n, most):
        time.sleep(0.05)
    print(len(q.workers()), sum(q.map(abs, range(1000))), q.submit(limit).result(60))
    for one in said:
        print(one.message)
"""


def run(soft, hard, n, url, name):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, (soft, hard, n)), url, name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    first, _, rest = found.stdout.partition("\n")
    return [*map(int, first.split())], rest


def test_as_many_workers_as_fit_are_started_and_the_rest_is_told_of(server_url, queue_name):
    (n_workers, total, _), said = run(64, 64, 20, server_url, queue_name)

    assert total == sum(range(1000))
    assert 5 <= n_workers < 20
    assert "20 workers were asked for" in said
    assert "ulimit -n" in said


def test_a_low_limit_that_may_be_raised_is_raised_for_the_supervisor_alone(server_url, queue_name):
    (n_workers, total, limit), said = run(64, 4096, 24, server_url, queue_name)

    assert (n_workers, total, limit) == (24, sum(range(1000)), 64)
    assert said == ""


def test_a_worker_needs_three_files_in_its_supervisor(new_queue, wait_until):
    queue = new_queue(workers=1)
    supervisor = psutil.Process(queue.submit(os.getppid).result(20))
    before = supervisor.num_fds()

    queue.run(5)
    wait_until(lambda: len(queue.workers()) == 5, timeout=30, describe="five workers")

    assert supervisor.num_fds() <= before + 4 * 3


def test_a_worker_has_no_files_of_others_open(new_queue, wait_until):
    queue = new_queue(workers=1)
    first = queue.submit(lambda: psutil.Process().num_fds()).result(20)

    queue.run(8)
    wait_until(lambda: len(queue.workers()) == 8, timeout=30, describe="eight workers")
    found = queue.map(lambda _: psutil.Process().num_fds(), range(40), chunksize=1)

    assert max(found.result(30)) <= first + 3


def test_a_process_with_many_open_files_works(server_url, new_queue):
    """More than select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        queue = new_queue(workers=1)
        assert queue.map(abs, range(100)).result(30) == list(range(100))
        queue.shutdown()
    finally:
        for descriptor in files:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
