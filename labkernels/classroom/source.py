"""A lab's source, `solutions/NN_name.py`, read as a notebook.

The short headers of README.md (`solution="merge"`, `tests="merge" points=2`) become nbgrader's cell metadata here, and every
cell gets an id that stays the same while the cell does.
"""
from __future__ import annotations

import hashlib
import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from labkernels.errors import LabKernelsError

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE_INFO = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}

_MARKER = re.compile(r"^# %%(?: |$)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_KEYS = {"solution", "tests", "points", "tags", "again"}


class BookError(LabKernelsError):
    """A lab is not written as README.md asks, fails when run, or disagrees with what was made from it."""


def read_source(path: Path) -> NotebookNode:
    """The lab in `path` as a notebook without outputs, its metadata complete.

    Raises BookError, naming the lab and the line, for a header that README.md does not know.
    """
    text = path.read_text(encoding="utf-8")
    lab = path.stem
    parsed = jupytext.reads(text, fmt="py:hydrogen")
    lines = [text.count("\n", 0, marker.start()) + 1 for marker in _MARKER.finditer(text)]
    if len(lines) != len(parsed.cells):
        raise BookError(
            f"{lab}: {len(lines)} lines begin a cell with '# %%', but {len(parsed.cells)} cells were read; is there text before "
            'the first, or a triple quote (""") left open, or used in a C++ cell?'
        )
    cells, taken = [], set()
    for line, cell in zip(lines, parsed.cells):
        try:
            metadata = expand_metadata(cell)
        except BookError as error:
            raise BookError(f"{lab}, line {line}: {error}") from None
        made = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        cells.append(made(cell.source, metadata=metadata, id=_cell_id(cell, metadata, taken)))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC, "language_info": LANGUAGE_INFO})
    notebook.metadata["labkernels"] = {"source": digest(text.encode())}
    _check_opening(lab, notebook)
    return notebook


def expand_metadata(cell: NotebookNode) -> dict:
    """The cell's full metadata from the short keys in its header; raises BookError for a key or value that has no meaning."""
    short = {key: value for key, value in cell.metadata.items() if key != "lines_to_next_cell"}
    unknown = sorted(set(short) - _KEYS)
    if unknown or cell.cell_type not in ("code", "markdown"):
        raise BookError(f"{unknown[0] if unknown else cell.cell_type!r} is not known in a cell header; known are {', '.join(sorted(_KEYS))}")
    metadata: dict = {}
    if "tags" in short:
        metadata["tags"] = list(short["tags"])
    if "again" in short:
        metadata["labkernels"] = {"again": short["again"]}
    if "solution" in short or "tests" in short:
        metadata["nbgrader"] = _nbgrader(cell, short)
    elif "points" in short:
        raise BookError("points without tests: only a tests cell earns points")
    return metadata


def _nbgrader(cell: NotebookNode, short: dict) -> dict:
    if "solution" in short and "tests" in short:
        raise BookError("solution and tests in one cell: nbgrader would grade it by hand; write two cells")
    tests = "tests" in short
    name = short["tests" if tests else "solution"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BookError(f"the exercise name {name!r} may hold letters, digits, '-' and '_' only")
    if cell.cell_type != "code":
        raise BookError(f"{name}: only code cells are graded")
    if tests and not (isinstance(short.get("points"), int) and short["points"] > 0):
        raise BookError(f"{name}: a tests cell needs points, a whole number above zero")
    if not tests and "points" in short:
        raise BookError(f"{name}: the points belong to the tests cell")
    metadata = {
        "schema_version": 3,
        "grade": tests,
        "solution": not tests,
        "locked": tests,
        "task": False,
        "grade_id": f"test-{name}" if tests else name,
        "cell_type": "code",
    }
    if tests:
        metadata["points"] = short["points"]
    return metadata


def _cell_id(cell: NotebookNode, metadata: dict, taken: set[str]) -> str:
    """The grade id, or else a digest of the text, so that editing one cell changes no other cell's id."""
    base = metadata["nbgrader"]["grade_id"][:60] if "nbgrader" in metadata else digest(f"{cell.cell_type}\n{cell.source}".encode())[:8]
    cell_id, count = base, 1
    while cell_id in taken:
        count += 1
        cell_id = f"{base}-{count}"
    taken.add(cell_id)
    return cell_id


def _check_opening(lab: str, notebook: NotebookNode) -> None:
    if not notebook.cells or notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        raise BookError(f"{lab}: the first cell must be Markdown and begin with the title, '# ...'")
    first = next((cell for cell in notebook.cells if cell.cell_type == "code"), None)
    if first is None or "parameters" not in first.metadata.get("tags", []):
        raise BookError(f'{lab}: the first code cell must be tagged: # %% tags=["parameters"] again={{"seed": 7}}')
    again = first.metadata.get("labkernels", {}).get("again")
    if not isinstance(again, dict) or not again:
        raise BookError(f'{lab}: the parameters cell needs other values to be run with again: again={{"seed": 7, ...}}')
    values: dict = {}
    try:
        exec(compile(first.source, lab, "exec"), {"__builtins__": {}}, values)
    except Exception as error:
        raise BookError(f"{lab}: the parameters cell may only assign plain values: {error}") from None
    missing = sorted(set(again) - set(values))
    if missing:
        raise BookError(f"{lab}: again names {missing[0]}, which the parameters cell does not assign")


def digest(data: bytes) -> str:
    """16 hexadecimal digits that stand for `data`."""
    return hashlib.sha256(data).hexdigest()[:16]
