"""A student's first hour, in a real browser: run lab 01, meet the first blank, solve one after the other, see them pass and draw."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.browser.jupyterlab_page import NotebookPage, chromium_page
from tests.lab_server import lab_server

ROOT = Path(__file__).parents[2]
LAB = "01_threads_and_memory.ipynb"
ARTEFACTS = ROOT / "build" / "browser"


def exercises(notebook: Path) -> dict[str, tuple[int, str]]:
    """The cells that a student fills in: grade id -> (index, source), in the order of the notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = {}
    for index, cell in enumerate(cells):
        marks = cell["metadata"].get("nbgrader", {})
        if cell["cell_type"] == "code" and marks.get("solution"):
            found[marks["grade_id"]] = (index, "".join(cell["source"]))
    return found


@pytest.fixture
def lab(tmp_path):
    """Lab 01 of the student edition, open in JupyterLab; a screenshot is taken at the end, however it ended."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    server = lab_server(tmp_path / "home", ARTEFACTS / "jupyterlab.log", f"BOOK={tmp_path / 'notebooks'}",
                        flags="--LabApp.expose_app_in_browser=True")
    with server as jupyter, chromium_page() as page:
        try:
            yield NotebookPage(page, jupyter.address(f"lab/tree/{LAB}"))
        finally:
            page.screenshot(path=ARTEFACTS / "lab.png")


def test_a_blank_exercise_fails_and_typed_solutions_pass_and_draw(lab):
    blanks, answers = exercises(ROOT / "notebooks" / LAB), exercises(ROOT / "solutions" / LAB)
    assert blanks and list(blanks) == list(answers)
    starts = [index for index, _ in blanks.values()]
    ends = [*starts[1:], len(lab.cells())]

    cells = lab.run_all()
    failed = [index for index, cell in enumerate(cells) if cell.error]
    assert failed, "every blank exercise passed"
    assert starts[0] <= failed[0] < ends[0], f"not the first exercise but cell {failed[0]} failed: {cells[failed[0]]}"
    assert cells[failed[0]].shown.strip(), "the failure is not shown"

    drawn = []
    for grade_id, start, end in zip(blanks, starts, ends):
        assert blanks[grade_id][1] != answers[grade_id][1], f"{grade_id}: the student edition holds the answer"
        lab.type_into(start, answers[grade_id][1])
        solved = lab.run_from(start)[start:end]
        assert [cell.error for cell in solved if cell.error] == [], f"{grade_id}: the solution did not pass"
        assert all("[ ]" not in cell.prompt for cell in solved), f"{grade_id}: a cell below it did not run"
        drawn += [start for cell in solved if cell.pictures]
    assert drawn, "no solved exercise drew a picture"
    lab.page.locator(".jp-Notebook .jp-Cell").nth(drawn[0]).scroll_into_view_if_needed()
