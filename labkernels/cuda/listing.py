"""A kernel's machine code with the source line beside it: what PTX and SASS listings are made of, and how they are shown."""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkernels.cuda.source import Source

_LEFT, _CODE = "text-align: left; vertical-align: top; white-space: pre; font-family: monospace", "color: #808080"


@dataclass(frozen=True)
class Passage:
    """Neighbouring instructions that come from one line of the source; `line` is None where the compiler names none."""

    line: int | None
    text: str
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """A kernel in PTX or SASS. Shows as a table, source on the left; the compiler's order is kept, so a line may come several times."""

    title: str
    passages: tuple[Passage, ...]

    @property
    def instructions(self) -> list[str]:
        """All lines of code, without the source."""
        return [text for passage in self.passages for text in passage.instructions]

    def of_line(self, line: int) -> list[str]:
        """The code that comes from one line of the source, as messages count lines."""
        return [text for passage in self.passages if passage.line == line for text in passage.instructions]

    def __repr__(self) -> str:
        width = min(60, max((len(passage.text) for passage in self.passages), default=0))
        rows = [self.title]
        for passage in self.passages:
            for first, instruction in zip(itertools.chain([True], itertools.repeat(False)), passage.instructions):
                number, text = (passage.line or "", passage.text[:width]) if first else ("", "")
                rows.append(f"{number:>5}  {text:<{width}}  {instruction}")
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align: right; vertical-align: top; {_CODE}'>{passage.line or ''}</td>"
            f"<td style='{_LEFT}'>{html.escape(passage.text)}</td>"
            f"<td style='{_LEFT}'>{html.escape(chr(10).join(passage.instructions))}</td></tr>"
            for passage in self.passages
        )
        table = f"<table aria-label='{html.escape(self.title)}'>{rows}</table>"
        return f"<div><b>{html.escape(self.title)}</b></div><div style='max-height: 36em; overflow: auto'>{table}</div>"


def make_listing(title: str, source: Source, code: Iterable[tuple[int | None, str]]) -> Listing:
    """A listing of pairs (line of the source or None, line of code), in order."""
    passages = []
    for line, group in itertools.groupby(code, key=lambda pair: pair[0]):
        text = (source.line(line) or "").strip() if line is not None else ""
        passages.append(Passage(line, text, tuple(text for _, text in group)))
    return Listing(title, tuple(passages))


def is_file_of(source: Source, path: str) -> bool:
    """Does a compiler mean this source by `path`? It puts the current folder before a name such as `In[7]`."""
    return Path(path).name == Path(source.filename).name
