"""The book itself, lab by lab. Everything runs on the CPU, and each lab runs four times:

- the proof of its grading: solutions pass, blank starters fail, every file in tests/wrong/ fails for its reason;
- nbval over the worked notebook, cell by cell, as it is in the repository;
- papermill with another seed and other sizes, judged by nbgrader's validator;
- the student's notebook, in which nbgrader's validator must find every graded cell failing.
"""
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbgrader.preprocessors import CheckCellMetadata
from nbgrader.validator import Validator
from traitlets.config import Config

from labkernels.classroom.attempts import prove, wrong_answers
from labkernels.classroom.book import Lab, disagreements, read_lab, strays
from labkernels.classroom.execute import CELL_TIMEOUT_S, cpu_environment
from labkernels.classroom.exercises import find_exercises

# pytest, without the grammar of URLs that jsonschema would build: 2 s a process, for notebooks that have none to be checked
PYTEST = "import sys; sys.modules['rfc3987_syntax'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
ROOT = Path(__file__).resolve().parents[2]
WRONG = ROOT / "tests" / "wrong"
LABS = [Lab(ROOT, path.stem) for path in sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)


@pytest.fixture
def cpu(monkeypatch):
    """Kernels started by nbgrader or papermill in this process see the same package and no GPU."""
    for name, value in cpu_environment().items():
        monkeypatch.setenv(name, value)


@each_lab
def test_made_notebooks_agree_with_the_source(lab):
    assert disagreements(lab) == []


def test_no_notebook_and_no_wrong_answer_is_without_its_lab():
    assert LABS and strays(ROOT) == []
    assert {path.name for path in WRONG.iterdir() if path.is_dir()} <= {lab.name for lab in LABS}


@each_lab
def test_a_lab_has_three_exercises_and_each_has_its_wrong_answers(lab):
    notebook = read_lab(lab)
    exercises = find_exercises(lab.name, notebook)
    assert len(exercises) >= 3
    kept = [attempt.exercise for attempt in wrong_answers(WRONG / lab.name, notebook, exercises)]
    missing = {e.name: e.wrong_answers_needed - kept.count(e.name) for e in exercises if kept.count(e.name) < e.wrong_answers_needed}
    assert missing == {}, f"wrong answers missing in tests/wrong/{lab.name}: {missing}"


@each_lab
def test_solutions_pass_starters_fail_and_wrong_answers_fail_for_their_reasons(lab):
    notebook = read_lab(lab)
    del notebook.cells[find_exercises(lab.name, notebook)[-1].tests + 1 :]    # nbval runs what comes after the last tests
    outcomes = prove(lab.name, notebook, WRONG / lab.name, lab.source.parent)
    complaints = [outcome.complaint for outcome in outcomes if outcome.complaint]
    assert complaints == [], "\n".join(complaints)


@each_lab
def test_nbval_runs_the_worked_notebook(lab):
    command = [sys.executable, "-c", PYTEST, "-p", "nbval.plugin", "--nbval-lax", "--assert=plain", "-q", "-p", "no:cacheprovider", str(lab.worked)]
    alone = cpu_environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}    # hypothesis' plugin takes longer to import than many a lab to run
    result = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


@each_lab
def test_papermill_runs_it_with_other_parameters_and_nbgrader_gives_all_points(lab, cpu, tmp_path):
    notebook = nbformat.read(lab.worked, 4)
    parameters = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert parameters.metadata.tags == ["parameters"]
    parameters.metadata.tags = ["injected-parameters"]    # replaced, not followed by another cell: kernels are compiled once for each number of a cell
    prepared, run = tmp_path / "prepared.ipynb", tmp_path / f"{lab.name}.ipynb"
    nbformat.write(notebook, prepared)
    again = parameters.metadata.labkernels.again
    at_its_end = {"request_save_on_cell_execute": False}    # not written, a megabyte of pictures, before each cell
    papermill.execute_notebook(prepared, run, again, kernel_name="python3", cwd=lab.worked.parent, progress_bar=False, **at_its_end)
    validator = Validator()
    validator.preprocessors = [CheckCellMetadata]    # the cells have run: judge their outputs
    assert validator.validate(str(run)) == {}


@each_lab
def test_nbgrader_validate_finds_every_graded_cell_of_the_starter_failing(lab, cpu):
    validator = Validator(config=Config(Execute={"timeout": CELL_TIMEOUT_S}))
    failed = [cell["source"] for cell in validator.validate(str(lab.student)).get("failed", [])]
    notebook = read_lab(lab)
    assert failed == [notebook.cells[exercise.tests].source.strip() for exercise in find_exercises(lab.name, notebook)]
