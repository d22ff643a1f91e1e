"""What a compiler has to say, as data, and shown with the reader's own line and a caret.

`parse_nvrtc` and `parse_gcc` (g++, clang++ and the linker) give the same `Diagnostic`s; `compile_error` makes an exception of them.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from labkernels.cuda.signature import demangle
from labkernels.cuda.source import Source, without_comments
from labkernels.errors import CompileError

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Diagnostic:
    """One message of a compiler. `severity` is error, warning or note; `file`, `line`, `column` (from 1) are None if unknown."""

    file: str | None
    line: int | None
    column: int | None
    severity: str
    text: str


_SEVERITIES = {"catastrophic error": "error", "fatal error": "error", "fatal": "error", "sorry, unimplemented": "error", "remark": "note"}
_NVRTC = re.compile(r"^(.+?)\((\d+)\): (catastrophic error|error|warning|remark|note)(?: #[\w-]+)?: (.*)$")
_NVRTC_END = re.compile(r"^At end of source: (catastrophic error|error|warning)(?: #[\w-]+)?: (.*)$")
_PTXAS = re.compile(r"^\s*ptxas\b[^;:]*;?\s*(error|warning)\s*: (.*)$")
_GCC = re.compile(r"^(.+?):(\d+):(?:(\d+):)? (fatal error|error|warning|note|sorry, unimplemented): (.*)$")
_GCC_CONTEXT = re.compile(r"^(.+?):(\d+):(?:\d+:)?\s+(?:recursively )?required (?:from|by)\b(.*)$")
_GCC_DRIVER = re.compile(r"^[\w+./-]*(?:g\+\+|gcc|cc1plus|clang\+\+|clang)[\w.+-]*: (fatal error|error): (.*)$")
_LINKER = re.compile(r"(undefined reference to .*|multiple definition of .*|cannot find -l.*)$")
_ASIDE = re.compile(r"candidate|no known conversion|template argument deduction|in expansion of macro '(?:blockIdx|blockDim|threadIdx|gridDim)'")
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'')
_UNANNOTATED_HINT = "a function that runs on the GPU is marked: __device__ if kernels call it, __global__ if it is a kernel"


def parse_nvrtc(log: str) -> list[Diagnostic]:
    """The messages in a log of NVRTC, those of ptxas among them."""
    found: list[Diagnostic] = []
    for line in log.replace("\0", "").splitlines():
        if match := _NVRTC.match(line):
            file, number, severity, text = match.groups()
            text = _UNANNOTATED_HINT if "without execution space annotations" in text else text
            found.append(_diagnostic(file, int(number), None, severity, text))
        elif match := _NVRTC_END.match(line):
            found.append(_diagnostic(None, None, None, match.group(1), f"at the end of the source: {match.group(2)}"))
        elif match := _PTXAS.match(line):
            found.append(_diagnostic(None, None, None, match.group(1), _in_plain_numbers(match.group(2))))
        elif found and found[-1].line and found[-1].column is None and re.fullmatch(r"[ \t]+\^\s*", line):
            found[-1] = replace(found[-1], column=line.index("^") - 1)  # NVRTC indents the line that it shows by two
        elif found and line.startswith(" " * 10) and re.match(r"\s+(detected during|instantiation of|processing of)", line):
            found[-1] = replace(found[-1], text=f"{found[-1].text}\n  {line.strip()}")
    return found


def parse_gcc(log: str) -> list[Diagnostic]:
    """The messages in a log of g++ or clang++, and those of the linker, which know no line."""
    found, context = [], []
    for line in log.splitlines():
        if match := _GCC.match(line):
            file, number, column, severity, text = match.groups()
            found.append(_diagnostic(file, int(number), int(column) if column else None, severity, "\n  ".join([text, *context])))
            context = []
        elif match := _GCC_CONTEXT.match(line):
            context.append(f"required from {match.group(1)}, line {match.group(2)}")
        elif match := _GCC_DRIVER.match(line):
            found.append(_diagnostic(None, None, None, *match.groups()))
        elif match := _LINKER.search(line):
            found.append(Diagnostic(None, None, None, "error", match.group(1)))
    return found


def compile_error(kernel: str, source: Source, diagnostics: Sequence[Diagnostic], log: str) -> CompileError:
    """The exception for `kernel`, whose compiler gave `diagnostics` (or, if it gave none that we can read, `log`)."""
    errors = [d for d in diagnostics if d.severity == "error"]
    if not errors:
        return CompileError(f"{kernel} does not compile:\n\n{log.strip()}", diagnostics, log)
    if brace := _unmatched_brace(source):           # whatever else the compiler says of it, often about files that are not the reader's
        diagnostics = [brace, *(d for d in diagnostics if d.file == source.filename and d.severity == "error" and d.line and "end of input" not in d.text)]
        errors = diagnostics
    shown = _with_notes(diagnostics)
    title = f"{kernel} does not compile: {len(errors)} error{'s' if len(errors) > 1 else ''}"
    more = [f"... and {len(errors) - SHOWN_ERRORS} more"] if len(errors) > SHOWN_ERRORS else []
    return CompileError("\n\n".join([title, *(show(d, source) for d in shown), *more]), diagnostics, log)


def show(diagnostic: Diagnostic, source: Source) -> str:
    """The message with its place, the line it is about, and a caret."""
    note = "note: " if diagnostic.severity == "note" else "warning: " if diagnostic.severity == "warning" else ""
    if diagnostic.line is None:
        return note + diagnostic.text
    message = f"{diagnostic.file}, line {diagnostic.line}: {note}{diagnostic.text}"
    code = _line_of_code(diagnostic, source)
    if code is None or not code.strip():
        return message
    message += f"\n    {code}"
    if diagnostic.column:
        before = code[: diagnostic.column - 1].ljust(diagnostic.column - 1)
        message += "\n    " + re.sub(r"[^\t]", " ", before) + "^"
    return message


def _with_notes(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The first errors, each with the notes that follow it."""
    kept, count, noting = [], 0, False
    for diagnostic in diagnostics:
        if diagnostic.severity == "error":
            count += 1
        noting = diagnostic.severity == "error" or (noting and diagnostic.severity == "note")
        if diagnostic.severity == "note" and _ASIDE.search(diagnostic.text):
            continue  # every function of that name that it could not be, pages of them
        if noting and count <= SHOWN_ERRORS:
            kept.append(diagnostic)
    return kept


