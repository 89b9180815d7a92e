"""What there is to show of a job: numbers, timelines, errors; and how HTML and text say it."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest

from nbstreamq import track
from nbstreamq.client.error_notes import RunInfo
from nbstreamq.notebook.html import describe, describe_items, describe_worker, job_html
from nbstreamq.notebook.terminal import job_text
from nbstreamq.notebook.view import (
    FIRST_COLUMN,
    N_COLUMNS,
    FailedItem,
    ItemProgress,
    JobPicture,
    JobView,
    PrintedText,
    WorkerRow,
    WorkerTimeline,
    time_left,
)
from nbstreamq.wire.item_ranges import ONE
from tests.real_workers import gate, new_queue, queue, shared_queue

__all__ = ["gate", "new_queue", "queue", "shared_queue"]


def risky(x):
    if x == 3:
        print("three <b>")
        raise ValueError("<i>three</i>")
    return x


class Plain(HTMLParser):
    """Keeps the tags and the text; checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], set(), []
        self.feed(text)
        self.close()
        assert not self.open

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def handle_data(self, data):
        self.texts.append(data)

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
    picture = JobView(job, lambda: time.time() + 3600).picture()
    assert 0.05 <= picture.elapsed < 30
    assert picture.rate > 1 / 30


@pytest.mark.filterwarnings("ignore")
def test_a_job_that_is_over(shared_queue):
    job = shared_queue.map(risky, range(10), chunksize=1)
    job.wait(30)
    picture = JobView(job).picture()

    assert (picture.name, picture.state, picture.n) == ("risky", "failed", 10)
    assert (picture.counts["done"], picture.counts["failed"]) == (9, 1)
    assert picture.remaining is None
    (error,) = picture.errors
    assert (error.item, error.summary) == (3, "ValueError: <i>three</i>")
    assert "in risky" in error.traceback
    assert picture.output == [PrintedText(3, "three <b>\n")]
    assert sum(map(sum, (row.busy for row in picture.workers))) > 0


@pytest.mark.filterwarnings("ignore")
def test_html_shows_what_tasks_say_as_text_only(shared_queue):
    job = shared_queue.map(risky, range(10), chunksize=1)
    job.wait(30)
    text = job_html(JobView(job).picture())
    assert "9 of 10 done · 1 failed" in text
    assert "&lt;i&gt;three&lt;/i&gt;" in text
    assert not Plain(text).tags & {"i", "script", "style"}
    assert "9 of 10 done" in job_text(JobView(job).picture())


def test_a_running_job_tells_its_progress_and_workers(queue, gate, wait_until):
    opened = gate()

    def work():
        for i in track(range(4)):
            if i == 2:
                opened.wait()

    job = queue.map(lambda _: work(), range(1))
    view = JobView(job)
    wait_until(lambda: view.picture().progress, describe="progress")
    wait_until(lambda: view.picture().n_workers == 2, describe="the workers are asked about")
    picture = view.picture()
    assert picture.progress == [ItemProgress(0, 2, 4)]
    assert picture.state == "running"
    assert picture.n_workers == 2
    opened.open()
    job.wait(30)
    assert view.picture().progress == []


def test_a_job_without_workers_says_what_to_do(new_queue):
    queue = new_queue(workers=0)
    picture = JobView(queue.map(abs, [1])).picture()
    assert picture.state == "waiting"
    assert "no workers" in picture.obstacle
    assert "Nothing can run" in job_html(picture)


def test_it_says_which_limit_holds_up_all_workers(new_queue, wait_until):
    queue = new_queue(workers=1)
    limit = queue.limit("api", rate=0.01)

    def work(_):
        with limit:
            return 1

    job = queue.map(work, range(3), chunksize=1)
    view = JobView(job)
    said = "1 worker waits for limit api"
    wait_until(lambda: view.picture().obstacle == said, describe="what holds it up")
    assert "Held up" in job_html(view.picture())
    job.cancel()


def test_workers_that_are_starting_are_no_obstacle(new_queue):
    queue = new_queue(workers=1)
    assert JobView(queue.map(abs, [1])).picture().obstacle == ""


def test_drawing_a_large_job_takes_no_time(new_queue):
    job = new_queue(workers=0).map(abs, range(100_000))
    view = JobView(job)
    job_html(view.picture())
    began = time.process_time()
    for _ in range(10):
        job_html(view.picture())
    assert time.process_time() - began < 0.5


def report(started, seconds, *, kind="finished", worker="w1", attempt=1, n=0):
    return RunInfo(kind, n, ONE, worker, attempt, started, seconds)


