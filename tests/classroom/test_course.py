"""The round trip through nbgrader in a temporary course: all points for the solution, none for the starter."""
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbgrader.api import Gradebook

from labkernels.classroom.course import make_course
from labkernels.classroom.execute import cpu_environment
from labkernels.classroom.source import BookError


@pytest.fixture(autouse=True)
def activated(monkeypatch):
    """nbgrader starts `alembic` by its bare name, which an activated environment would find."""
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))


def nbgrader(course, *arguments):
    """Run nbgrader's own command in the course; its output if it succeeds."""
    result = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=course, env=cpu_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def submit(course, student, notebook):
    folder = course / "submitted" / student / notebook.stem
    folder.mkdir(parents=True)
    shutil.copy(notebook, folder)


def scores(course, assignment):
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        submissions = gradebook.assignment_submissions(assignment)
        assert not any(submission.needs_manual_grade for submission in submissions)
        return {submission.student.id: (submission.score, submission.max_score) for submission in submissions}


def test_all_points_for_the_solution_and_none_for_the_starter(made_once, tmp_path):
    course = tmp_path / "course"
    assert make_course(course, made_once.root) == ["01_small"]
    nbgrader(course, "generate_assignment", "01_small")
    released = course / "release" / "01_small" / "01_small.ipynb"
    assert [cell.source for cell in nbformat.read(released, 4).cells] == [cell.source for cell in nbformat.read(made_once.student, 4).cells]
    submit(course, "solved", made_once.worked)
    submit(course, "blank", released)
    submit(course, "from_the_book", made_once.student)
    nbgrader(course, "autograde", "01_small")
    assert scores(course, "01_small") == {"solved": (2, 2), "blank": (0, 2), "from_the_book": (0, 2)}


def test_nbgrader_validate_passes_on_the_worked_lab_and_fails_on_the_starter(made_once):
    assert "Success! Your notebook passes all the tests." in nbgrader(made_once.root, "validate", str(made_once.worked))
    assert "VALIDATION FAILED ON 1 CELL(S)!" in nbgrader(made_once.root, "validate", str(made_once.student))


def test_a_course_is_not_put_over_something_else_nor_made_of_labs_that_were_not_made(made_once, small_lab, tmp_path):
    with pytest.raises(BookError, match="01_small.ipynb is missing; `labkernels book` makes it"):
        make_course(tmp_path / "course", small_lab.root)
    assert not os.path.exists(tmp_path / "course")
    with pytest.raises(BookError, match="is not empty"):
        make_course(made_once.root, made_once.root)
