"""Set-up code: once on every worker, those included that come later."""

from __future__ import annotations

import os
import signal

import pytest

from nbstreamq import WorkerLost
from nbstreamq.client.session import Session
from nbstreamq.wire.store import Store


@pytest.fixture
def two_workers(queue, wait_until):
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    return queue


def test_runs_once_on_each_worker(two_workers):
    found = two_workers.everywhere(os.getpid).result(10)
    assert sorted(found) == sorted(w.pid for w in two_workers.workers())


def test_does_not_wait_behind_forgeries(two_workers, client, store):
    for _ in range(3):  # at first, neither worker may be parked
        for worker in two_workers.workers():
            for _ in range(200):
                client.xadd(store.keys.own_lane(worker.id), {"hello": "world"})
        assert two_workers.everywhere(abs, -1).result(20) == [1, 1]


def test_runs_before_what_is_submitted_later(two_workers):
    def set_up(value):
        import builtins

        builtins.nbstreamq_test_value = value

    def value():
        import builtins

        return builtins.nbstreamq_test_value

    two_workers.everywhere(set_up, 5)
    assert list(two_workers.map(lambda _: value(), range(50), chunksize=1)) == [5] * 50


def test_late_joiners(make_queue, wait_until):
    def set_up():
        os.environ["NBSTREAMQ_TEST_SET_UP"] = "yes"

    def look(_):
        import time

        time.sleep(0.005)
        return os.getpid(), os.environ.get("NBSTREAMQ_TEST_SET_UP")

    queue = make_queue(workers=1)
    assert queue.submit(look, 0).result(10)[1] is None
    queue.everywhere(set_up).result(10)
    queue.run(3)
    wait_until(lambda: len(queue.workers()) == 3, describe="three workers")
    pids = {w.pid for w in queue.workers()}
    seen: dict[int, str | None] = {}

    def all_seen():
        seen.update(queue.map(look, range(12), chunksize=1).result(10))
        return pids <= seen.keys()

    wait_until(all_seen, describe="all three have worked")
    assert set(seen.values()) == {"yes"}


def test_with_no_workers_yet(make_queue):
    def set_up():
        import builtins

        builtins.nbstreamq_test_early = True

    def is_set_up():
        import builtins

        return builtins.nbstreamq_test_early

    queue = make_queue(workers=0)
    assert queue.everywhere(set_up).result(10) == []
    queue.run(1)
    assert queue.submit(is_set_up).result(10)


def test_errors(two_workers):
    job = two_workers.everywhere(int, "x")
    assert len(job) == 2
    with pytest.raises(ValueError, match="'x'"):
        job.result(10)


@pytest.mark.crash
@pytest.mark.parametrize("has_begun", [True, False])
def test_a_worker_that_dies_before_it_is_through_ends_its_item(two_workers, has_begun):
    victim = two_workers.everywhere(os.getpid).result(20)[0]
    if not has_begun:
        os.kill(victim, signal.SIGSTOP)

    def set_up():
        if os.getpid() == victim:
            os.kill(victim, signal.SIGKILL)

    job = two_workers.everywhere(set_up)
    if not has_begun:
        os.kill(victim, signal.SIGKILL)
    job.wait(20)
    (error,) = job.errors.values()
    assert isinstance(error, WorkerLost)
    assert "takes its place runs it first" in str(error)
    assert two_workers.dead() == []


def test_results_that_are_faster_than_the_answer(two_workers_told, wait_until, monkeypatch):
    """The workers may be done before the client hears that its request was carried out."""
    queue, told = two_workers_told
    send = Store.everywhere

    def send_slowly(self, *args):
        sent = send(self, *args)
        if sent:
            wait_until(lambda: told.count("finished") == 2, describe="both results")
        return sent

    monkeypatch.setattr(Store, "everywhere", send_slowly)
    assert len(set(queue.everywhere(os.getpid).result(10))) == 2


@pytest.fixture
def two_workers_told(make_queue, wait_until, monkeypatch):
    """A queue with two workers, and the kinds of the events that it was told of."""
    told: list[str] = []
    deliver = Session.take

    def listen(self, event):
        go_on = deliver(self, event)
        told.append(event.kind)
        return go_on

    monkeypatch.setattr(Session, "take", listen)
    queue = make_queue()
    queue.run(2)
    wait_until(lambda: len(queue.workers()) == 2, describe="two workers")
    return queue, told


