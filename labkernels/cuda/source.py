"""CUDA C++ source text, and where it came from.

A `Source` carries what a compiler needs to know beside the text: the name and first line that messages shall show (a notebook
cell's, a file's), preprocessor definitions, and folders searched for `#include`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labkernels.errors import ArgumentError

INCLUDE_DIR = Path(__file__).parent / "include"

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """CUDA C++ source text.

    `filename` and `first_line` are what messages show; they need not exist on disk (a cell's filename is `In[7]`).
    `include_dirs` are searched in this order, before the folders of the CUDA toolkit.
    """

    text: str
    filename: str = "kernel.cu"
    first_line: int = 1
    defines: tuple[tuple[str, str], ...] = ()
    include_dirs: tuple[str, ...] = (str(INCLUDE_DIR),)

    @classmethod
    def from_text(cls, text: str, *, defines: Mapping | None = None, filename: str | None = None, first_line: int = 1) -> Source:
        """A source given as text. `#include "..."` also searches the current folder, as for a file that lay there."""
        include_dirs = (str(Path.cwd()), str(INCLUDE_DIR))
        return cls(text, filename or "kernel.cu", first_line, format_defines(defines), include_dirs)

    @classmethod
    def from_file(cls, path: str | Path, *, defines: Mapping | None = None, filename: str | None = None, first_line: int = 1) -> Source:
        """A source read from `path`; `#include "..."` also searches the file's own folder. Raises ArgumentError if unreadable."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"cannot read the CUDA source file {path}: {error}") from error
        include_dirs = (str(path.parent.resolve()), str(INCLUDE_DIR))
        return cls(text, filename or str(path), first_line, format_defines(defines), include_dirs)

    def with_line_directive(self) -> str:
        """The text preceded by `#line`, so that compilers and debuggers name the reader's own file and lines."""
        name = self.filename.replace("\\", "\\\\").replace('"', '\\"')
        return f'#line {self.first_line} "{name}"\n{self.text}'

    def line(self, number: int) -> str | None:
        """The text of line `number` as messages count it, or None if there is no such line."""
        lines = self.text.splitlines()
        index = number - self.first_line
        return lines[index] if 0 <= index < len(lines) else None

    def kernels(self) -> dict[str, tuple[str | None, ...]]:
        """The `__global__` functions in the text, in order, and the names of their parameters (None for an unnamed one).

        A look at the text for the sake of messages, not a parse of it: what macros make is not seen.
        """
        text = without_comments(self.text)
        found = {}
        for match in re.finditer(r"\b__global__\b", text):
            name, parameters = _declarator(text, match.end())
            if name is not None:
                found[name] = tuple(_parameter_name(p) for p in split_list(parameters))
        return found

    def cluster(self, kernel: str) -> str | None:
        """What stands in the parentheses of a kernel's `__cluster_dims__(...)`, in the text or in a header that it includes; None without."""
        for text in (self.text, *(path.read_text(encoding="utf-8", errors="replace") for path in self.headers())):
            if "__cluster_dims__" not in text:
                continue
            text = without_comments(text)
            for match in re.finditer(r"\b__global__\b", text):
                if _declarator(text, match.end())[0] != kernel:
                    continue
                first = max(text.rfind(character, 0, match.start()) for character in ";{}") + 1
                last = re.compile(rf"\b{kernel}\s*\(").search(text, match.end()).start()
                if found := re.compile(r"\b__cluster_dims__\s*\(").search(text, first, last):
                    return text[found.end() : balanced(text, found.end() - 1, "(", ")")].strip()
        return None

    def headers(self) -> list[Path]:
        """The project's headers that the text includes, directly or not: those found in `include_dirs`.

        Conditional includes count as included. Headers of the toolkit are not listed: the compiler's version stands for them.
        """
        found: dict[Path, None] = {}
        pending = [(self.text, None)]
        while pending:
            text, folder = pending.pop()
            for quoted, angled in _INCLUDE.findall(text):
                folders = ([folder] if quoted and folder else []) + [Path(d) for d in self.include_dirs]
                path = next((f / (quoted or angled) for f in folders if (f / (quoted or angled)).is_file()), None)
                if path is not None and path.resolve() not in found:
                    found[path.resolve()] = None
                    pending.append((path.read_text(encoding="utf-8", errors="replace"), path.parent))
        return list(found)


def format_defines(defines: Mapping | None) -> tuple[tuple[str, str], ...]:
    """Preprocessor definitions as pairs of strings, sorted by name; True and None become 1, False becomes 0."""
    pairs = []
    for name, value in sorted((defines or {}).items()):
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise ArgumentError(f"defines: {name!r} is not a name that the preprocessor can define")
        if value is None or isinstance(value, bool):
            value = 0 if value is False else 1
        if "\n" in str(value):
            raise ArgumentError(f"defines: the value of {name} has a line break")
        pairs.append((str(name), str(value)))
    return tuple(pairs)


def without_comments(text: str) -> str:
    """The text with comments and string literals blanked; line numbers and lengths stay as they were."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match.group()), text, flags=re.DOTALL)


def split_list(text: str) -> list[str]:
    """Split C++ text at its outermost commas: `"int, pair<a, b>"` gives `["int", "pair<a, b>"]`; blank text gives `[]`."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in "<([{":
            depth += 1
        elif character in ">)]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [] if parts == [""] else parts


def balanced(text: str, start: int, opening: str = "<([{", closing: str = ">)]}") -> int:
    """The index of the bracket that closes the one at `text[start]`, or -1. Where `<` may mean less than, leave it out."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in opening:
            depth += 1
        elif text[i] in closing:
            depth -= 1
            if depth == 0:
                return i
    return -1


def _declarator(text: str, start: int) -> tuple[str | None, str]:
    """The function name that follows a `__global__`, and the text between its parentheses."""
    for match in re.compile(r"([A-Za-z_]\w*)\s*\(").finditer(text, start):
        if match.start() < start:
            continue  # inside the parentheses of an attribute
        if re.search(r"[;{}]", text[start : match.start()]):
            break
        end = balanced(text, match.end() - 1, "(", ")")
        if end < 0:
            break
        if not match.group(1).startswith("__"):
            return match.group(1), text[match.end() : end]
        start = end + 1  # __launch_bounds__(...) and its like
    return None, ""


def _parameter_name(declaration: str) -> str | None:
    words = re.findall(r"[A-Za-z_]\w*", declaration.split("=")[0].split("[")[0])
    types = {"int", "unsigned", "signed", "long", "short", "char", "float", "double", "bool", "const", "__restrict__"}
    return words[-1] if len(words) > 1 and words[-1] not in types else None
