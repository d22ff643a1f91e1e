"""Why an answer was refused, as the first line of a wrong answer names it."""
from types import SimpleNamespace

import pytest

from labkernels.classroom.reasons import reason_of
from labkernels.errors import SanitizerError
from labkernels.lab.failure import CheckFailed

REPORT = SimpleNamespace(findings=[SimpleNamespace(kind="race"), SimpleNamespace(kind="out_of_bounds")])


def caused_by(cause, reason):
    try:
        try:
            raise cause
        except Exception as error:
            raise CheckFailed(reason) from error
    except CheckFailed as failed:
        return failed


@pytest.mark.parametrize(
    "error, reason",
    [
        (CheckFailed("mismatch"), "mismatch"),
        (CheckFailed("not_written"), "not_written"),
        (SanitizerError(REPORT), "sanitizer race"),
        (caused_by(SanitizerError(REPORT), "sanitizer"), "sanitizer race"),
        (caused_by(ZeroDivisionError(), "exception"), "exception ZeroDivisionError"),
        (AssertionError("no"), "exception AssertionError"),
    ],
)
def test_the_reason_is_the_checks_the_findings_or_the_exceptions_name(error, reason):
    assert reason_of(error) == reason