def _unmatched_brace(source: Source) -> Diagnostic | None:
    """The first `}` that closes nothing, or else the last `{` that nothing closes."""
    text = _LITERAL.sub(lambda match: " " * len(match.group()), without_comments(source.text))
    open_at: list[int] = []
    for match in re.finditer(r"[{}]", text):
        if match.group() == "{":
            open_at.append(match.start())
        elif open_at:
            open_at.pop()
        else:
            return _at(source, text, match.start(), "this } closes nothing: there is one } too many, or a { is missing above it")
    return _at(source, text, open_at[-1], "this { is never closed: a } is missing") if open_at else None


def _at(source: Source, text: str, offset: int, message: str) -> Diagnostic:
    column = offset - text.rfind("\n", 0, offset)
    return Diagnostic(source.filename, source.first_line + text.count("\n", 0, offset), column, "error", message)


def _line_of_code(diagnostic: Diagnostic, source: Source) -> str | None:
    if diagnostic.file == source.filename:
        return source.line(diagnostic.line)
    return linecache.getline(diagnostic.file, diagnostic.line).rstrip("\n") or None


def _in_plain_numbers(text: str) -> str:
    """ptxas's messages with decimal sizes and demangled names."""
    text = re.sub(r"\b0x[0-9a-f]+\b", lambda match: str(int(match.group(), 16)), text)
    return re.sub(r"'(_Z\w+)'", lambda match: f"'{demangle(match.group(1)).split('(')[0]}'", text)


def _diagnostic(file: str | None, line: int | None, column: int | None, severity: str, text: str) -> Diagnostic:
    return Diagnostic(file, line, column, _SEVERITIES.get(severity, severity), text.strip())
