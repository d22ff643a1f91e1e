"""The student edition: answers are gone, what is around them stays, C++ stubs are C++, tests are locked."""
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_output
from nbgrader.preprocessors import ClearSolutions
from nbgrader.utils import compute_checksum

from labkernels.classroom.source import read_source
from labkernels.classroom.student import student_edition
from labkernels.classroom.stubs import ClearLabSolutions, stub_for

SAMPLE = Path(__file__).with_name("sample_lab.py")


@pytest.fixture
def student():
    worked = read_source(SAMPLE)
    for cell in worked.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [new_output("stream", name="stdout", text="an output")], 3
    return {cell.id: cell for cell in student_edition(worked).cells}


def test_no_answer_and_no_output_is_left(student):
    for cell in student.values():
        assert "SOLUTION" not in cell.source
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert "4 * count, 4 * count" in "".join(cell.source for cell in student.values())    # given cells stay


def test_a_cpp_stub_is_cpp_and_keeps_what_is_given(student):
    lines = student["double-kernel"].source.splitlines()
    assert lines[0] == "%%cuda --name twice -D FACTOR=2"
    assert lines[-3:] == ["    // YOUR CODE HERE", "    #error Your turn: replace these two lines with your code.", "}"]
    assert "raise" not in student["double-kernel"].source


def test_a_python_stub_raises_and_a_prediction_keeps_its_none(student):
    assert student["double-python"].source.splitlines()[-2:] == [
        "    # YOUR CODE HERE",
        '    raise NotImplementedError("Your turn: replace these two lines with your code.")',
    ]
    assert student["predict-bytes"].source == "bytes_read = bytes_written = None\n# YOUR CODE HERE"


@pytest.mark.parametrize(
    "before, comment_only",
    [("a = None\n", True), ("a = b = None   # bytes\n", True), ("    a = None\n", False), ("a = 3\n", False), ("a = None\nb = 2\n", True), ("", False)],
)
def test_only_a_name_given_as_none_at_the_same_indentation_spares_the_raise(before, comment_only):
    stub = stub_for(f"{before}### BEGIN SOLUTION\na = 1\n### END SOLUTION")
    assert ("raise" not in stub) == comment_only


def test_tests_cells_are_locked_and_signed(student):
    for name in ("test-predict-bytes", "test-double-python", "test-double-kernel"):
        cell = student[name]
        assert cell.metadata.editable is False and cell.metadata.deletable is False
        assert cell.metadata.nbgrader.checksum == compute_checksum(cell)


def test_nbgraders_own_preprocessor_would_have_put_python_into_cpp():
    cell = new_code_cell("%%cuda\n// BEGIN SOLUTION\nint a;\n// END SOLUTION", metadata={"nbgrader": {"solution": True}})
    theirs, _ = ClearSolutions().preprocess_cell(cell.copy(), {"language": "python"}, 0)
    ours, _ = ClearLabSolutions().preprocess_cell(cell.copy(), {"language": "python"}, 0)
    assert "raise NotImplementedError" in theirs.source
    assert "raise" not in ours.source and "#error" in ours.source


def test_an_answer_without_markers_leaves_the_magic():
    cell = new_code_cell("%%cuda --name f\n__global__ void f() {}", metadata={"nbgrader": {"solution": True}})
    ours, _ = ClearLabSolutions().preprocess_cell(cell, {"language": "python"}, 0)
    assert ours.source.splitlines()[:2] == ["%%cuda --name f", "// YOUR CODE HERE"]
