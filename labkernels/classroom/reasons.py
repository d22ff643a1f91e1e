"""The reason, in a few words, for which an answer was refused; the first line of a file in tests/wrong/ names it the same way."""
from __future__ import annotations

import sys


def reason_of(error: BaseException) -> str:
    """`mismatch`, `not_written`, ... for a failed check; `sanitizer race`, ... for a finding; else `exception` and the class's name."""
    report = getattr(error, "report", None)
    reason = getattr(error, "reason", "sanitizer" if report is not None else "exception")
    if reason == "sanitizer" and getattr(report, "findings", None):
        return f"sanitizer {report.findings[0].kind}"
    if reason == "exception":
        cause = error.__cause__ if hasattr(error, "reason") and error.__cause__ else error
        return f"exception {type(cause).__name__}"
    return reason


def last_reason() -> str:
    """The reason of the last exception that this notebook's kernel has shown."""
    error = getattr(sys, "last_value", None)
    return reason_of(error) if error is not None else ""
