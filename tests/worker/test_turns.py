"""Who has the turn, step by step."""

import os
import signal
import tempfile
import time

import pytest

from nbstreamq.worker.turns import LONG, TURNS_BYTES, Turn, TurnWatch


@pytest.fixture
def turns(monkeypatch):
    """Three workers, whose supervisor and process are this one."""
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_, **__: -1)
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), TURNS_BYTES)
        watch = TurnWatch(file.fileno())
        for place in (2, 0, 1):
            watch.add(place)
        yield [Turn(file.fileno(), k, os.getpid()) for k in range(3)], watch


def test_the_first_that_waits_has_it(turns):
    (a, b, _), _ = turns
    assert (a.take(), b.take(), a.take()) == (True, False, True)


def test_it_is_kept_while_a_call_is_short(turns):
    (a, b, _), watch = turns
    assert a.take()
    with b.parked():
        a.keep(time.monotonic() + 1.0)
        assert watch.look(), "it looks often from now on"
        assert (a.take(), b.take()) == (True, False)


def test_who_was_parked_last_gets_it(turns):
    (a, b, c), _ = turns
    assert a.take()
    with b.parked(), c.parked():
        a.pass_on()
        assert (a.take(), b.take(), c.take()) == (False, False, True)


def test_one_that_has_just_gone_on_by_itself_does_not_get_it(turns, monkeypatch):
    (a, b, c), _ = turns
    assert a.take()
    with b.parked():
        with c.parked():
            seen = a._parked()
        monkeypatch.setattr(a, "_parked", lambda: seen)
        a.pass_on()
        assert (c.take(), b.take()) == (False, True)


def test_without_anybody_parked_it_is_free(turns):
    (a, b, _), _ = turns
    assert a.take()
    a.pass_on()
    assert b.take()


@pytest.mark.parametrize("watched", [True, False])
def test_a_long_call_loses_it(turns, watched):
    (a, b, _), watch = turns
    assert a.take()
    with b.parked():
        a.keep(time.monotonic() - 2 * LONG)
        if watched:
            watch.look()
        assert (b.take(), a.take()) == (True, False)


def test_a_worker_that_died_loses_it(turns):
    (a, b, c), watch = turns
    assert a.take()
    with b.parked(), c.parked():
        watch.drop(2)
        watch.drop(0)
        assert (b.take(), a.take()) == (True, False)


def test_far_from_the_server_two_look_at_a_time(turns):
    (a, b, c), _ = turns
    assert a.take()
    with b.parked(), c.parked():
        a.spread()
        assert not any(a._parked())
        assert (b.take(), c.take()) == (False, False), "they look, and only one waits there"
