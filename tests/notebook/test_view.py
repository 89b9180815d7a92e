"""What there is to show of a job: numbers, strip, errors; and how HTML and text say it."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser

import pytest

from nbstreamq import track
from nbstreamq.client.ledger import RunInfo
from nbstreamq.notebook.html import describe, describe_items, describe_worker, duration, job_html
from nbstreamq.notebook.live import job_text
from nbstreamq.notebook.view import FIRST_COLUMN, N_COLUMNS, JobView, WorkerTimeline
from nbstreamq.wire.item_ranges import ONE
from tests.real_workers import gate, new_queue, queue, shared_queue

__all__ = ["gate", "new_queue", "queue", "shared_queue"]


def risky(x):
    if x == 3:
        print("three <b>")
        raise ValueError("<i>three</i>")
    return x


class Balance(HTMLParser):
    """Checks that every element is closed, and keeps the tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_job_that_was_over_before_it_was_shown_took_as_long_as_it_ran(shared_queue):
    job = shared_queue.map(time.sleep, [0.05])
    job.wait(30)
    snapshot = JobView(job, lambda: time.time() + 3600).snapshot()
    assert 0.05 <= snapshot["elapsed"] < 30
    assert snapshot["rate"] > 1 / 30


@pytest.mark.filterwarnings("ignore")
def test_a_job_that_is_over(shared_queue):
    job = shared_queue.map(risky, range(10), chunksize=1)
    job.wait(30)
    snapshot = JobView(job).snapshot()

    assert (snapshot["name"], snapshot["state"], snapshot["n"]) == ("risky", "failed", 10)
    assert (snapshot["counts"]["done"], snapshot["counts"]["failed"]) == (9, 1)
    assert snapshot["remaining"] is None
    (error,) = snapshot["errors"]
    assert (error["item"], error["summary"]) == (3, "ValueError: <i>three</i>")
    assert "in risky" in error["traceback"]
    assert snapshot["output"] == [{"item": 3, "text": "three <b>\n"}]
    assert sum(map(sum, (row["busy"] for row in snapshot["strip"]))) > 0
    assert json.loads(json.dumps(snapshot)) == snapshot


@pytest.mark.filterwarnings("ignore")
def test_html_shows_what_tasks_say_as_text_only(shared_queue):
    job = shared_queue.map(risky, range(10), chunksize=1)
    job.wait(30)
    text = job_html(JobView(job).snapshot())
    assert "9 of 10 done · 1 failed" in text
    assert "&lt;i&gt;three&lt;/i&gt;" in text
    assert not Balance(text).tags & {"i", "script", "style"}
    assert "9 of 10 done" in job_text(JobView(job).snapshot())


def test_a_running_job_tells_its_progress_and_workers(queue, gate, wait_until):
    opened = gate()

    def work():
        for i in track(range(4)):
            if i == 2:
                opened.wait()

    job = queue.map(lambda _: work(), range(1))
    view = JobView(job)
    wait_until(lambda: view.snapshot()["progress"], describe="progress")
    wait_until(lambda: view.snapshot()["n_workers"] == 2, describe="the workers are asked about")
    snapshot = view.snapshot()
    assert snapshot["progress"] == [{"item": 0, "done": 2, "total": 4}]
    assert snapshot["state"] == "running"
    assert snapshot["n_workers"] == 2
    opened.open()
    job.wait(30)
    assert view.snapshot()["progress"] == []


def test_a_job_without_workers_says_what_to_do(new_queue):
    queue = new_queue(workers=0)
    snapshot = JobView(queue.map(abs, [1])).snapshot()
    assert snapshot["state"] == "waiting"
    assert "no workers" in snapshot["obstacle"]
    assert "Nothing can run" in job_html(snapshot)


def test_a_large_job_is_looked_at_in_no_time(new_queue):
    job = new_queue(workers=0).map(abs, range(100_000))
    view = JobView(job)
    view.snapshot()
    began = time.process_time()
    for _ in range(10):
        view.snapshot()
    assert time.process_time() - began < 0.5


def report(started, seconds, *, kind="finished", worker="w1", attempt=1, n=0):
    return RunInfo(kind, n, ONE, worker, attempt, started, seconds)


