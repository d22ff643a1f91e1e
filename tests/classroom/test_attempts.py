"""The proof of grading: it accepts what is as it must be, and complains of tests that let a wrong answer through."""
import pytest

from labkernels.classroom.attempts import SOLUTION, STARTER, prove
from labkernels.classroom.book import read_lab
from labkernels.classroom.source import BookError

WRONG = {
    "triple__adds.py": "# reason: exception AssertionError\nreturn x + 3\n",
    "triple__whole_cell.py": "# reason: exception TypeError\n### BEGIN SOLUTION\ndef triple(x): return x ** 1 * 3\n### END SOLUTION\n",
}


def proof(lab, wrong):
    folder = lab.root / "wrong"
    folder.mkdir()
    for name, text in wrong.items():
        (folder / name).write_text(text)
    outcomes = prove(lab.name, read_lab(lab), folder, lab.source.parent)
    return {outcome.what: outcome for outcome in outcomes}


def test_starter_and_wrong_answers_fail_for_their_reasons_and_the_solution_passes(small_lab):
    outcomes = proof(small_lab, WRONG)
    assert [outcome.complaint for outcome in outcomes.values()] == [None] * 4
    assert [outcome.passed for outcome in outcomes.values()] == [False, False, False, True]
    assert outcomes[SOLUTION].passed


def test_a_wrong_answer_that_passes_or_fails_otherwise_is_complained_of(small_lab):
    outcomes = proof(
        small_lab,
        {
            "triple__is_right.py": "# reason: mismatch\nreturn x + x + x\n",
            "triple__other_reason.py": "# reason: mismatch\nreturn x + 3\n",
        },
    )
    assert outcomes["triple__is_right.py"].complaint == "triple: triple__is_right.py passes the tests"
    assert "should fail with 'mismatch' and fails with 'exception AssertionError'" in outcomes["triple__other_reason.py"].complaint


def test_tests_that_let_the_blank_starter_through_are_complained_of(small_lab):
    source = small_lab.source.read_text()
    small_lab.source.write_text(source.replace("assert given ==", "len(given) ==").replace('assert triple("ab") ==', '"ab" =='))
    source = small_lab.source.read_text()
    small_lab.source.write_text(source.replace("given = [triple(i) for i in range(count)]", "given = []"))
    assert proof(small_lab, {})[STARTER].complaint == "triple: the blank starter passes the tests"


def test_a_solution_that_fails_is_complained_of(small_lab):
    small_lab.source.write_text(small_lab.source.read_text().replace("return 3 * x", "return 4 * x"))
    assert proof(small_lab, {})[SOLUTION].complaint.startswith("triple: the solution fails: AssertionError")


def test_stderr_in_a_tests_cell_is_complained_of_since_nbgrader_gives_no_points_for_it(small_lab):
    source = small_lab.source.read_text()
    small_lab.source.write_text(source.replace("assert given", "import warnings; warnings.warn('slow')\nassert given"))
    assert "it writes to stderr" in proof(small_lab, {})[SOLUTION].complaint


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("tripel__x.py", "# reason: mismatch\n1\n", "the lab has no exercise tripel"),
        ("triple__x.py", "return 1\n", "the first line must be a comment"),
    ],
)
def test_a_wrong_answer_that_belongs_nowhere_is_an_error(small_lab, name, text, message):
    with pytest.raises(BookError, match=message):
        proof(small_lab, {name: text})
