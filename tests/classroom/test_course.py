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


def test_all_points_for_the_solution_and_none_for_the_starter(made_sample, tmp_path):
    course = tmp_path / "course"
    assert make_course(course, made_sample.root) == ["99_sample"]
    nbgrader(course, "generate_assignment", "99_sample")
    released = course / "release" / "99_sample" / "99_sample.ipynb"
    assert [cell.source for cell in nbformat.read(released, 4).cells] == [cell.source for cell in nbformat.read(made_sample.student, 4).cells]
    submit(course, "solved", made_sample.worked)
    submit(course, "blank", released)
    nbgrader(course, "autograde", "99_sample")
    assert scores(course, "99_sample") == {"solved": (6, 6), "blank": (0, 6)}


def test_nbgrader_validate_passes_on_the_worked_lab_and_fails_on_the_starter(made_once):
    shown = nbgrader(made_once.root, "validate", str(made_once.worked), str(made_once.student))
    worked, _, starter = shown.partition("Success! Your notebook passes all the tests.")
    assert "FAILED" not in worked and "VALIDATION FAILED ON 1 CELL(S)!" in starter


def test_a_course_is_not_put_over_something_else_nor_made_of_labs_that_were_not_made(made_once, small_lab, tmp_path):
    with pytest.raises(BookError, match="01_small.ipynb is missing; `labkernels book` makes it"):
        make_course(tmp_path / "course", small_lab.root)
    assert not os.path.exists(tmp_path / "course")
    with pytest.raises(BookError, match="is not empty"):
        make_course(made_once.root, made_once.root)
