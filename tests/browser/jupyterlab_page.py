"""A notebook as a student sees it: JupyterLab in headless Chromium, whose profile is new each time."""
from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync"]
# Asked of JupyterLab's own notebook (see expose_app_in_browser): in the page, an error and a warning look alike.
KERNEL_ANSWERED = """async () => {
    const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
    await context?.ready;
    return Boolean(await context?.session?.kernel?.info);
}"""
CELLS_IN_PAGE = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => {
    const outputs = cell.model.outputs?.toJSON() ?? [];
    const error = outputs.find(output => output.output_type === 'error');
    const images = [...cell.node.querySelectorAll('.jp-OutputArea img')];
    return {
        prompt: cell.node.querySelector('.jp-InputPrompt')?.textContent ?? '',
        error: error ? `${error.ename}: ${error.evalue}` : null,
        shown: cell.node.querySelector('.jp-OutputArea')?.innerText ?? '',
        pictures: images.filter(image => image.complete && image.naturalWidth > 50).length,
    };
})"""


@contextlib.contextmanager
def chromium_page() -> Iterator[Page]:
    """A page of a headless Chromium with an empty profile."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        raise RuntimeError(f"the browser test needs one of {', '.join(names)} on PATH (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        try:
            yield browser.new_page(viewport={"width": 1280, "height": 1600})
        finally:
            browser.close()


@dataclass(frozen=True)
class CellState:
    prompt: str              # "[3]:", "[*]:" while it runs, "[ ]:" before; "" for a text cell
    error: str | None        # the exception that ended it
    shown: str               # the text that the reader sees under it
    pictures: int            # images that loaded


class NotebookPage:
    """A notebook open in JupyterLab. Cells are numbered from 0, as in the notebook's file."""

    def __init__(self, page: Page, address: str, limit_s: float = 180) -> None:
        self.page = page
        self.limit_s = limit_s
        page.set_default_timeout(30_000)
        page.goto(address)
        self.cell_nodes = page.locator(".jp-Notebook .jp-Cell")
        self.cell_nodes.first.wait_for()
        self.kernel = page.locator(".jp-Notebook-ExecutionIndicator")
        page.wait_for_function(KERNEL_ANSWERED, timeout=60_000)       # before that, "Run" does nothing
        expect(self.kernel).to_have_attribute("data-status", "idle", timeout=60_000)

    def cells(self) -> list[CellState]:
        return [CellState(**cell) for cell in self.page.evaluate(CELLS_IN_PAGE)]

    def run_all(self) -> list[CellState]:
        """Choose Run > Run All Cells, wait until nothing runs, and give every cell's state."""
        first = next(i for i, cell in enumerate(self.cells()) if cell.prompt)
        return self._run("Run All Cells", first)

    def run_from(self, index: int) -> list[CellState]:
        """Choose Run > Run Selected Cell and All Below with the cursor in cell `index`, and wait as `run_all`."""
        self._editor(index).click()
        return self._run("Run Selected Cell and All Below", index)

    def type_into(self, index: int, source: str) -> None:
        """Replace the text of code cell `index`, as pasting over a selection does."""
        self._editor(index).click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)

    def _editor(self, index: int):
        return self.cell_nodes.nth(index).locator(".cm-content")

    def _run(self, menu_item: str, first: int) -> list[CellState]:
        before = self.cells()[first].prompt
        self.page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(re.compile(f"^{menu_item}$")).click()
        end = time.monotonic() + self.limit_s
        while time.monotonic() < end:
            cells = self.cells()
            started = cells[first].prompt != before
            running = any("*" in cell.prompt for cell in cells) or self.kernel.get_attribute("data-status") != "idle"
            if started and not running:
                time.sleep(0.5)              # the last output is drawn a moment after the kernel is idle
                return self.cells()
            time.sleep(0.1)
        raise TimeoutError(f"{menu_item}: still running after {self.limit_s} s; prompts {[c.prompt for c in cells]}")
