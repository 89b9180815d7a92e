"""What a person sees: a real JupyterLab in a real browser, with live views and the notebooks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from nbstreamq.cores import n_cores
from tests.notebook.pages import PANEL, open_notebook, outputs_of, run_all_cells

# -- live views ---------------------------------------------------------------------------------

UNTIL = """\
import os, time
def until(path):
    while not os.path.exists(path):
        time.sleep(0.05)
"""
#: The test lets this job, and its second try, end only when it has seen the view.
START = f"""\
{UNTIL}
from nbstreamq import TaskQueue, track
q = TaskQueue("live", workers=2)
def slow(x):
    if x == 39:
        until("seen")
    for _ in track(range(4)):
        time.sleep(0.05)
    if x == 7:
        if os.path.exists("seen"):
            until("seen again")
        print("seven <b>is</b> next")
        raise ValueError("seven is <i>no</i> good")
    return x
q.submit(slow, 0).result()
"""
JOB = "job = q.map(slow, range(40))\njob"
FREE = "'the kernel is free: ' + str(job.done())"
BLOCKED = "endless = q.map(time.sleep, [0.5] * 200)\ndisplay(endless)\nendless.wait()\n'over'"
VIEW = ".nbstreamq-job"


def write_notebook(lab, name, sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), lab.folder / name)


@pytest.fixture
def notebook(lab) -> str:
    write_notebook(lab, "live.ipynb", (START, JOB, FREE, BLOCKED))
    return "live.ipynb"


def run_cell(page, number):
    page.locator(f"{PANEL} .jp-CodeCell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def shoot(page, tmp_path, name):
    page.screenshot(path=Path(os.environ.get("NBSTREAMQ_TEST_SCREENSHOTS", tmp_path)) / name)


def stays_as_the_reader_left_it(page, view):
    """Unfold an error, focus it and select text in it: the next pictures change nothing of that."""
    error = view.locator("details", has_text="item 7").first
    error.locator("summary").click()
    view.get_by_text("workers over").click()
    error.locator("summary").focus()
    error.locator("pre").evaluate("pre => getSelection().selectAllChildren(pre)")
    selected = page.evaluate("() => getSelection().toString()")
    assert "ValueError" in selected
    numbers = view.locator("figcaption")
    before = numbers.text_content()
    for _ in range(2):
        expect(numbers).not_to_have_text(before, timeout=20_000)
        before = numbers.text_content()
    expect(error).to_have_attribute("open", "")
    expect(error.locator("summary")).to_be_focused()
    expect(view.locator("table")).to_be_hidden()
    assert page.evaluate("() => getSelection().toString()") == selected


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_job_is_seen_live_and_stays_as_html(lab, page, notebook, tmp_path):
    open_notebook(page, lab, notebook)
    run_cell(page, 0)
    expect(page.locator(".jp-InputPrompt").first).to_have_text("[1]:", timeout=60_000)

    # When a job is a cell's last expression, I expect to see it run, while the kernel is free
    run_cell(page, 1)
    view = page.locator(VIEW)
    expect(view).to_be_visible(timeout=20_000)
    expect(view).to_contain_text("of 40 done")
    run_cell(page, 2)
    expect(outputs_of(page, "kernel is free")).to_contain_text("the kernel is free: False")
    expect(view.locator("summary", has_text="item 7")).to_be_visible(timeout=20_000)
    expect(view.get_by_role("progressbar").first).to_be_visible()
    shoot(page, tmp_path, "live.png")
    stays_as_the_reader_left_it(page, view)
    (lab.folder / "seen").touch()

    # When it is over, I expect plain HTML in its place, with the error, and no foreign markup
    expect(view).to_have_count(0, timeout=30_000)
    picture = outputs_of(page, "q.map(slow").last
    expect(picture).to_contain_text("39 of 40 done · 1 failed")
    expect(picture).to_contain_text("seven is <i>no</i> good")
    shoot(page, tmp_path, "over.png")

    # When it has failed, I expect the live page to offer another try, with the view it had
    expect(picture).to_contain_text("job.retry_failed() runs it again")
    expect(picture).to_have_count(1)  # what was printed is folded in, not repeated below
    page.get_by_role("button", name="Retry failed").click()
    expect(view).to_be_visible(timeout=20_000)
    (lab.folder / "seen again").touch()
    expect(view).to_have_count(0, timeout=30_000)
    expect(picture).to_contain_text("39 of 40 done · 1 failed")
    expect(page.get_by_role("button", name="Retry failed")).to_be_visible()

    # When a cell is blocked, I expect the button to work
    run_cell(page, 3)
    expect(view).to_be_visible(timeout=20_000)
    view.get_by_role("button", name="Cancel").click()
    expect(outputs_of(page, "endless.wait").last).to_contain_text("over", timeout=30_000)

    # When the notebook is saved, I expect its file to hold the picture and no widget
    save(page)
    saved = lab.folder / notebook
    outputs = nbformat.read(saved, as_version=4).cells[1].outputs
    assert [set(output.data) for output in outputs if "data" in output] == [
        {"text/html", "text/plain"}
    ]


AWAY = f"""\
{UNTIL}
from nbstreamq import TaskQueue
q = TaskQueue("away", workers=1)
"""


def save(page):
    page.keyboard.press("Control+s")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')", timeout=20_000)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_reloaded_page_gets_the_html_too(lab, page):
    sources = [AWAY, *(f"job = q.map(until, [{name!r}])\njob" for name in ("one", "two"))]
    write_notebook(lab, "away.ipynb", sources)
    open_notebook(page, lab, "away.ipynb")
    run_cell(page, 0)
    expect(page.locator(".jp-InputPrompt").first).to_have_text("[1]:", timeout=60_000)
    view = page.locator(VIEW)

    # When I reload the page while a job runs, I expect the view to go on, and its HTML at the end
    run_cell(page, 1)
    expect(view).to_contain_text("1 running", timeout=20_000)
    save(page)
    page.reload()
    expect(view).to_contain_text("0 of 1 done", timeout=60_000)
    (lab.folder / "one").touch()
    expect(outputs_of(page, "'one'")).to_contain_text("1 of 1 done", timeout=20_000)
    expect(view).to_have_count(0)

    # When no page is open as it ends, I expect the next page to show the HTML
    run_cell(page, 2)
    expect(view).to_contain_text("1 running", timeout=20_000)
    save(page)
    page.goto("about:blank")
    (lab.folder / "two").touch()
    open_notebook(page, lab, "away.ipynb")
    expect(outputs_of(page, "'two'")).to_contain_text("1 of 1 done", timeout=20_000)
    expect(view).to_have_count(0)

    # When I save it, I expect its file to hold pictures and no widgets
    save(page)
    cells = nbformat.read(lab.folder / "away.ipynb", as_version=4).cells
    assert [set(output.data) for cell in cells for output in cell.outputs] == [
        {"text/html", "text/plain"}
    ] * 2


MAKE = """\
import time, nbstreamq
q = nbstreamq.TaskQueue("shared", workers=1)
def work(x):
    time.sleep(0.1)
    if x == 3:
        raise ValueError("three")
    return x
