"""The graded exercises of a lab: pairs of a solution cell and the tests cell that judges it."""
from __future__ import annotations

import re
from dataclasses import dataclass

from nbformat import NotebookNode

from labkernels.classroom.source import BookError

BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"


@dataclass(frozen=True)
class Exercise:
    """One exercise; `solution` and `tests` are the positions of its two cells in the notebook."""

    name: str
    solution: int
    tests: int
    points: int
    language: str        # "c++" or "python"
    prediction: bool     # judged by check_prediction

    @property
    def wrong_answers_needed(self) -> int:
        """How many wrong answers must be kept for it in tests/wrong/."""
        return 1 if self.prediction else 2


def language(source: str) -> str:
    """The language of a code cell: "c++" under `%%cuda`, "python" otherwise."""
    return "c++" if re.match(r"\s*%%cuda\b", source) else "python"


def find_exercises(lab: str, notebook: NotebookNode) -> list[Exercise]:
    """The exercises in the order of their tests cells.

    Raises BookError where a name is used twice, a solution has no tests below it or tests no solution above, or a solution cell
    has no answer between markers.
    """
    solutions: dict[str, int] = {}
    exercises: dict[str, Exercise] = {}
    for position, cell in enumerate(notebook.cells):
        nbgrader = cell.metadata.get("nbgrader")
        if nbgrader is None:
            if BEGIN in cell.source or END in cell.source:
                raise BookError(f'{lab}: "{_first_line(cell)}" has an answer in it but no solution="..." in its header')
        elif nbgrader["solution"]:
            name = nbgrader["grade_id"]
            if name in solutions:
                raise BookError(f"{lab}: two solution cells are called {name}")
            _check_markers(lab, name, cell.source)
            solutions[name] = position
        else:
            name = nbgrader["grade_id"].removeprefix("test-")
            if name not in solutions or name in exercises:
                raise BookError(f"{lab}: tests of {name} " + ("stand twice" if name in exercises else "have no solution cell above"))
            source = notebook.cells[solutions[name]].source
            exercises[name] = Exercise(
                name, solutions[name], position, nbgrader["points"], language(source), "check_prediction" in cell.source
            )
    untested = [name for name in solutions if name not in exercises]
    if untested:
        raise BookError(f"{lab}: {untested[0]} has no tests cell")
    return list(exercises.values())


def answer_regions(source: str) -> list[tuple[int, int]]:
    """For each answer in a cell the line numbers, from 0, of its BEGIN and END markers."""
    marks = [(number, END in line) for number, line in enumerate(source.splitlines()) if BEGIN in line or END in line]
    if [is_end for _, is_end in marks] != [False, True] * (len(marks) // 2):
        raise BookError("BEGIN SOLUTION and END SOLUTION do not pair up")
    return [(begin, end) for (begin, _), (end, _) in zip(marks[::2], marks[1::2])]


def _check_markers(lab: str, name: str, source: str) -> None:
    try:
        regions = answer_regions(source)
    except BookError as error:
        raise BookError(f"{lab}, exercise {name}: {error}") from None
    if not regions:
        raise BookError(f"{lab}, exercise {name}: no answer between BEGIN SOLUTION and END SOLUTION")


def _first_line(cell: NotebookNode) -> str:
    return cell.source.splitlines()[0]
