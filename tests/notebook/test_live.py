"""Live views without a browser: what they keep alive, and what they send to Google Colab."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType, SimpleNamespace

import pytest

from nbstreamq.errors import NbstreamqError
from tests.real_workers import gate, new_queue, queue, shared_queue

__all__ = ["gate", "new_queue", "queue", "shared_queue"]

pytest.importorskip("anywidget")

from anywidget import _util
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbstreamq.notebook.live import LiveJob, catch_up, show_future, show_job
from nbstreamq.notebook.outputs import Output, end_cell
from nbstreamq.notebook.view import JobView

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def displayed(tmp_path, monkeypatch):
    """``displayed()`` returns the last HTML of each output of an IPython shell, by its id."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    config = Config()
    config.HistoryManager.enabled = False
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=config)
    shell.display_pub = CapturingDisplayPublisher()
    outputs = shell.display_pub.outputs
    yield lambda: {o["transient"]["display_id"]: o["data"]["text/html"] for o in list(outputs)}
    InteractiveShell.clear_instance()


def live_of(job):
    return LiveJob(job, Output(), JobView(job).picture())


def fail(x):
    raise ValueError(x)


def test_a_view_that_waits_for_a_retry_keeps_no_job(shared_queue):
    job = shared_queue.map(fail, [1])
    job.wait(30)
    live, gone = live_of(job), weakref.ref(job)
    widget = live.widget
    assert widget.comm is not None
    del job
    gc.collect()
    assert gone() is None
    assert widget.comm is None  # the button goes with it
    live.obey("retry")  # does nothing


def test_the_widget_stays_until_a_page_has_the_html(shared_queue, wait_until):
    job = shared_queue.map(abs, [-1])
    live, view = live_of(job), JobView(job)
    live.bundle(view.picture())
    live.follow(job, view)
    wait_until(lambda: live.widget.final, describe="the end of the view")
    assert "1 of 1 done" in live.widget.final["data"]["text/html"]
    assert live.widget.comm is not None
    live.obey("kept")
    assert live.widget.comm is None


def test_without_a_browser_the_oldest_widgets_go(shared_queue, wait_until, monkeypatch):
    monkeypatch.setattr("nbstreamq.notebook.live.MAX_ENDED", 1)
    lives = []
    for _ in range(2):
        job = shared_queue.map(abs, [-1])
        lives.append(live_of(job))
        lives[-1].bundle(JobView(job).picture())
        lives[-1].follow(job, JobView(job))
        wait_until(lambda: lives[-1].widget.final, describe="the end of the view")
    wait_until(lambda: lives[0].widget.comm is None, describe="the end of the first widget")
    assert lives[1].widget.comm is not None


def test_views_of_a_job_agree_after_a_retry(shared_queue, gate, wait_until, displayed):
    opened = gate()

    def fail_at_first(x):
        if not opened.is_open():
            raise ValueError(x)
        return x

    job = shared_queue.map(fail_at_first, [1])
    job.wait(30)
    for _ in range(2):
        show_job(job)
    assert [("1 failed" in html) for html in displayed().values()] == [True, True]
    opened.open()

    # When the job is run again in code, I expect both to show that when the cell ends
    job.retry_failed().result(30)
    catch_up()
    assert [("1 of 1 done" in html) for html in displayed().values()] == [True, True]


def test_a_call_as_the_last_expression_is_followed(shared_queue, gate, wait_until, displayed):
    opened = gate()
    future = shared_queue.submit(lambda: opened.wait() or "it is there")
    show_future(future)
    wait_until(lambda: "running" in "".join(displayed().values()), describe="the running call")
    opened.open()
    future.result(30)
    end_cell()
    assert "it is there" in "".join(displayed().values())


def test_the_view_says_why_a_button_failed(new_queue):
    queue = new_queue(workers=1)
    job = queue.map(fail, [1])
    job.wait(30)
    live = live_of(job)
    queue.shutdown()
    with pytest.raises(NbstreamqError):
        job.retry_failed()
    live.obey("retry")
    assert "make another TaskQueue" in live.widget.trouble


def test_in_colab_the_widget_manager_is_asked_for(shared_queue, monkeypatch):
    """As its documentation says: `google.colab.output.enable_custom_widget_manager()`."""
    colab = ModuleType("google.colab.output")
    colab._widgets = SimpleNamespace(_installed_url=None)

    def enable():
        colab._widgets._installed_url = "https://example.org/manager.js"

    colab.enable_custom_widget_manager = enable
    monkeypatch.setitem(sys.modules, "google.colab.output", colab)
    _util.enable_custom_widget_manager_once.cache_clear()
    job = shared_queue.map(abs, [1])
    try:
        data, metadata = live_of(job).bundle(JobView(job).picture())
    finally:
        _util.enable_custom_widget_manager_once.cache_clear()
    assert set(data) == {VIEW, "text/html", "text/plain"}
    assert metadata[VIEW]["colab"]["custom_widget_manager"]["url"].startswith("https:")
    job.wait(30)