class TestTimeline:
    def test_a_column_holds_the_share_of_time_that_was_busy(self):
        timeline = WorkerTimeline(100.0)
        timeline.add(report(100.0, timeline.seconds * 1.5), 100.0 + timeline.seconds * 2)
        (row,) = timeline.rows(101.0)
        assert row.busy[:3] == [1.0, 0.5, 0.0]
        assert timeline.n_used(100.0 + timeline.seconds * 2.5) == 3

    def test_columns_grow_with_the_job(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(0.0, 4.0), 4.0)
        timeline.add(report(500.0, 100.0), 600.0)
        (row,) = timeline.rows(600.0)
        assert timeline.seconds * N_COLUMNS >= 600
        assert sum(row.busy) * timeline.seconds == pytest.approx(104, rel=0.05)

    def test_items_tried_again_or_lost_are_marked_where_they_happened(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(0.0, 0.0, kind="retried"), 1.0)
        timeline.add(report(0.0, 0.0, kind="lost", worker="w2"), 2.0)
        assert [sum(row.trouble) for row in timeline.rows(2.0)] == [1, 1]

    def test_an_item_that_still_runs_counts_as_busy_until_now(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(0.0, 1.0), 1.0)
        timeline.add(report(1.2, 0.0, kind="started"), 1.2)
        timeline.add(report(0.5, 0.5), 1.3)  # of items before it, told a moment later
        (row,) = timeline.rows(300.0)
        assert (row.seconds, row.n_items) == (pytest.approx(300.3, rel=0.01), 2)
        assert row.busy[timeline.n_used(300.0) - 1] > 0
        timeline.add(report(1.0, 300.0), 301.0)
        (row,) = timeline.rows(900.0)
        assert row.seconds == pytest.approx(301.5, rel=0.01)

    def test_a_column_tells_what_ran_in_it(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(0.0, 0.02, n=3), 0.1)
        timeline.add(report(0.02, 0.06, n=8), 0.1)
        timeline.add(report(0.2, 0.0, n=9, kind="started"), 0.2)
        (row,) = timeline.rows(0.24)
        assert row.ran[:5] == [(3, 8), (8, 8), (), (), (9, 9)]
        (row,) = timeline.rows(9.0)
        assert timeline.seconds == FIRST_COLUMN * 2
        assert row.ran[:3] == [(3, 8), (), (9, 9)]

    def test_an_item_that_was_cancelled_runs_no_more(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(1.0, 0.0, n=7, kind="started"), 1.0)
        timeline.forget(lambda item: item == 8)
        assert timeline.rows(9.0)[0].seconds == pytest.approx(8)
        timeline.forget(lambda item: item == 7)
        assert timeline.rows(9.0)[0].seconds == 0

    def test_an_item_that_was_lost_runs_no_more(self):
        timeline = WorkerTimeline(0.0)
        timeline.add(report(1.0, 0.0, kind="started"), 1.0)
        timeline.add(report(0.0, 0.0, kind="lost"), 2.0)
        (row,) = timeline.rows(9.0)
        assert row.seconds == 0

    def test_a_worker_may_run_several_coroutines(self):
        timeline = WorkerTimeline(0.0)
        for item in range(4):
            timeline.add(report(1.0 + item, 0.0, n=item, kind="started"), 5.0)
        assert timeline.begins(concurrent=True) == [1.0, 2.0, 3.0, 4.0]
        assert timeline.begins(concurrent=False) == [4.0]
        timeline.add(report(1.0, 4.0, n=0), 5.0)
        timeline.add(report(0.0, 0.0, n=2, kind="retried"), 5.0)
        timeline.forget(lambda item: item == 3)
        assert timeline.begins(concurrent=True) == [2.0]
        timeline.add(report(2.0, 3.0, n=1), 5.0)
        assert timeline.rows(5.0)[0].seconds == pytest.approx(4)  # not 7

    def test_workers_are_in_the_order_of_their_numbers(self):
        timeline = WorkerTimeline(0.0)
        for number in (10, 9, 100):
            timeline.add(report(0.0, 1.0, worker=f"node#{number}"), 1.0)
        assert [row.name for row in timeline.rows(1.0)] == ["worker 9", "worker 10", "worker 100"]


@pytest.mark.parametrize(
    ("n_left", "rate", "mean", "running", "seconds"),
    [
        # 6 items of 8 s on 2 workers, after 8.4 s
        (4, 0.4, 8.0, [0.4, 0.4], 15.6),
        # Three are left for two workers: one runs two
        (3, 0.4, 8.0, [2.0, 4.0], 12.0),
        (1, 0.0, 8.0, [3.0], 5.0),
        # It takes longer than the others
        (1, 0.0, 8.0, [9.0], None),
        # Many short ones, and nothing
        (500, 100.0, 0.02, [], 5.0),
        (500, 100.0, 0.02, [0.01], 5.0),
        (500, 0.0, 8.0, [], None),
    ],
)
def test_the_time_that_is_left(n_left, rate, mean, running, seconds):
    assert time_left(n_left, rate, mean, running) == seconds


def test_coroutines_that_begin_in_a_moment_count_as_running():
    assert time_left(25, 4.0, 2.0, [0.5], n_at_once=12) == 5.5
    assert time_left(1, 4.0, 2.0, [0.5], n_at_once=12) == 1.5


def test_without_workers_no_time_is_told(new_queue, gate, wait_until):
    queue, opened = new_queue(workers=1), gate()
    view = JobView(queue.map(lambda x: x or opened.wait(), [1, 1, 0], chunksize=1))
    wait_until(lambda: view.picture().counts["done"] == 2)
    queue.run(0)
    wait_until(lambda: view.picture().remaining is None, describe="no estimate")
    opened.open()


