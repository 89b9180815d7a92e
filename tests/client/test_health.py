"""What endangers tasks on the server is said: once by a queue, always by q.status()."""

import logging
import os
import signal
import warnings

import pytest

from nbstreamq import TaskQueue
from nbstreamq.notebook.html import status_html


@pytest.fixture
def risky(start_server):
    """A server that saves nothing, and drops what it has no room for."""
    options = ("--save", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    return start_server(*options).url


def test_a_queue_warns_once(risky, queue_name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with TaskQueue(queue_name, risky, workers=0) as queue:
            queue.status()
            queue.options(lane="low").status()
    said = [str(w.message) for w in caught]
    assert len(said) == 2
    assert "allkeys-lru" in said[0]
    assert "disk" in said[1]
    assert {w.filename for w in caught} == {__file__}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_status_says_it_too(risky, queue_name):
    with TaskQueue(queue_name, risky, workers=0) as queue:
        status = queue.status()
    assert len(status.warnings) == 2
    assert "  warning: the server drops data" in str(status)
    html = status_html(status)
    assert html.count("<strong>Warning:</strong>") == 2
    assert "allkeys-lru" in html


def test_a_sound_server_is_not_talked_of(shared_queue):
    assert shared_queue.status().warnings == ()
    assert "warning" not in str(shared_queue.status())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_queue_inside_a_task_does_not_warn(risky, queue_name):
    with TaskQueue(queue_name, risky, workers=1) as queue:

        def inside():
            import warnings

            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                return queue.submit(abs, -3).result(20), len(caught)

        assert queue.submit(inside).result(30) == (3, 0)


def test_logs_tell_that_a_worker_has_died(queue, wait_until):
    worker = queue.submit(os.getpid).result(20)
    assert "has started" in queue.logs()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: "has died: SIGKILL" in queue.logs(), 20, "the news of its death")
    assert repr(queue.logs()).count("has died") == 1


def test_logs_have_what_a_worker_logs(queue, wait_until):
    queue.submit(lambda: logging.getLogger("nbstreamq.test").warning("well")).result(20)
    wait_until(lambda: "nbstreamq.test WARNING: well" in queue.logs(), 20, "the line")