job = q.map(work, range(5000), name="sweep")  # longer than a browser may take to open
job[0].result()
"""
ATTACH = """\
%load_ext nbstreamq
%queue shared
%attach sweep
"""


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_another_kernel_sees_the_same_job_and_may_act_on_it(lab, page, tmp_path):
    sources = {"make": [MAKE, "q  # now", "len(q.workers()), job.done()"], "watch": [ATTACH]}
    for name, cells in sources.items():
        write_notebook(lab, f"{name}.ipynb", cells)
    open_notebook(page, lab, "make.ipynb")
    run_cell(page, 0)
    expect(page.locator(".jp-InputPrompt").first).to_have_text("[1]:", timeout=60_000)

    # When a queue is a cell's last expression, I expect to see what it does, from second to second
    run_cell(page, 1)
    queue = outputs_of(page, "# now").last
    expect(queue).to_contain_text("messages a second", timeout=20_000)
    expect(queue).to_contain_text("1 worker, 1 busy", timeout=20_000)
    expect(queue).to_contain_text("sweep")
    shoot(page, tmp_path, "queue.png")

    watching = page.context.browser.new_page()
    watching.bring_to_front()
    open_notebook(watching, lab, "watch.ipynb")
    run_cell(watching, 0)
    view = watching.locator(VIEW)
    expect(view).to_contain_text("of 5,000 done", timeout=60_000)
    expect(view.locator("summary", has_text="item 3: ValueError: three")).to_be_visible()
    # Its queue starts as many workers as there are cores, beside the one of the other kernel
    cores = n_cores()
    expect(view).to_contain_text(f"of {cores + 1} workers busy", timeout=20_000)
    view.get_by_role("button", name="Add worker").click()
    expect(view).to_contain_text(f"of {cores + 2} workers busy", timeout=20_000)
    shoot(watching, tmp_path, "attached.png")
    view.get_by_role("button", name="Retry failed").click()
    expect(view.locator("summary", has_text="item 3")).to_have_count(0)

    view.get_by_role("button", name="Cancel").click()
    expect(view).to_have_count(0, timeout=30_000)
    expect(outputs_of(watching, "attach sweep").last).to_contain_text("cancelled")
    page.bring_to_front()
    run_cell(page, 2)
    expect(outputs_of(page, "job.done()").last).to_contain_text(f"({cores + 2}, True)")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_view_says_that_its_kernel_was_restarted(lab, page, tmp_path):
    make = MAKE.replace('"shared"', '"restarted"')
    write_notebook(lab, "restart.ipynb", [make, "q.attach('sweep')"])
    open_notebook(page, lab, "restart.ipynb")
    run_cell(page, 0)
    run_cell(page, 1)
    view = page.locator(VIEW)
    expect(view).to_contain_text("of 5,000 done", timeout=60_000)
    expect(view.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(view.get_by_text("The kernel has ended")).to_be_hidden()

    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator(".lm-Menu-item", has_text="Restart Kernel").first.click()
    page.locator(".jp-Dialog .jp-mod-accept").click()

    expect(view.get_by_text("The kernel has ended")).to_be_visible(timeout=30_000)
    expect(view.get_by_role("button", name="Cancel")).to_be_disabled()
    shoot(page, tmp_path, "restarted.png")

    run_cell(page, 0)
    run_cell(page, 1)
    expect(view.get_by_role("button", name="Cancel")).to_be_enabled(timeout=30_000)
    view.get_by_role("button", name="Cancel").click()
    expect(view).to_have_count(0, timeout=30_000)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_view_says_that_its_kernel_has_died(lab, page, tmp_path):
    slow = AWAY + "import time\nq.map(time.sleep, [0.2] * 5 + [600] * 2, chunksize=1)"
    write_notebook(lab, "died.ipynb", [slow, "import os; os.kill(os.getpid(), 9)"])
    open_notebook(page, lab, "died.ipynb")
    run_cell(page, 0)
    view = page.locator(VIEW)
    expect(view).to_contain_text("5 of 7 done", timeout=60_000)
    view.get_by_role("button", name="Cancel").focus()
    run_cell(page, 1)
    expect(view.get_by_text("The kernel has ended")).to_be_visible(timeout=30_000)
    for button in view.get_by_role("button").all():
        expect(button).to_be_disabled()
    expect(view.locator("figcaption")).not_to_contain_text("left")
    expect(view.locator("figcaption")).not_to_contain_text("busy")
    shoot(page, tmp_path, "died.png")


FAILING = """\
import os, nbstreamq
q = nbstreamq.TaskQueue("failing", workers=1)
def invert(x):
    return 1 / (x or os.path.exists("fixed"))
