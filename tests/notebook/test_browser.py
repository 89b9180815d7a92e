"""The quickstart as a person sees it: a real JupyterLab, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from tests.notebook.pages import open_notebook, outputs_of, run_all_cells

#: In the view of every job.
JOB = re.compile(r"of [\d,]+ done")
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01-quickstart.ipynb"


def save_without_outputs(path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


@pytest.mark.browser
@pytest.mark.timeout(500)
def test_the_quickstart_runs_in_jupyterlab(lab, page, tmp_path):
    save_without_outputs(lab.folder / NOTEBOOK.name)
    open_notebook(page, lab, NOTEBOOK.name)
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
    screenshot = Path(os.environ.get("NBSTREAMQ_TEST_SCREENSHOTS", tmp_path)) / "quickstart.png"
    page.screenshot(path=screenshot)
    assert screenshot.stat().st_size > 10_000


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_saved_notebooks_show_their_outputs_without_a_kernel(lab, page):
    for path in sorted(NOTEBOOK.parent.glob("*.ipynb")):
        shutil.copy(path, lab.folder)
        cells = nbformat.read(path, as_version=4).cells
        saved = [o.get("data", {}) for c in cells if c.cell_type == "code" for o in c.outputs]
        open_notebook(page, lab, path.name)
        n_jobs = sum(bool(JOB.search(data.get("text/html", ""))) for data in saved)
        shown = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output")
        expect(shown.locator("img")).to_have_count(sum("image/png" in data for data in saved))
        # By its text: of a notebook that is not trusted, little else is left.
        expect(shown.filter(has_text=JOB)).to_have_count(n_jobs)
        for complaint in ("model not found", "Loading widget", "Error displaying"):
            assert page.get_by_text(complaint).count() == 0
