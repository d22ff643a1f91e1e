"""The proof of a lab's grading: of every exercise the solution passes, the blank starter fails, and each kept wrong answer fails
for its named reason.

All of it takes one run of one kernel. At each exercise, before the lab's own solution, the starter and the wrong answers are put
in its place one after the other, each followed by the cells up to and including the tests; then the lab goes on as written.
Nobody looks at what it shows: no picture is rendered, and nothing compiled for GPUs to report registers.
"""
from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.utils import determine_grade

from labkernels.classroom.execute import execute
from labkernels.classroom.exercises import BEGIN, Exercise, answer_regions, find_exercises
from labkernels.classroom.source import BookError
from labkernels.classroom.student import student_edition

STARTER, SOLUTION = "the blank starter", "the solution"
_QUIET = """\
from labkernels.lab import compile_report, style
compile_report.compile_report = lambda kernels: None
style.Picture._repr_html_ = lambda picture: None"""
_PROBE = 'print(__import__("labkernels.classroom.reasons", fromlist=["reasons"]).last_reason())'


@dataclass(frozen=True)
class Attempt:
    """Something put in the place of a solution cell; `reason` is the one for which it must fail, None where any will do."""

    exercise: str
    what: str
    source: str
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What the tests cell of `exercise` said about an attempt; `reason` and `message` are empty where it passed."""

    exercise: str
    what: str
    expected: str | None
    passed: bool
    reason: str
    message: str

    @property
    def complaint(self) -> str | None:
        """What is wrong with the outcome, None if it is as it must be."""
        if self.what == SOLUTION:
            return None if self.passed else f"{self.exercise}: {self.what} fails: {self.message}"
        if self.passed:
            return f"{self.exercise}: {self.what} passes the tests"
        if self.expected is not None and self.reason != self.expected:
            return f"{self.exercise}: {self.what} should fail with '{self.expected}' and fails with '{self.reason}': {self.message}"
        return None


def prove(lab: str, notebook: NotebookNode, wrong_folder: Path, folder: Path) -> list[Outcome]:
    """Run the proof; `notebook` is the lab as read from its source, `wrong_folder` holds its wrong answers.

    Raises BookError if a wrong answer belongs to no exercise, or a cell of the lab itself fails outside the tests.
    """
    exercises = find_exercises(lab, notebook)
    attempts = [*starters(notebook, exercises), *wrong_answers(wrong_folder, notebook, exercises)]
    expanded = expand(notebook, exercises, attempts)
    execute(lab, expanded, folder)
    return outcomes(expanded)


def starters(notebook: NotebookNode, exercises: list[Exercise]) -> list[Attempt]:
    """Each exercise as the student finds it."""
    blank = student_edition(notebook)
    return [Attempt(exercise.name, STARTER, blank.cells[exercise.solution].source) for exercise in exercises]


def wrong_answers(folder: Path, notebook: NotebookNode, exercises: list[Exercise]) -> list[Attempt]:
    """The wrong answers kept in `folder`, as files <exercise>__<what>.cu or .py; README.md says what they hold."""
    by_name = {exercise.name: exercise for exercise in exercises}
    attempts = []
    for path in sorted(path for path in folder.glob("*") if path.suffix in (".cu", ".py")):
        name, _, _ = path.stem.partition("__")
        if name not in by_name:
            raise BookError(f"{path.parent.name}/{path.name}: the lab has no exercise {name}")
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
        reason = re.fullmatch(r"(?://|#)\s*reason: (\w+(?: \w+)?)\s*", first)
        if not reason:
            raise BookError(f"{path.parent.name}/{path.name}: the first line must be a comment, 'reason: ...'")
        solution = notebook.cells[by_name[name].solution].source
        attempts.append(Attempt(name, path.name, _with_answer(solution, text.strip("\n"), path), reason.group(1)))
    return attempts


def expand(notebook: NotebookNode, exercises: list[Exercise], attempts: list[Attempt]) -> NotebookNode:
    """The lab with all attempts in it, each before the solution that it stands for."""
    at_solution = {exercise.solution: exercise for exercise in exercises}
    at_tests = {exercise.tests: exercise for exercise in exercises}
    cells = [nbformat.v4.new_code_cell(_QUIET)]
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if position in at_solution:
            exercise = at_solution[position]
            for attempt in attempts:
                if attempt.exercise == exercise.name:
                    cells += _attempt_cells(notebook, exercise, attempt, at_tests)
        cells.append(copy.deepcopy(cell))
        if position in at_tests:
            _mark(cells[-1], Attempt(at_tests[position].name, SOLUTION, ""))
            cells.append(nbformat.v4.new_code_cell(_PROBE))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def outcomes(expanded: NotebookNode) -> list[Outcome]:
    """What the executed tests cells of an expanded lab say."""
    found = []
    for cell, probe in zip(expanded.cells, expanded.cells[1:]):
        attempt = cell.metadata.get("labkernels", {}).get("attempt")
        if attempt is None:
            continue
        points, most = determine_grade(cell)
        error = next((output for output in cell.outputs if output.output_type == "error"), None)
        stderr = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stderr")
        reason = "".join(output.text for output in probe.outputs if output.output_type == "stream").strip() if error else ""
        message = f"{error.ename}: {error.evalue}" if error else f"it writes to stderr: {stderr.strip()}" if stderr else ""
        found.append(Outcome(attempt.exercise, attempt.what, attempt.reason, points == most, reason, message[:2000]))
    return found


def _attempt_cells(notebook: NotebookNode, exercise: Exercise, attempt: Attempt, at_tests: dict) -> list[NotebookNode]:
    cells = [nbformat.v4.new_code_cell(attempt.source)]
    for position in range(exercise.solution + 1, exercise.tests + 1):
        cell = notebook.cells[position]
        if cell.cell_type == "code" and (position not in at_tests or position == exercise.tests):
            cells.append(copy.deepcopy(cell))
    for cell in cells:
        cell.metadata["tags"] = ["raises-exception"]
        cell.id = nbformat.v4.new_code_cell().id
    _mark(cells[-1], attempt)
    return [*cells, nbformat.v4.new_code_cell(_PROBE)]


def _mark(tests_cell: NotebookNode, attempt: Attempt) -> None:
    tests_cell.metadata["tags"] = ["raises-exception"]
    tests_cell.metadata["labkernels"] = {"attempt": {"exercise": attempt.exercise, "what": attempt.what, "reason": attempt.reason}}


def _with_answer(solution: str, answer: str, path: Path) -> str:
    """The solution cell with another answer between its markers, or the whole cell where `answer` is one."""
    if answer.lstrip().startswith("%%") or BEGIN in answer:
        return answer
    regions = answer_regions(solution)
    if len(regions) != 1:
        raise BookError(f"{path.parent.name}/{path.name}: the solution has {len(regions)} answers in it; give the whole cell")
    (begin, end), lines = regions[0], solution.splitlines()
    indent = re.match(r"\s*", lines[begin]).group()
    return "\n".join([*lines[:begin], *(indent + line if line else line for line in answer.splitlines()), *lines[end + 1 :]])
