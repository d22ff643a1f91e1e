"""Making the book: what is made is reproducible and agrees with its source; a lab that breaks stops it, named with its cell."""
import shutil

import nbformat
import pytest

from labkernels.classroom.book import disagreements, find_labs, is_current, make, strays
from labkernels.classroom.source import BookError


@pytest.fixture
def made(small_lab, made_once):
    shutil.copytree(made_once.root, small_lab.root, dirs_exist_ok=True)
    return small_lab


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_making_twice_gives_the_same_bytes_without_paths_or_addresses(made):
    first = made.worked.read_bytes(), made.student.read_bytes()
    make(made)
    assert (made.worked.read_bytes(), made.student.read_bytes()) == first
    assert str(made.root) not in made.worked.read_text()
    printed = nbformat.read(made.worked, 4).cells[-1].outputs[0].text
    assert printed == "<object object at 0x...> solutions\n"


def test_worked_notebook_has_outputs_and_student_edition_neither_outputs_nor_answers(made):
    worked, student = nbformat.read(made.worked, 4), nbformat.read(made.student, 4)
    assert all(cell.execution_count for cell in worked.cells if cell.cell_type == "code")
    assert all(cell.execution_count is None and not cell.outputs for cell in student.cells if cell.cell_type == "code")
    assert "return 3 * x" in worked.cells[2].source and "return 3 * x" not in student.cells[2].source
    assert [cell.id for cell in worked.cells] == [cell.id for cell in student.cells]
    assert not any("execution" in cell.metadata for cell in worked.cells)


def test_a_made_lab_is_current_until_its_source_changes(made):
    assert is_current(made) and disagreements(made) == []
    edit(made.source, "return 3 * x", "return x * 3")
    assert not is_current(made)
    assert any("solutions/01_small.ipynb, cell 3: the source differs" in line for line in disagreements(made))


@pytest.mark.parametrize("which", ["worked", "student"])
def test_a_made_notebook_that_was_edited_or_lost_is_found(made, which):
    path = getattr(made, which)
    edit(path, "# A small lab", "# A lab")
    assert any(f"{path.parent.name}/01_small.ipynb, cell 1: the source differs" in line for line in disagreements(made))
    path.unlink()
    assert disagreements(made) == [f"{path.parent.name}/01_small.ipynb is missing"]


def test_a_student_edition_saved_with_outputs_is_found(made):
    student = nbformat.read(made.student, 4)
    student.cells[1].execution_count = 1
    nbformat.write(student, made.student)
    assert disagreements(made) == ["notebooks/01_small.ipynb has outputs or was saved by hand"]


def test_a_worked_notebook_without_outputs_is_found(made):
    worked = nbformat.read(made.worked, 4)
    worked.cells[3].execution_count = None
    nbformat.write(worked, made.worked)
    assert disagreements(made) == ["solutions/01_small.ipynb, cell 4 was not executed"]


def test_a_notebook_without_a_source_is_found(made):
    (made.root / "notebooks" / "08_old.ipynb").write_text("{}")
    assert strays(made.root) == ["notebooks/08_old.ipynb has no solutions/08_old.py"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("1 / 0", "01_small, cell 4 .*: ZeroDivisionError: division by zero"),
        ("import sys; print('hm', file=sys.stderr)", "01_small, cell 4 .*: it writes to stderr: hm"),
        ("import os; os._exit(1)", "01_small, cell 4 .*: DeadKernelError"),
    ],
)
def test_a_lab_that_breaks_is_named_with_its_cell_and_nothing_is_written(small_lab, line, message):
    edit(small_lab.source, "given = [", f"{line}\ngiven = [")
    with pytest.raises(BookError, match=message):
        make(small_lab)
    assert not small_lab.worked.exists() and not small_lab.student.exists()


def test_labs_are_chosen_by_number_or_name(small_lab):
    assert [lab.name for lab in find_labs(small_lab.root, ["01"])] == ["01_small"] == [lab.name for lab in find_labs(small_lab.root)]
    with pytest.raises(BookError, match="no lab '02'; there are 01_small"):
        find_labs(small_lab.root, ["02"])