INIT = """
import os, uuid

def connect():
    return os.getpid(), uuid.uuid4().hex

def init(text="first"):
    global conn, mode
    conn, mode = connect(), text

def use(_=None):
    return conn

def lazy(_=None):
    global cached
    try:
        return cached
    except NameError:
        cached = connect()
        return cached

def outer():
    before = lazy()
    return before, queue.submit(lazy).result(10), lazy()

def forget():
    global conn
    del conn
"""


class TestSharedNames:
    """What a set-up, or any call, assigns to a global that the notebook does not define."""

    @pytest.fixture
    def cell(self):
        """Names of a notebook, in which a cell was run."""
        names = {"__name__": "__main__"}
        exec(INIT, names)
        return names

    def test_calls_see_what_a_set_up_has_made_for_their_worker(self, two_workers, cell):
        pids = {w.pid for w in two_workers.workers()}
        two_workers.everywhere(cell["init"]).result(10)
        found = set(two_workers.map(cell["use"], range(50), chunksize=1))
        found |= {two_workers.submit(cell["use"]).result(10) for _ in range(10)}
        found |= {two_workers.submit(lambda f: f(), cell["use"]).result(10) for _ in range(10)}
        assert {pid for pid, _ in found} <= pids
        assert len(found) <= 2

    @pytest.mark.parametrize(
        "statement",
        [
            "globals()['mode'] = text",
            "globals().update(mode=text)",
            "exec('global mode; mode = ' + repr(text))",
            "exec('mode = ' + repr(text), globals())",
        ],
    )
    def test_calls_see_what_a_set_up_has_set_by_text(self, two_workers, cell, statement):
        exec(f"def set_up(text):\n    {statement}", cell)
        read = eval("lambda _: mode", cell)
        by_text = eval("lambda _: (globals()['mode'], eval('mode'))", cell)
        for text in ("one", "two"):
            two_workers.everywhere(cell["set_up"], text).result(10)
            assert two_workers.map(read, range(20), chunksize=1).result(10) == [text] * 20
            assert two_workers.map(by_text, range(4)).result(10) == [(text, text)] * 4
        exec("def forget():\n    del globals()['mode']", cell)
        two_workers.everywhere(cell["forget"]).result(10)
        for call in (read, by_text):
            with pytest.raises((NameError, KeyError), match="mode"):
                two_workers.submit(call, 0).result(10)

    def test_a_function_that_has_run_before_sees_a_later_set_up(self, two_workers, cell):
        read = eval("lambda _: mode", cell)
        for text in ("one", "two"):
            two_workers.everywhere(cell["init"], text).result(10)
            assert two_workers.map(read, range(20), chunksize=1).result(10) == [text] * 20

    def test_names_of_the_notebook_come_first(self, two_workers, cell):
        two_workers.everywhere(cell["init"]).result(10)
        read = eval("lambda: mode", cell)
        cell["mode"] = "mine"
        assert two_workers.submit(read).result(10) == "mine"
        del cell["mode"]
        assert two_workers.submit(read).result(10) == "first"

    def test_a_lazy_global_is_made_once_for_each_worker(self, two_workers, cell):
        calls = [two_workers.submit(cell["lazy"]) for _ in range(60)]
        found = {f.result(10) for f in calls} | set(two_workers.map(cell["lazy"], range(60)))
        assert len(found) == len({pid for pid, _ in found}) <= 2

    def test_a_name_can_be_deleted_again(self, two_workers, cell):
        two_workers.everywhere(cell["init"]).result(10)
        two_workers.everywhere(cell["forget"]).result(10)
        with pytest.raises(NameError, match="conn"):
            two_workers.submit(cell["use"]).result(10)

    def test_a_call_that_is_run_by_a_waiting_one_shares_names(self, make_queue, cell):
        queue = make_queue(workers=1)
        cell["queue"] = queue
        assert len(set(queue.submit(cell["outer"]).result(10))) == 1

    def test_a_module_beside_the_script_has_names_of_its_own(self, make_queue, cell, beside):
        queue = make_queue(workers=1)
        beside("connecting.py", INIT)
        import connecting

        queue.everywhere(cell["init"], "notebook").result(10)
        queue.everywhere(connecting.init, "module").result(10)
        exec("def mode_of(): return mode", vars(connecting))
        read = eval("lambda: mode", cell)
        assert queue.submit(connecting.mode_of).result(10) == "module"
        assert queue.submit(read).result(10) == "notebook"
