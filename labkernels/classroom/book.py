"""The book: which labs there are, making their two notebooks, and checking that what is made agrees with the sources."""
from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkernels.classroom.execute import PACKAGE, execute_and_tidy
from labkernels.classroom.exercises import find_exercises
from labkernels.classroom.source import BookError, digest, read_source
from labkernels.classroom.student import student_edition


@dataclass(frozen=True)
class Lab:
    """One lab of the book whose root folder is `root`; `name` is like "02_reductions_and_softmax"."""

    root: Path
    name: str

    @property
    def source(self) -> Path:
        return self.root / "solutions" / f"{self.name}.py"

    @property
    def worked(self) -> Path:
        return self.root / "solutions" / f"{self.name}.ipynb"

    @property
    def student(self) -> Path:
        return self.root / "notebooks" / f"{self.name}.ipynb"


def find_labs(root: Path, chosen: list[str] | None = None) -> list[Lab]:
    """The labs under `root`, in order; `chosen` are numbers ("02") or names. Raises BookError if there is none of such a name."""
    names = sorted(path.stem for path in (root / "solutions").glob("[0-9][0-9]_*.py"))
    if not names:
        raise BookError(f"no labs in {root / 'solutions'}: run this in the folder that holds solutions/")
    for choice in chosen or []:
        if not any(choice in (name, name[:2]) for name in names):
            raise BookError(f"no lab {choice!r}; there are {', '.join(names)}")
    return [Lab(root, name) for name in names if not chosen or name in chosen or name[:2] in chosen]


def make(lab: Lab) -> float:
    """Execute the lab and write both notebooks; the seconds it took. Raises BookError, and writes nothing, if a cell fails."""
    start = time.monotonic()
    worked = read_lab(lab)
    execute_and_tidy(lab.name, worked, lab.source.parent)
    worked.metadata.labkernels["package"] = package_digest()
    lab.student.parent.mkdir(exist_ok=True)
    nbformat.write(worked, lab.worked)
    nbformat.write(student_edition(worked), lab.student)
    return time.monotonic() - start


def is_current(lab: Lab) -> bool:
    """Whether the lab was made from this source with this package."""
    if disagreements(lab):
        return False
    return nbformat.read(lab.worked, 4).metadata.labkernels.get("package") == package_digest()


def disagreements(lab: Lab) -> list[str]:
    """What in the made notebooks does not follow from the source, one line each; outputs are not compared, only that they are there."""
    found = []
    fresh = read_lab(lab)
    for path in (lab.worked, lab.student):
        if not path.is_file():
            found.append(f"{path.relative_to(lab.root)} is missing")
    if found:
        return found
    made = nbformat.read(lab.worked, 4)
    made.metadata.get("labkernels", {}).pop("package", None)
    found += _differences(f"solutions/{lab.name}.ipynb", fresh, made)
    if not found:
        found += _not_executed(lab, made)
    if lab.student.read_text(encoding="utf-8") != nbformat.writes(student_edition(fresh)) + "\n":
        student = nbformat.read(lab.student, 4)
        found += _differences(f"notebooks/{lab.name}.ipynb", student_edition(fresh), student) or [
            f"notebooks/{lab.name}.ipynb has outputs or was saved by hand"
        ]
    return found


def strays(root: Path) -> list[str]:
    """Notebooks in the book's folders that no source makes."""
    names = {lab.name for lab in find_labs(root)}
    made = sorted([*(root / "solutions").glob("*.ipynb"), *(root / "notebooks").glob("*.ipynb")])
    return [f"{path.relative_to(root)} has no solutions/{path.stem}.py" for path in made if path.stem not in names]


def read_lab(lab: Lab) -> NotebookNode:
    """The lab's source as a notebook, its exercises checked."""
    notebook = read_source(lab.source)
    find_exercises(lab.name, notebook)
    return notebook


def package_digest() -> str:
    """Stands for all code and recorded figures that a lab's outputs may depend on."""
    suffixes = {".py", ".cu", ".cuh", ".h", ".csv"}
    folders = [PACKAGE, PACKAGE.parent / "data" / "measured"]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)
    return digest(b"".join(str(path.relative_to(PACKAGE.parent)).encode() + b"\0" + path.read_bytes() for path in files))


def _differences(name: str, fresh: NotebookNode, made: NotebookNode) -> list[str]:
    found = []
    if len(fresh.cells) != len(made.cells):
        found.append(f"{name} has {len(made.cells)} cells, its source {len(fresh.cells)}")
    for number, (want, got) in enumerate(zip(fresh.cells, made.cells), 1):
        for part in ("cell_type", "source", "metadata", "id"):
            if want[part] != got[part]:
                found.append(f"{name}, cell {number}: the {part.replace('_', ' ')} differs from the source")
                break
    if not found and fresh.metadata != made.metadata:
        found.append(f"{name}: the notebook's metadata differ from the source")
    return found[:5]


def _not_executed(lab: Lab, made: NotebookNode) -> list[str]:
    for number, cell in enumerate(made.cells, 1):
        if cell.cell_type == "code" and cell.execution_count is None:
            return [f"solutions/{lab.name}.ipynb, cell {number} was not executed"]
    return []