class TestStrip:
    def test_a_column_holds_the_share_of_time_that_was_busy(self):
        strip = WorkerTimeline(100.0)
        strip.add(report(100.0, strip.seconds * 1.5), 100.0 + strip.seconds * 2)
        (row,) = strip.rows(101.0)
        assert row["busy"][:3] == [1.0, 0.5, 0.0]
        assert strip.n_used(100.0 + strip.seconds * 2.5) == 3

    def test_columns_grow_with_the_job(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(0.0, 4.0), 4.0)
        strip.add(report(500.0, 100.0), 600.0)
        (row,) = strip.rows(600.0)
        assert strip.seconds * N_COLUMNS >= 600
        assert sum(row["busy"]) * strip.seconds == pytest.approx(104, rel=0.05)

    def test_items_tried_again_or_lost_are_marked_where_they_happened(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(0.0, 0.0, kind="retried"), 1.0)
        strip.add(report(0.0, 0.0, kind="lost", worker="w2"), 2.0)
        assert [sum(row["trouble"]) for row in strip.rows(2.0)] == [1, 1]

    def test_an_item_that_still_runs_counts_as_busy_until_now(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(0.0, 1.0), 1.0)
        strip.add(report(1.2, 0.0, kind="started"), 1.2)
        strip.add(report(0.5, 0.5), 1.3)  # of items before it, told a moment later
        (row,) = strip.rows(300.0)
        assert (row["seconds"], row["n_items"]) == (pytest.approx(300.3, rel=0.01), 2)
        assert row["busy"][strip.n_used(300.0) - 1] > 0
        strip.add(report(1.0, 300.0), 301.0)
        (row,) = strip.rows(900.0)
        assert row["seconds"] == pytest.approx(301.5, rel=0.01)

    def test_a_column_tells_what_ran_in_it(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(0.0, 0.02, n=3), 0.1)
        strip.add(report(0.02, 0.06, n=8), 0.1)
        strip.add(report(0.2, 0.0, n=9, kind="started"), 0.2)
        (row,) = strip.rows(0.24)
        assert row["ran"][:5] == [[3, 8], [8, 8], [], [], [9, 9]]
        (row,) = strip.rows(9.0)
        assert strip.seconds == FIRST_COLUMN * 2
        assert row["ran"][:3] == [[3, 8], [], [9, 9]]

    def test_an_item_that_was_cancelled_runs_no_more(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(1.0, 0.0, n=7, kind="started"), 1.0)
        strip.forget(lambda item: item == 8)
        assert strip.rows(9.0)[0]["seconds"] == pytest.approx(8)
        strip.forget(lambda item: item == 7)
        assert strip.rows(9.0)[0]["seconds"] == 0

    def test_an_item_that_was_lost_runs_no_more(self):
        strip = WorkerTimeline(0.0)
        strip.add(report(1.0, 0.0, kind="started"), 1.0)
        strip.add(report(0.0, 0.0, kind="lost"), 2.0)
        (row,) = strip.rows(9.0)
        assert row["seconds"] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4213, "0.42 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (0, "0 s")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_items_in_words():
    assert [describe_items(e) for e in ((), (3, 3), (3, 17))] == ["", "item 3", "items 3 to 17"]


def test_numbers_in_words():
    counts = {"done": 1200, "failed": 0, "cancelled": 0, "running": 2, "waiting": 0, "delayed": 0}
    numbers = {"elapsed": 3.0, "rate": 400.0, "remaining": 5.0, "n_workers": 4, "n_busy": 2}
    assert describe({"n": 1202, "counts": counts, **numbers}) == (
        "1,200 of 1,202 done · 2 running · 400/s · 3 s · about 5 s left · 2 of 4 workers busy"
    )


def test_what_failed_can_be_run_again_says_the_html(shared_queue):
    job = shared_queue.map(risky, range(4, -1, -1), chunksize=1)
    job.wait(30)
    text = job_html(JobView(job).snapshot(), "there")
    assert "<code>job.retry_failed()</code> runs it again" in text
    assert '<span class="there"></span>' in text
    job.retry_failed(abs).wait(30)
    assert "retry_failed" not in job_html(JobView(job).snapshot(), "there")


def test_html_means_the_same_without_roles_styles_and_drawings(shared_queue):
    job = shared_queue.map(risky, range(3), chunksize=1)
    job.wait(30)
    text = job_html(JobView(job).snapshot())
    assert "role=" not in text
    assert "<figcaption><b>risky</b> 3 of 3 done" in text
    assert '<th scope="row"' in text
    assert sum(row["n_items"] for row in JobView(job).snapshot()["strip"]) == 3


def test_a_worker_in_words():
    row = {"seconds": 1.5, "n_items": 1200, "n_trouble": 0}
    assert describe_worker(row, 2.0) == "75% busy · 1,200 items"
    row = {"seconds": 9.0, "n_items": 1, "n_trouble": 2}
    assert describe_worker(row, 2.0) == "100% busy · 1 item · 2 tried again or lost"
