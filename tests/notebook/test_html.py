"""Futures, references and queues as HTML: complete, escaped, and readable without colours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest

from nbstreamq.client.status import (
    JobList,
    JobStatus,
    LaneStatus,
    LimitStatus,
    QueueStatus,
    WorkerStatus,
)
from nbstreamq.notebook.html import future_html, jobs_html, ref_html, status_html
from nbstreamq.objects.references import Ref
from nbstreamq.wire.messages import State
from tests.real_workers import shared_queue

__all__ = ["shared_queue"]

NASTY = "<script>alert('x')</script>&\"quoted\""


class Reader(HTMLParser):
    """Reads HTML, and checks that all elements are closed and those that survive everywhere."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.headers: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert not {"script", "style", "link", "iframe"} & set(self.tags)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert not any(name.startswith("on") for name in given)
        if tag == "th":
            assert given["scope"] in {"row", "col"}
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "th" in self.open:
            self.headers.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


@dataclass
class Future:
    """What a view asks of a future."""

    status: State = State.WAITING
    worker: str | None = None
    attempts: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    progress: tuple[int, int | None] | None = None
    logs: str = ""
    value: Any = None
    error: BaseException | None = None

    def done(self):
        return self.status in {State.DONE, State.FAILED, State.CANCELLED}

    def cancelled(self):
        return self.status is State.CANCELLED

    def result(self, timeout):
        return self.value

    def exception(self, timeout):
        return self.error

    def __repr__(self):
        return f"<TaskFuture 3f2a.1-0 fib: {self.status}>"


def status_of(**changes):
    known = {"queue": "q", "server": "unix:///tmp/s", "lanes": (), "workers": (), "open_jobs": 0}
    return QueueStatus(**{**known, "trouble": "", **changes})


def worker_of(number, state="idle"):
    lanes = ("high", "nested8", "default")
    return WorkerStatus(
        id=f"node#{number}", host="node", pid=number, python="3.11", state=state, lanes=lanes
    )


class TestFuture:
    def test_that_waits(self):
        seen = Reader(future_html(Future()))
        assert seen.headers == ["status"]
        assert "<TaskFuture 3f2a.1-0 fib: waiting>" in seen.text

    def test_that_runs(self):
        future = Future(State.RUNNING, "node#1", 2, {"started": 0.5, "seconds": 0.0}, (3, 10))
        seen = Reader(future_html(future))
        assert seen.headers == ["status", "worker", "started", "progress"]
        assert "node#1, attempt 2" in seen.text
        assert "1970-01-01 00:00:00 UTC" in seen.text
        assert "3 of 10" in seen.text

    def test_that_counts_without_an_end(self):
        assert "1,234 items" in future_html(Future(State.RUNNING, progress=(1234, None)))

    def test_that_is_done(self):
        times = {"started": 1e9, "seconds": 12.0}
        seen = Reader(future_html(Future(State.DONE, "w", 1, times, value=[1, "two"])))
        assert seen.headers == ["status", "worker", "started", "took", "result"]
        assert "[1, 'two']" in seen.text
        assert "12 s" in seen.text

    def test_that_failed(self):
        seen = Reader(future_html(Future(State.FAILED, error=ValueError(NASTY))))
        assert seen.headers == ["status", "error"]
        assert f"ValueError: {NASTY}" in seen.text

    def test_that_was_cancelled(self):
        seen = Reader(future_html(Future(State.CANCELLED)))
        assert seen.headers == ["status"]
        assert "cancelled" in seen.text

    def test_output_is_folded(self):
        seen = Reader(future_html(Future(State.DONE, logs=f"{NASTY}\nsecond\n")))
        assert "details" in seen.tags
        assert f"{NASTY}\nsecond\n" in seen.texts
        assert "2 lines" in seen.texts

    def test_is_short_whatever_it_holds(self):
        future = Future(State.DONE, value="x" * 10**6, logs="y" * 10**6)
        assert len(future_html(future)) < 10_000
        assert len(future_html(Future(State.FAILED, error=ValueError("x" * 10**6)))) < 10_000

    def test_a_repr_that_exits(self):
        class Bad:
            def __repr__(self):
                raise SystemExit

        assert "can't be shown" in Reader(future_html(Future(State.DONE, value=Bad()))).text

    def test_an_error_without_text(self):
        class Bad(Exception):
            def __str__(self):
                raise SystemExit

        Reader(future_html(Future(State.FAILED, error=Bad())))
        assert ">KeyError<" in future_html(Future(State.FAILED, error=KeyError()))

    def test_of_a_real_queue(self, shared_queue):
        def work(x):
            print("printed", x)
            return f"<b>{x}</b>"

        future = shared_queue.submit(work, 5)
        future.result(10)
        seen = Reader(future_html(future))
        assert seen.headers == ["status", "worker", "started", "took", "result", "output"]
        assert "'<b>5</b>'" in seen.text
        assert "printed 5\n" in seen.texts
        failed = shared_queue.submit(divmod, 1, 0)
        failed.exception(10)
        assert "ZeroDivisionError" in Reader(future_html(failed)).text


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (17, "17 bytes"),
        (2048, "2.0 KiB (2,048 bytes)"),
        (3 * 2**29, "1.5 GiB (1,610,612,736 bytes)"),
    ],
)
def test_ref(size, words):
    seen = Reader(ref_html(Ref("abc123", size, NASTY, b"", bytes)))
    assert seen.headers == ["type", "size", "digest"]
    assert words in seen.texts
    assert NASTY in seen.text
    assert "abc123" in seen.texts


