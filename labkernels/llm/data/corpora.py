"""Text to train on, as documents in an order that does not change from run to run.

    corpus("stdlib")         the Python standard library of this machine: real text, no download; some 30 MB with its tests
    corpus("python")         that and every package installed beside it: some hundreds of MB
    corpus("folder/")        any folder of text, JSON lines or Parquet; or one file, as a book. Few and long texts are cut at blank lines
    corpus("shakespeare"), corpus("tinystories"), corpus("fineweb-edu", files=2)    downloaded when first read: 1 MB, 2.2 GB, 2.2 GB a file

`max_bytes` ends it with the document that reaches so much. Files of a folder come in the order of a hash of their names, so that the first
few megabytes are a fair sample; exact copies come once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from labkernels.errors import ArgumentError
from labkernels.llm.data import documents, public_corpora
from labkernels.llm.data.downloads import PublicFile, fetch
from labkernels.llm.survival.files import sha256

NAMES = ("stdlib", "python", "shakespeare", "tinystories", "fineweb-edu")
_ENOUGH = 256  # documents: of so many, one in twenty, 13 are for validation, and none with a chance of 2 in a million
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "dist-packages"}


@dataclass(frozen=True)
class Document:
    text: str
    split: str | None = None  # "train" or "validation" where the corpus says so itself


@dataclass(frozen=True)
class CorpusFile:
    name: str  # relative, the same on every machine
    bytes: int
    path: Path | None = None  # None: not downloaded yet
    public: PublicFile | None = None
    split: str | None = None

    def locate(self, progress: bool = True) -> Path:
        return self.path or fetch(self.public, progress=progress)


@dataclass(frozen=True)
class Corpus:
    """`documents()` reads it, each time from the beginning. What it is, is known without reading a download (`fingerprint`)."""

    name: str
    files: tuple[CorpusFile, ...]
    max_bytes: int | None = None
    largest_document: int = documents.LARGEST  # characters
    facts: dict = field(default_factory=dict)  # for the manifest

    def documents(self) -> Iterator[Document]:
        left = self.max_bytes
        seen: set[bytes] | None = None if any(file.public for file in self.files) else set()
        for file in self.files:
            for text in documents.read_documents(file.locate(), self.largest_document):
                encoded = text.encode()
                if seen is not None:
                    digest = hashlib.blake2b(encoded, digest_size=12).digest()
                    if digest in seen:
                        continue
                    seen.add(digest)
                if left is not None:
                    if left <= 0:
                        return
                    left -= len(encoded)
                yield Document(text, file.split)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides which documents there are: the files' names and contents, and the limits."""
        contents = [[file.name, file.public.sha256 if file.public else sha256(file.path), file.split] for file in self.files]
        everything = [contents, self.max_bytes, self.largest_document]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:32]

    def describe(self) -> dict:
        """For a manifest: what this corpus was, so that it can be found again."""
        return {
            "name": self.name,
            "files": len(self.files),
            "bytes_of_files": sum(file.bytes for file in self.files),
            "max_bytes": self.max_bytes,
            "fingerprint": self.fingerprint,
            **self.facts,
        }


def corpus(name: str | Path = "stdlib", *, max_bytes: int | None = None, files: int = 1) -> Corpus:
    """A corpus by name, or the text in a folder or file. Nothing is read or downloaded yet, but a folder's list of files.

    `max_bytes` ends it with the document that reaches so many bytes of text; `files` (1 to 14) is for fineweb-edu. Raises ArgumentError.
    """
    if max_bytes is not None and max_bytes <= 0:
        raise ArgumentError(f"corpus: max_bytes must be positive, got {max_bytes}")
    if name == "stdlib":
        return _python_corpus("stdlib", {"stdlib": Path(sysconfig.get_path("stdlib"))}, max_bytes)
    if name == "python":
        folders = {"stdlib": Path(sysconfig.get_path("stdlib"))} | {kind: Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
        return _python_corpus("python", folders, max_bytes)
    if name == "shakespeare":
        return Corpus(name, (_public(public_corpora.SHAKESPEARE),), max_bytes, largest_document=8192)
    if name == "tinystories":
        return Corpus(name, tuple(_public(file, split) for split, file in public_corpora.TINYSTORIES.items()), max_bytes)
    if name == "fineweb-edu":
        if not 1 <= files <= len(public_corpora.FINEWEB_EDU):
            raise ArgumentError(f"corpus: fineweb-edu has 1 to {len(public_corpora.FINEWEB_EDU)} files, got files={files}")
        return Corpus(name, tuple(_public(file) for file in public_corpora.FINEWEB_EDU[:files]), max_bytes)
    path = Path(name).expanduser()
    if path.is_file():
        one = (CorpusFile(path.name, path.stat().st_size, path),)
        return Corpus(path.name, one, max_bytes, _largest_of(one, max_bytes))
    if path.is_dir():
        found = _first(_walk(path), max_bytes, path)
        return Corpus(path.resolve().name, found, max_bytes, _largest_of(found, max_bytes))
    raise ArgumentError(f"corpus: {str(name)!r} is neither a folder, nor a file, nor one of {', '.join(NAMES)}")


def _largest_of(files: tuple[CorpusFile, ...], max_bytes: int | None) -> int:
    """Characters of a document at most: a book, or a few, must come in so many that some are for validation."""
    if len(files) >= _ENOUGH:
        return documents.LARGEST
    total = sum(file.bytes for file in files)
    return max(1024, min(documents.LARGEST, (total if max_bytes is None else min(total, max_bytes)) // _ENOUGH))


def _public(file: PublicFile, split: str | None = None) -> CorpusFile:
    return CorpusFile(file.name, file.bytes, None, file, split)


def _python_corpus(name: str, folders: dict[str, Path], max_bytes: int | None) -> Corpus:
    found: dict[Path, CorpusFile] = {}
    for prefix, folder in folders.items():
        for file in _walk(folder, suffixes=(".py", ".pyi", ".rst")):
            found.setdefault(file.path, CorpusFile(f"{prefix}/{file.name}", file.bytes, file.path))
    facts = {"python": platform.python_version()}
    return Corpus(name, _first(found.values(), max_bytes, folders["stdlib"]), max_bytes, facts=facts)


def _walk(folder: Path, suffixes: tuple[str, ...] | None = None) -> Iterator[CorpusFile]:
    """Every file that could be text; hidden ones, caches and other packages' folders left out."""
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if name not in _SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or (suffixes and path.suffix not in suffixes) or not path.is_file():
                continue
            if size := path.stat().st_size:
                yield CorpusFile(path.relative_to(folder).as_posix(), size, path)


def _first(files, max_bytes: int | None, folder: Path) -> tuple[CorpusFile, ...]:
    """In the order of their names' hashes, as many as `max_bytes` could need: some are copies or no text, hence twice that."""
    ordered = sorted(files, key=lambda file: hashlib.sha256(file.name.encode("utf-8", "surrogatepass")).digest())
    if not ordered:
        raise ArgumentError(f"corpus: there is no file with text in {folder}")
    if max_bytes is None:
        return tuple(ordered)
    chosen, total = [], 0
    for file in ordered:
        if total > 2 * max_bytes:
            break
        chosen.append(file)
        total += file.bytes
    return tuple(chosen)