def test_a_long_error_is_one_line_until_it_is_opened(shared_queue):
    def fail(x):
        raise ValueError("long " * 100 + "end")

    job = shared_queue.map(fail, [1])
    job.wait(30)
    (error,) = JobView(job).picture().errors
    assert len(error.summary) < 130
    assert error.summary.endswith("…")
    assert "long end" in error.traceback


def test_items_in_words():
    assert [describe_items(e) for e in ((), (3, 3), (3, 17))] == ["", "item 3", "items 3 to 17"]


def picture_of(**known):
    counts = {"done": 0, "failed": 0, "cancelled": 0, "running": 0, "waiting": 0, "delayed": 0}
    empty = {"workers": [], "errors": [], "output": [], "progress": [], "obstacle": ""}
    about = {"id": "3f2a", "name": "f", "state": "running", "n": 1, "n_columns": 1}
    numbers = {"elapsed": 3.0, "rate": 0.0, "remaining": None, "n_workers": 0, "n_busy": 0}
    counts |= known.pop("counts", {})
    known = {"counts": counts, "column_seconds": 0.05, **empty, **about, **numbers, **known}
    return JobPicture(**known)


def test_a_long_job_tells_what_more_workers_would_bring(shared_queue, wait_until):
    job = shared_queue.map(time.sleep, [0.05] * 20_000)
    view = JobView(job)
    picture = wait_until(
        lambda: (found := view.picture()).outlook and found.worker_bytes and found, timeout=30
    )
    job.cancel()

    assert picture.outlook[2] == pytest.approx(4 * picture.outlook[8], rel=0.01)
    assert picture.worker_bytes > 10 * 2**20
    text = Plain(job_html(picture)).text
    found = r"the rest takes \d+ min .* on 2 workers · .* on 64 workers · .* for each"
    assert re.search(found, text)


def test_numbers_in_words():
    picture = picture_of(
        n=1202,
        counts={"done": 1200, "running": 2},
        rate=400.0,
        remaining=5.0,
        n_workers=4,
        n_busy=2,
    )
    assert describe(picture) == (
        "1,200 of 1,202 done · 2 running · 400/s · 3 s · about 5 s left · 2 of 4 workers busy"
    )


def test_what_failed_can_be_run_again_says_the_html(shared_queue):
    job = shared_queue.map(risky, range(4, -1, -1), chunksize=1)
    job.wait(30)
    text = job_html(JobView(job).picture(), "there")
    assert "<code>job.retry_failed()</code> runs it again" in text
    assert '<span class="there"></span>' in text
    job.retry_failed(abs).wait(30)
    assert "retry_failed" not in job_html(JobView(job).picture(), "there")


def test_html_means_the_same_without_roles_styles_and_drawings(shared_queue):
    job = shared_queue.map(risky, range(3), chunksize=1)
    job.wait(30)
    picture = JobView(job).picture()
    assert sum(worker.n_items for worker in picture.workers) == 3
    seen = Plain(job_html(picture))
    assert seen.text.startswith("risky 3 of 3 done")
    for worker in picture.workers:
        assert f"{worker.name} {describe_worker(worker, picture.elapsed)}" in seen.text


def worker_row(**known):
    row = {"name": "worker 1", "busy": [0.0], "ran": [()], "trouble": [0.0], "seconds": 1.5}
    return WorkerRow(**{**row, "n_items": 1200, **known})


def test_a_worker_in_words():
    assert describe_worker(worker_row(), 2.0) == "75% busy · 1,200 items"
    worker = worker_row(seconds=9.0, n_items=1, trouble=[2.0, 0.0])
    assert describe_worker(worker, 2.0) == "100% busy · 1 item · 2 retried or lost"


def test_equal_columns_are_one_stretch():
    busy, ran = [1.0, 1.0, 0.0, 0.5], [(1, 4), (3, 6), (), (7, 7)]
    found = list(worker_row(busy=busy, ran=ran).stretches(4))
    assert found == [(2, 1.0, (1, 6)), (1, 0.0, ()), (1, 0.5, (7, 7))]


def test_the_html_of_a_running_job_has_a_place_for_buttons():
    assert "data-own" in job_html(picture_of(state="running"))
    assert "data-own" not in job_html(picture_of(state="done"))


def test_what_the_html_shows_is_escaped():
    nasty = '<script>alert("x")</script>&\''
    worker = worker_row(name=nasty, busy=[0.5], ran=[(1, 2)], trouble=[1.0])
    text = job_html(
        picture_of(
            name=nasty,
            state="failed",
            counts={"failed": 9},
            obstacle=nasty,
            workers=[worker],
            errors=[FailedItem(1, nasty, nasty)],
            output=[PrintedText(1, nasty)],
            progress=[ItemProgress(1, 2, None), ItemProgress(2, 3, 0)],
        ),
        "there",
    )
    seen = Plain(text)
    assert "script" not in seen.tags
    assert seen.text.count(nasty) == 6
    assert 'aria-label="Job &lt;script&gt;' in text
