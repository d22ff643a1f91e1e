"""A lab's source becomes a notebook: short headers are expanded, ids are stable, mistakes of the author are named with their line."""
from pathlib import Path

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator

from labkernels.classroom.exercises import find_exercises
from labkernels.classroom.source import BookError, read_source

SAMPLE = Path(__file__).with_name("sample_lab.py")

OPENING = """\
# %% [markdown]
# # Title

# %% tags=["parameters"] again={"seed": 7}
seed = 0
"""


def read(tmp_path, text, opening=OPENING):
    path = tmp_path / "07_made_up.py"
    path.write_text(opening + text)
    return read_source(path)


def test_the_sample_is_a_valid_notebook_for_jupyter_and_nbgrader():
    notebook = read_source(SAMPLE)
    nbformat.validate(notebook)
    MetadataValidator().validate_nb(notebook)


def test_a_short_header_becomes_full_nbgrader_metadata():
    by_id = {cell.id: cell.metadata.get("nbgrader") for cell in read_source(SAMPLE).cells}
    common = {"schema_version": 3, "task": False, "cell_type": "code"}
    assert by_id["double-kernel"] == common | {"grade": False, "solution": True, "locked": False, "grade_id": "double-kernel"}
    assert by_id["test-double-kernel"] == common | {
        "grade": True, "solution": False, "locked": True, "grade_id": "test-double-kernel", "points": 3,
    }  # fmt: skip


def test_exercises_are_found_with_their_language_and_points():
    found = {e.name: (e.language, e.points, e.prediction, e.wrong_answers_needed) for e in find_exercises("sample", read_source(SAMPLE))}
    assert found == {
        "predict-bytes": ("python", 1, True, 1),
        "double-python": ("python", 2, False, 2),
        "double-kernel": ("c++", 3, False, 2),
    }


def test_cpp_and_magics_arrive_as_they_stand(tmp_path):
    cell = "%%cuda --name f\n#define N 3\n// it's\n#if 0\n#endif\nchar c = '\"';"
    notebook = read(tmp_path, f"\n# %%\n{cell}\n\n# %%\n%bench softmax\n# %matplotlib inline\n")
    assert notebook.cells[2].source == cell
    assert notebook.cells[3].source == "%bench softmax\n# %matplotlib inline"


def test_editing_one_cell_changes_no_other_cell_id(tmp_path):
    before = [cell.id for cell in read(tmp_path, "\n# %%\na = 1\n\n# %%\nb = 1\n\n# %%\nb = 1\n").cells]
    after = [cell.id for cell in read(tmp_path, "\n# %%\na = 2\n\n# %%\nb = 1\n\n# %%\nb = 1\n").cells]
    assert len(set(before)) == len(before)
    assert before[:2] + before[3:] == after[:2] + after[3:] and before[2] != after[2]


@pytest.mark.parametrize(
    "text, message",
    [
        ('\n# %% answer="x"\na = 1\n', "07_made_up, line 7: 'answer' is not known in a cell header"),
        ('\n# %% tests="x"\na = 1\n', "line 7: x: a tests cell needs points"),
        ('\n# %% solution="x" points=1\na = 1\n', "points belong to the tests cell"),
        ('\n# %% solution="x" tests="x" points=1\na = 1\n', "write two cells"),
        ('\n# %% solution="x y"\na = 1\n', "exercise name 'x y'"),
        ("\n# %%\npoints = '''\n\n# %%\nb = 1\n", "4 lines begin a cell"),
        ('\n# %% [markdown] solution="x"\n# text\n', "only code cells are graded"),
    ],
)
def test_a_header_that_means_nothing_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(BookError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "opening, message",
    [
        ("# %%\na = 1\n", "first cell must be Markdown"),
        ("# %% [markdown]\n# # Title\n\n# %%\na = 1\n", "first code cell must be tagged"),
        ('# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\na = 1\n', "needs other values"),
        ('# %% [markdown]\n# # Title\n\n# %% tags=["parameters"] again={"b": 1}\na = 1\n', "again names b"),
        ('# %% [markdown]\n# # Title\n\n# %% tags=["parameters"] again={"a": 1}\nimport os\n', "only assign plain values"),
    ],
)
def test_a_lab_opens_with_its_title_and_parameters(tmp_path, opening, message):
    with pytest.raises(BookError, match=message):
        read(tmp_path, "", opening)


@pytest.mark.parametrize(
    "text, message",
    [
        ('\n# %% solution="x"\n### BEGIN SOLUTION\na = 1\n### END SOLUTION\n', "x has no tests cell"),
        ('\n# %% tests="x" points=1\nassert a\n', "tests of x have no solution cell above"),
        ('\n# %% solution="x"\na = 1\n\n# %% tests="x" points=1\nassert a\n', "exercise x: no answer between"),
        ('\n# %% solution="x"\n### BEGIN SOLUTION\na = 1\n\n# %% tests="x" points=1\nassert a\n', "exercise x: .* do not pair up"),
        ("\n# %%\n### BEGIN SOLUTION\na = 1\n### END SOLUTION\n", 'has an answer in it but no solution="..."'),
    ],
)
def test_an_exercise_is_a_solution_with_an_answer_and_its_tests(tmp_path, text, message):
    with pytest.raises(BookError, match=message):
        find_exercises("07_made_up", read(tmp_path, text))