"""


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_restarted_kernel_runs_again_what_failed_before(lab, page):
    cells = [FAILING, "q.map(invert, [1, 0], name='inverses')", "q.attach('inverses')"]
    write_notebook(lab, "again.ipynb", cells)
    open_notebook(page, lab, "again.ipynb")
    run_cell(page, 0)
    run_cell(page, 1)
    expect(page.get_by_role("button", name="Retry failed")).to_have_count(1, timeout=60_000)
    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator(".lm-Menu-item", has_text="Restart Kernel").first.click()
    page.locator(".jp-Dialog .jp-mod-accept").click()

    # When a new kernel shows the job, I expect its button to run the call again
    run_cell(page, 0)
    run_cell(page, 2)
    attached = outputs_of(page, "q.attach")
    (lab.folder / "fixed").touch()
    attached.get_by_role("button", name="Retry failed").click(timeout=60_000)
    expect(attached.last).to_contain_text("2 of 2 done", timeout=30_000)


# -- the notebooks ------------------------------------------------------------------------------

#: In the view of every job.
SUMMARY = re.compile(r"of [\d,]+ done")
QUICKSTART = Path(__file__).parents[2] / "notebooks" / "01-quickstart.ipynb"


def save_without_outputs(path: Path) -> None:
    notebook = nbformat.read(QUICKSTART, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(500)
def test_the_quickstart_runs_in_jupyterlab(lab, page, tmp_path):
    save_without_outputs(lab.folder / QUICKSTART.name)
    open_notebook(page, lab, QUICKSTART.name)
    assert page.locator(".jp-OutputArea-output").count() == 0

    run_all_cells(page)

    search = outputs_of(page, "scores = job.result()").first
    expect(search).to_contain_text("240 settings on")
    expect(search).to_contain_text("times as fast as the plain loop")
    expect(outputs_of(page, "table = results.pivot").locator("img")).to_be_visible()
    fitted = outputs_of(page, "model = fit(best)")
    expect(fitted.filter(has_text="[fit 0] learning from").first).to_be_attached()
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.count() == 0, errors.all_inner_texts()
    search.scroll_into_view_if_needed()
    shoot(page, tmp_path, "quickstart.png")


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_saved_notebooks_show_their_outputs_without_a_kernel(lab, page):
    for path in sorted(QUICKSTART.parent.glob("*.ipynb")):
        shutil.copy(path, lab.folder)
        cells = nbformat.read(path, as_version=4).cells
        saved = [o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs]
        open_notebook(page, lab, path.name)
        n_jobs = sum(bool(SUMMARY.search(data.get("text/html", ""))) for data in saved)
        shown = page.locator(f"{PANEL} .jp-OutputArea-output")
        expect(shown.locator("img")).to_have_count(sum("image/png" in data for data in saved))
        # A notebook that is not trusted keeps little more than the text.
        expect(shown.filter(has_text=SUMMARY)).to_have_count(n_jobs)
        for complaint in ("model not found", "Loading widget", "Error displaying"):
            assert page.get_by_text(complaint).count() == 0
