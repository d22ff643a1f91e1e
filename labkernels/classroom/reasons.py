"""The reason, in a few words, for which an answer was refused; the first line of a file in tests/wrong/ names it the same way."""
from __future__ import annotations

import sys


def reason_of(error: BaseException) -> str:
    """`mismatch`, `not_written`, ... for a failed check; `sanitizer race`, ... for a finding; else `exception` and the class's name."""
    reason = getattr(error, "reason", None)
    cause = error.__cause__ if reason is not None and error.__cause__ is not None else error
    report = getattr(cause, "report", None)
    if report is not None:
        return f"sanitizer {report.findings[0].kind}"
    return f"exception {type(cause).__name__}" if reason in (None, "exception") else reason


def last_reason() -> str:
    """The reason of the last exception that this notebook's kernel has shown."""
    error = getattr(sys, "last_value", None)
    return reason_of(error) if error is not None else ""