class TestStatus:
    def test_of_a_real_queue(self, shared_queue):
        status = shared_queue.status()
        seen = Reader(status_html(status))
        assert status.server in seen.texts
        assert {w.id for w in status.workers} <= set(seen.headers)
        assert "2 workers, 0 busy" in seen.text

    def test_lanes_that_hold_something(self):
        lanes = (
            LaneStatus(lane=NASTY, waiting=1200, running=3, delayed=0),
            LaneStatus(lane="idle-lane", waiting=0, running=0, delayed=0),
        )
        seen = Reader(status_html(status_of(lanes=lanes)))
        assert NASTY in "".join(seen.headers)
        assert "1,200" in seen.texts
        assert "idle-lane" not in seen.text

    def test_nothing_to_do_and_nobody_to_do_it(self):
        text = Reader(status_html(status_of())).text
        assert "No messages are waiting" in text
        assert "No workers" in text

    def test_workers_that_are_awaited_need_not_be_started(self):
        text = Reader(status_html(status_of(awaited=("2 workers on slurm are pending",)))).text
        assert "2 workers on slurm are pending" in text
        assert "Start some" not in text

    def test_what_workers_do_is_said_in_words(self):
        workers = (worker_of(1, "busy"), worker_of(2))
        seen = Reader(status_html(status_of(workers=workers)))
        assert "2 workers, 1 busy" in seen.texts
        assert {"busy", "idle", "high, default"} <= set(seen.texts)

    def test_limits_and_who_waits_for_them(self):
        limits = (LimitStatus(limit=NASTY, concurrent=5, rate=100 / 60, running=5, waiting=1200),)
        waits = replace(worker_of(1, "busy"), limit=NASTY)
        seen = Reader(status_html(status_of(limits=limits, workers=(waits,))))
        assert {"1,200", "5", "1.67/s", f"waits for limit {NASTY}"} <= set(seen.texts)
        assert "Limits" not in Reader(status_html(status_of())).text

    def test_one_worker(self):
        assert "1 worker, 0 busy" in status_html(status_of(workers=(worker_of(1),)))

    def test_many_workers_are_cut(self):
        html = status_html(status_of(workers=tuple(map(worker_of, range(100)))))
        assert "100 workers" in html
        assert "and 68 more workers" in html

    def test_trouble_is_said_in_words(self):
        assert f"Trouble:  {NASTY}" in Reader(status_html(status_of(trouble=NASTY))).text
        assert "Trouble" not in Reader(status_html(status_of())).text


def test_named_jobs_are_a_table():
    counts = {"done": 1200, "failed": 3, "cancelled": 0, "submitted": 2000, "complete": True}
    about = {"function": "fit", "made": 0.0, "expires": 3600.0, "size_bytes": 2048}
    job = JobStatus(name=NASTY, queue="sims", **about, **counts)
    read = Reader(jobs_html(JobList([job])))
    assert {"job", "state", "done", "expires", "size"} <= set(read.headers)
    assert {NASTY, "sims", "open", "1,200 of 2,000", "in 1 h 0 min"} <= set(
        read.texts + read.headers
    )
    assert "No named jobs" in "".join(Reader(jobs_html(JobList())).texts)


def test_notebooks_without_ipython_ask_a_value_for_its_html(shared_queue):
    future = shared_queue.submit(abs, -1)
    future.result(20)
    for value, text in (
        (future, "done"),
        (shared_queue.workers(), "2 workers"),
        (shared_queue.status(), shared_queue.name),
        (shared_queue.jobs(), "named"),
    ):
        assert text in value._repr_html_()
