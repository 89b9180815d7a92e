"""What a person does in JupyterLab, and sees there."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

#: Milliseconds that JupyterLab has to show the notebook, and to run it.
LOAD_MS, RUN_MS = 60_000, 300_000
#: The notebook that is seen, of those that are open.
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def open_notebook(page: Page, lab: Any, name: str) -> None:
    # In a workspace of its own, no other notebook is opened again.
    workspace = name.partition(".")[0]
    page.goto(f"{lab.url}/lab/workspaces/{workspace}/tree/{name}?token={lab.token}")
    page.locator(f"{PANEL} .jp-CodeCell").first.wait_for(timeout=LOAD_MS)
    # The toolbar says idle even before there is a kernel; then a dialog would ask for one.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=LOAD_MS)


def run_all_cells(page: Page) -> None:
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    n_cells = page.locator(".jp-Notebook .jp-CodeCell").count()
    last = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").last
    expect(last).to_have_text(f"[{n_cells}]:", timeout=RUN_MS)


def outputs_of(page: Page, source: str) -> Any:
    """Return what stands below the cell that holds `source`."""
    cell = page.locator(f"{PANEL} .jp-CodeCell", has_text=source).first
    return cell.locator(".jp-OutputArea-output")
