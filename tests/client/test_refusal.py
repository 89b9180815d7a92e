"""Forged messages: seen in q.status(), said once, and never unpickled."""

import pickle
import warnings
from pathlib import Path

import pytest

from nbstreamq import SignatureError
from nbstreamq.notebook.html import status_html


class Evil:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def canary(tmp_path):
    """A path that is there if forged code has run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def test_forged_events_are_said_once_and_counted(queue, client, canary, wait_until, gate):
    session = queue._session
    key = session._store.keys.events(session.id)
    waiting = queue.submit(gate.hold)  # without calls, a client reads no events
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            client.xadd(key, {"event": b"x" * 16 + pickle.dumps(Evil(canary))})
        wait_until(lambda: queue.status().refused == {"event": 5}, describe="five refusals")
        gate.open()
        assert waiting.result(20) is None
        assert queue.submit(abs, -2).result(20) == 2
    (warning,) = [w for w in caught if "refused" in str(w.message)]
    assert "q.status()" in str(warning.message)
    assert "5 events" in str(queue.status())
    assert "5 events" in status_html(queue.status())


@pytest.fixture
def forge(client, canary, wait_until):
    """``forge(pattern)``: put forged code in the place of a value, once that is on the server."""

    def forge(pattern):
        pattern = pattern.replace("{", "\\{")
        (key,) = wait_until(lambda: list(client.scan_iter(pattern)), describe=pattern)
        client.set(key, b"x" * 16 + pickle.dumps(Evil(canary)), keepttl=True)

    return forge


def test_a_forged_function_fails_its_tasks_and_says_why(make_queue, forge):
    queue = make_queue(workers=0)

    def sum_of_three(a):
        return a + 3

    futures = [queue.submit(sum_of_three, i) for i in range(3)]
    forge(queue._session._store.keys.function("*"))
    queue.run(1)
    for future in futures:
        error = future.exception(20)
        assert isinstance(error, SignatureError)
        assert "sum_of_three" in str(error)
        assert "q.dead()" in str(error)
    assert queue.status().refused == {"function": 3}
    assert queue.submit(abs, -1).result(20) == 1


def test_a_forged_value_fails_its_tasks_and_says_why(make_queue, forge):
    queue = make_queue(workers=0)
    ref = queue.put([1, 2, 3])
    future = queue.submit(len, ref)
    forge(queue._session._store.keys.value("*"))
    queue.run(1)
    error = future.exception(20)
    assert isinstance(error, SignatureError)
    assert "value of a Ref" in str(error)
    assert queue.status().refused == {"value": 1}


def test_the_trace_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()
