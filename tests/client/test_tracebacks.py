"""An error about what was given ends in the user's line, as Python itself prints it."""

from __future__ import annotations

import pickle
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest

import nbstreamq
from nbstreamq import TaskQueue
from tests.interrupts import interrupt_wait

OWN = str(Path(nbstreamq.__file__).parent)


def own_frames(error):
    """Return the frames of nbstreamq that a printed traceback has, those of causes included."""
    text = "".join(traceback.format_exception(error))
    return [line for line in text.splitlines() if line.lstrip().startswith(f'File "{OWN}')]


@pytest.mark.parametrize(
    "call",
    [
        lambda q: q.submit(lambda: LOCK),
        lambda q: q.submit(print, LOCK),
        lambda q: q.submit(5),
        lambda q: q.map(print, [LOCK]),
        lambda q: q.map(abs, [1], chunksize=-1),
        lambda q: q.map(abs, [1], name="a b"),
        lambda q: q.options(retries=1.5),
        lambda q: q.options(retry=1),
        lambda q: q.submit(int, "x").result(),
        lambda q: q.submit(int, "x")(),
        lambda q: q.map(int, ["x"]).result(),
        lambda q: list(q.map(int, ["x"])),
        lambda q: next(q.options(delay=9).map(abs, [1]).as_completed(0)),
        lambda q: list(q.options(delay=9).map(abs, [1], timeout=0)),
        lambda q: q.map(abs, [1]).result(errors="ignore"),
        pickle.dumps,
        lambda q: q.task(abs)(LOCK),
        lambda q: q.pool().apply(int, ("x",)),
        lambda q: list(q.pool().imap_unordered(int, ["x"])),
        lambda q: q.pool().join(),
        lambda q: q.task(lane="")(abs),
        lambda q: q.task(abs).options(delay=-1),
        lambda q: q.put(LOCK),
        lambda q: q.everywhere(print, LOCK),
        lambda q: q.run(-1),
        lambda q: q.attach("no such job"),
        lambda q: q.submit(int).result(float("nan")),
        lambda q: q.options(delay=9).submit(int).exception(0),
        lambda q: q.map(abs, [1]).wait("soon"),
        lambda q: TaskQueue(2),
        lambda q: TaskQueue("a", "http://h"),
        lambda q: TaskQueue("a", workers=None),
        lambda q: TaskQueue("a", "unix:///no/such/socket"),
    ],
)
def test_has_no_frames_of_ours(shared_queue, call):
    errors = (nbstreamq.NbstreamqError, TypeError, ValueError, TimeoutError)
    with pytest.raises(errors) as caught:
        call(shared_queue)
    assert not own_frames(caught.value)
    assert caught.value.__cause__ is None or not own_frames(caught.value.__cause__)


LOCK = threading.Lock()


@dataclass(frozen=True)
class FrozenError(Exception):
    text: str


def test_an_error_may_forbid_to_set_attributes(shared_queue):
    def fail(_):
        raise FrozenError("frozen")

    for wait in (
        lambda: shared_queue.submit(fail, 0).result(),
        lambda: shared_queue.map(fail, [0]).result(),
        lambda: list(shared_queue.map(fail, [0])),
    ):
        with pytest.raises(FrozenError) as caught:
            wait()
        assert not own_frames(caught.value)


def test_an_error_of_the_user_s_code_keeps_its_frames(shared_queue):
    def items():
        yield 1
        raise ValueError("of the user")

    with pytest.raises(ValueError, match="of the user") as caught:
        shared_queue.map(abs, items())
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "items"


def test_an_interrupted_wait_has_none_either(shared_queue, gate):
    future = shared_queue.submit(gate.hold)
    pressing = interrupt_wait()
    with pytest.raises(KeyboardInterrupt) as caught:
        future.result(30)
    pressing.join()
    assert not own_frames(caught.value)
    assert future.cancel()
