"""`make lab` serves the student's notebooks."""
from __future__ import annotations

import nbformat

from tests.lab_server import ROOT, lab_server


def test_make_lab_serves_every_notebook_of_the_student_edition(tmp_path):
    with lab_server(tmp_path / "home", tmp_path / "jupyterlab.log") as server:
        served = {entry["name"] for entry in server.get("api/contents/")["content"]}
        assert served >= {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} != set()
        cells = server.get("api/contents/00_start_here.ipynb")["content"]["cells"]
    on_disk = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    assert [cell["source"] for cell in cells] == [cell.source for cell in on_disk.cells]
