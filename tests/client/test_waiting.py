"""Who waits reads the events himself: it must not matter who does, nor how he stops."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from nbstreamq.client import session
from tests.interrupts import Armed, interrupt_wait, is_reading, is_waiting
from tests.proxy import proxy

__all__ = ["proxy"]

#: Seconds after which a wait hangs.
HANGS = 10


def _when_done(future: Future[Any]) -> threading.Event:
    """Return an event that is set by a callback: nobody waits for the result."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return done


class Held:
    """A callback that stays in the listener's own thread until it is let go."""

    def __init__(self, future: Future[Any]) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        future.add_done_callback(self._stay)

    def _stay(self, _: Future[Any]) -> None:
        self.entered.set()
        self.leave.wait(3 * HANGS)


@pytest.fixture
def hold_up(queue: Any, gate: Any) -> Iterator[Callable[[Future[Any]], Held]]:
    """``hold_up(future)`` adds a callback that does not return before the end of the test."""
    made: list[Held] = []

    def hold(future: Future[Any]) -> Held:
        made.append(Held(future))
        return made[-1]

    yield hold
    for held in made:
        held.leave.set()


class TestCallbacks:
    def test_that_takes_long_keeps_nobody_from_his_timeout(self, queue, gate, hold_up):
        held = hold_up(queue.submit(abs, -1))
        assert held.entered.wait(HANGS)
        future = queue.submit(gate.hold)
        threading.Timer(HANGS / 2, held.leave.set).start()
        with pytest.raises(TimeoutError):
            future.result(0.1)
        assert not held.leave.is_set()
        held.leave.set()

    def test_is_called_though_nobody_waits_after_a_call_that_was_waited_for(self, queue):
        """The caller has read the result of the first call, and nobody has asked for more."""
        assert queue.submit(abs, -1).result() == 1
        called = threading.Event()
        queue.options(delay=0.01).submit(abs, -2).add_done_callback(lambda _: called.set())
        assert called.wait(HANGS)

    def test_that_takes_long_keeps_nobody_from_a_result_that_is_there(self, queue, gate, hold_up):
        first = hold_up(queue.submit(abs, -1))
        assert first.entered.wait(HANGS)
        future = queue.submit(abs, -2)
        second = hold_up(future)
        waiting = threading.Thread(target=future.result)
        waiting.start()
        while not is_waiting(waiting):
            pass
        first.leave.set()
        assert second.entered.wait(HANGS)
        waiting.join(HANGS)
        assert not waiting.is_alive()

    @pytest.mark.parametrize("leads", [True, False], ids=["who waits", "own thread"])
    def test_may_wait_for_other_results(self, queue, gate, leads):
        found: Future[int] = Future()
        first = queue.submit(gate.hold, 1)
        second = queue.submit(gate.hold, 2)
        first.add_done_callback(lambda _: found.set_result(second.result(HANGS)))
        threads = [threading.Thread(target=first.result, daemon=True)] if leads else []
        for thread in threads:
            thread.start()
            while not is_waiting(thread):
                pass
        gate.open()
        assert found.result(HANGS) == 2
        for thread in threads:
            thread.join()


def test_a_callback_may_wait_for_another_item_of_the_same_message(queue, gate):
    hold = gate.hold
    job = queue.map(hold, range(4), chunksize=4)
    found: Future[int] = Future()
    first, last = job[0], job[3]
    first.add_done_callback(lambda _: found.set_result(last.result(HANGS)))
    gate.open()
    assert found.result(HANGS) == 3


class TestChangesWithoutAnEvent:
    """What another thread of this process does ends a wait at once."""

    @pytest.fixture
    def nobody_works(self, make_queue, monkeypatch):
        monkeypatch.setattr(session, "PATIENCE", 3 * HANGS)
        return make_queue(workers=0)

    @pytest.mark.parametrize("kind", ["call", "job"])
    def test_cancel(self, nobody_works, kind):
        main = threading.main_thread()
        waits = nobody_works.submit(abs, -1) if kind == "call" else nobody_works.map(abs, [-1, -2])

        def cancel() -> None:
            while not is_waiting(main):
                pass
            waits.cancel()

        canceling = threading.Thread(target=cancel)
        canceling.start()
        with pytest.raises(CancelledError):
            waits.result(HANGS)
        canceling.join()

    def test_everywhere_when_there_is_nobody(self, nobody_works):
        done = threading.Event()
        threading.Thread(
            target=lambda: (nobody_works.everywhere(abs, -1), done.set()), daemon=True
        ).start()
        assert done.wait(HANGS)


class TestInterrupts:
    def test_while_the_own_thread_is_busy(self, queue, gate, hold_up):
        held = hold_up(queue.submit(abs, -1))
        assert held.entered.wait(HANGS)
        future = queue.submit(gate.hold)
        interrupting = interrupt_wait()
        with pytest.raises(KeyboardInterrupt):
            future.result(HANGS)
        interrupting.join()
        held.leave.set()
        gate.open()
        assert _when_done(queue.submit(abs, -2)).wait(HANGS)

    def test_at_any_moment(self, queue):
        n_interrupted = 0
        assert queue.submit(abs, -1).result(HANGS) == 1
        with Armed() as armed:
            while n_interrupted < 100:
                n_interrupted += armed.once(lambda: queue.submit(abs, -1).result())
        for _ in range(3):
            assert _when_done(queue.submit(abs, -2)).wait(HANGS)
            assert queue.submit(abs, -3).result(HANGS) == 3

    def test_twice_ends_a_callback_that_hangs(self, queue, gate):
        main, entered, over = threading.main_thread(), threading.Event(), threading.Event()
        future = queue.submit(gate.hold)
        future.add_done_callback(lambda _: entered.set() or over.wait(HANGS) or over.set())

        def interrupt() -> None:
            while not is_reading(main):
                pass
            gate.open()
            entered.wait(HANGS)
            # Two at once count as one; and Python may not notice one that comes as a wait begins.
            while not over.wait(0.3) and is_waiting(main):
                signal.pthread_kill(main.ident, signal.SIGINT)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            future.result()
        assert not over.is_set()
        interrupting.join()
        assert _when_done(queue.submit(abs, -2)).wait(HANGS)


def test_more_files_than_select_can_name(make_queue):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this system does not allow that many")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        queue = make_queue(workers=1)
        assert queue.submit(abs, -1).result(HANGS) == 1
        assert _when_done(queue.submit(abs, -2)).wait(HANGS)
        queue.shutdown()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_was_cut_without_a_word_is_opened_again(make_queue, proxy, monkeypatch):
    monkeypatch.setattr("nbstreamq.client.listener.BLOCK", 0.3)
    monkeypatch.setattr("nbstreamq.client.listener.REPLY_TIMEOUT", 0.3)
    working = make_queue(workers=1)
    working.submit(abs, -1).result(HANGS)
    waiting = make_queue(workers=0, url=proxy.url)
    assert waiting.submit(abs, -2).result(HANGS) == 2
    future = waiting.submit(time.sleep, 0.2)
    assert proxy.mute(b"XREAD\r") > 0
    assert future.result(HANGS) is None
    waiting.shutdown(wait=False)
