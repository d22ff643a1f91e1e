"""The documents in a file: one for a program or an article, many for a collection. Nothing larger than a document is in memory.

    .txt .md ...   the whole file; one that has "<|endoftext|>" between its texts is cut there, one that is large at blank lines
    .py            the whole file, in the encoding it declares
    .jsonl         one a line, its "text" (or "content")
    .parquet       one a row, its column "text"; needs pyarrow
    .gz            what is in it
"""

from __future__ import annotations

import gzip
import io
import json
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from labkernels.errors import ArgumentError, ToolchainError
from labkernels.llm.data.tokenizer import END_OF_TEXT, without_surrogates

LARGEST = 1 << 20  # characters: a text without separators is cut into documents of at most this
_BLOCK = 1 << 20


def read_documents(path: Path, largest: int = LARGEST) -> Iterator[str]:
    """The documents of one file in order, empty ones left out; none if the file is not text. Raises ArgumentError for broken JSON lines or gzip."""
    name = path.name.removesuffix(".gz").lower()
    if name.endswith(".parquet"):
        documents = _parquet(path)
    else:
        documents = _text_file(path, name, largest)
    try:
        for document in documents:
            if document and not document.isspace():
                yield without_surrogates(document)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ArgumentError(f"corpus: {path} is no whole gzip file: {error}") from error


def _text_file(path: Path, name: str, largest: int) -> Iterator[str]:
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        if b"\0" in file.peek(8192)[:8192]:  # no text
            return
        if name.endswith((".jsonl", ".ndjson")):
            yield from _json_lines(file, path)
            return
        encoding = "utf-8-sig"
        if name.endswith((".py", ".pyi")):
            try:
                encoding = tokenize.detect_encoding(file.readline)[0]
                file.seek(0)
            except SyntaxError:
                return
            largest = 1 << 40  # a program is one document
        try:
            text = io.TextIOWrapper(file, encoding=encoding, newline="")
            yield from cut(iter(lambda: text.read(_BLOCK), ""), largest, None if name.endswith((".py", ".pyi")) else END_OF_TEXT)
        except (UnicodeDecodeError, LookupError):
            return  # no text, or in an encoding that nobody declared


def cut(blocks: Iterable[str], largest: int, separator: str | None = END_OF_TEXT) -> Iterator[str]:
    """Texts between separators, without the line ends next to those. One longer than `largest` characters is cut after the last blank line
    before that, or line, or right there. How the text is cut into `blocks` makes no difference."""
    rest, after_separator = "", False
    half = len(separator) - 1 if separator else 0  # of a separator could be the end of a block
    for block in blocks:
        rest += block
        if separator is not None:
            *whole, rest = rest.split(separator)
            for text in whole:
                *pieces, last = _pieces(text.lstrip("\r\n") if after_separator else text, largest)
                yield from [*pieces, last.rstrip("\r\n")]
                after_separator = True
        if after_separator:
            rest = rest.lstrip("\r\n")
            after_separator = not rest
        if len(rest) > largest + half:
            sure = len(rest) - half
            *pieces, left = _pieces(rest[:sure], largest)
            rest = left + rest[sure:]
            yield from pieces
    yield from _pieces(rest, largest)


def _pieces(text: str, largest: int) -> list[str]:
    """Pieces of at most `largest`; the last may be empty, and grow."""
    pieces = []
    start = 0
    while len(text) - start > largest:
        end = text.rfind("\n\n", start + 1, start + largest) + 2
        if end <= start + 2:
            end = text.rfind("\n", start + 1, start + largest) + 1
        if end <= start + 1:
            end = start + largest
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _json_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ArgumentError(f"corpus: line {number} of {path} is no JSON: {error}") from error
        text = row.get("text", row.get("content")) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ArgumentError(f'corpus: line {number} of {path} has no "text"; each line must be like {{"text": "..."}}')
        yield text


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ToolchainError(f"{path.name} is a Parquet file: `pip install pyarrow` reads it") from None
    file = pyarrow.parquet.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise ArgumentError(f'corpus: {path} has no column "text"; it has {", ".join(file.schema_arrow.names)}')
    for batch in file.iter_batches(batch_size=256, columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)
