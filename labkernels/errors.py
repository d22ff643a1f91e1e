"""Every exception that labkernels raises on purpose.

All derive from `LabKernelsError`. Their text is written for the reader of a notebook: it names the kernel, the argument or the
line that is wrong, and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkernels.cuda.diagnostics import Diagnostic


class LabKernelsError(Exception):
    """The base of all errors below."""


class CompileError(LabKernelsError):
    """A kernel's source does not compile.

    `diagnostics` are the compiler's messages, errors first to last, each with file, line, column, severity and text.
    `log` is the compiler's whole output. `str()` shows each error with the source line and a caret.
    """

    def __init__(self, message: str, diagnostics: Sequence[Diagnostic] = (), log: str = ""):
        super().__init__(message)
        self.diagnostics = tuple(diagnostics)
        self.log = log


class ArgumentError(LabKernelsError, ValueError):
    """An argument of a call cannot work: found before anything was launched, so nothing has run."""


class LaunchError(LabKernelsError):
    """A kernel was launched and did not end well: it crashed, trapped, or the device refused it."""


class SanitizerError(LabKernelsError):
    """A kernel ran under the sanitizer and `report` has findings."""

    def __init__(self, report):
        super().__init__(str(report))
        self.report = report


class CacheError(LabKernelsError):
    """The folder of compiled code cannot be used: not writable, or locked by another process for too long."""


class ToolchainError(LabKernelsError):
    """A compiler or library is missing on this machine; the text says which, and how to install it."""
