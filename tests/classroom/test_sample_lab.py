"""Everything at once, on a lab with a prediction, Python, CUDA C++ and a picture: made, proven, and graded by nbgrader."""
import base64

import nbformat
import papermill
from nbgrader.validator import Validator

from labkernels.classroom.attempts import SOLUTION, prove
from labkernels.classroom.book import disagreements, read_lab
from labkernels.classroom.execute import cpu_environment

WRONG = {
    "predict-bytes__values.py": "# reason: mismatch\nbytes_read = bytes_written = count\n",
    "double-python__in_place.py": "# reason: exception AssertionError\nreturn values.mul_(2)\n",
    "double-python__adds.py": "# reason: exception AssertionError\nreturn values + 2\n",
    "double-kernel__behind_the_end.cu": "// reason: sanitizer out_of_bounds\ny[i] = FACTOR * x[i];\n",
    "double-kernel__one_missing.cu": "// reason: exception AssertionError\nif (i < count - 1) y[i] = FACTOR * x[i];\n",
}


def test_it_is_made_with_a_small_picture_and_the_compile_report(made_sample):
    assert disagreements(made_sample) == []
    outputs = {cell.id: cell.get("outputs", []) for cell in nbformat.read(made_sample.worked, 4).cells}
    pictures = [output.data["image/png"] for shown in outputs.values() for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and 1_000 < len(base64.b64decode(pictures[0])) < 50_000
    assert outputs["double-kernel"][0].data["text/plain"].startswith("twice: sm_80 ")
    assert "right." in outputs["test-predict-bytes"][0].text


def test_its_grading_is_proven(made_sample, tmp_path):
    folder = tmp_path / "wrong"
    folder.mkdir()
    for name, text in WRONG.items():
        (folder / name).write_text(text)
    outcomes = prove(made_sample.name, read_lab(made_sample), folder, made_sample.source.parent)
    assert [outcome.complaint for outcome in outcomes if outcome.complaint] == []
    assert [outcome.what for outcome in outcomes if outcome.passed] == [SOLUTION] * 3
    assert len(outcomes) == 3 + 3 + len(WRONG)
    reasons = {outcome.exercise: outcome.reason for outcome in outcomes if outcome.what == "the blank starter"}
    assert reasons == {
        "predict-bytes": "not_written",
        "double-python": "exception NotImplementedError",
        "double-kernel": "exception CompileError",
    }


def test_papermill_runs_it_with_its_other_parameters(made_sample, tmp_path, monkeypatch):
    for name, value in cpu_environment().items():
        monkeypatch.setenv(name, value)
    run = papermill.execute_notebook(made_sample.worked, tmp_path / "run.ipynb", {"seed": 7, "count": 77}, kernel_name="python3", progress_bar=False)
    prediction = next(cell for cell in run.cells if cell.id == "test-predict-bytes")
    assert "308 bytes" in prediction.outputs[0].text


def test_nbgrader_validate_finds_every_exercise_of_the_starter_failing(made_sample, monkeypatch):
    for name, value in cpu_environment().items():
        monkeypatch.setenv(name, value)
    failed = Validator().validate(str(made_sample.student))["failed"]
    assert len(failed) == 3
    assert "Your turn: replace these two lines with your code." in failed[2]["raw_error"]
