"""Tokens on disk, memory-mapped: what labkernels.llm.data.shards wrote, described by a manifest.

    data = TokenDataset.open(folder)
    data["train"].tokens, data["validation"].document(0), data.tokenizer, data.vocab_size

Any shard is an array that numpy.load opens by itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from labkernels.errors import ArgumentError
from labkernels.llm.survival.files import sha256
from labkernels.llm.data.tokenizer import Tokenizer

SPLITS = ("train", "validation")
FORMAT = 1  # raise it when shards of before must not be read any more


@dataclass
class TokenSplit:
    """The documents of one split. The tokens are numbered as if the shards were one array."""

    folder: Path
    entry: dict
    dtype: np.dtype

    @property
    def tokens(self) -> int:
        return self.entry["tokens"]

    @property
    def documents(self) -> int:
        return self.entry["documents"]

    @property
    def bytes(self) -> int:
        """Of text, for bits per byte."""
        return self.entry["bytes"]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """(documents,) int64: tokens of each document, its end token included."""
        parts = [np.diff(self._load(shard["starts"]).astype(np.int64)) for shard in self.entry["shards"]]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """(documents + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1 of the split, without a copy where they are in one shard."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        if stop <= self._ends[first]:
            begin = self._ends[first] - self.entry["shards"][first]["tokens"]
            return self._maps[first][start - begin : stop - begin]
        return np.concatenate([self.read(start, int(self._ends[first])), self.read(int(self._ends[first]), stop)])

    def document(self, index: int) -> np.ndarray:
        return self.read(int(self.starts[index]), int(self.starts[index + 1]))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard["tokens"] for shard in self.entry["shards"]])

    @functools.cached_property
    def _maps(self) -> list[np.ndarray]:
        return [self._load(shard["file"]) for shard in self.entry["shards"]]

    def _load(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise broken(self.folder / name, f"is missing or broken ({error})") from error


@dataclass
class TokenDataset:
    """What `prepare` made: `data["train"]` and `data["validation"]` are TokenSplits."""

    folder: Path
    manifest: dict
    splits: dict[str, TokenSplit] = field(init=False)

    def __post_init__(self):
        dtype = np.dtype(self.manifest["dtype"])
        self.splits = {name: TokenSplit(self.folder, entry, dtype) for name, entry in self.manifest["splits"].items()}

    @classmethod
    def open(cls, folder: str | Path) -> TokenDataset:
        """Raises ArgumentError if there is no manifest, or a shard has not the size it says."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise ArgumentError(f"TokenDataset: {folder} holds no prepared tokens: {error}") from error
        if manifest.get("format") != FORMAT:
            raise ArgumentError(f"TokenDataset: {folder} has format {manifest.get('format')}, this version reads {FORMAT}; prepare it anew")
        for name, facts in manifest["files"].items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != facts["bytes"]:
                what = "is missing" if size is None else f"has {size} bytes, not {facts['bytes']}"
                raise broken(folder / name, what)
        return cls(folder, manifest)

    def verify(self) -> None:
        """Read everything and compare its checksums. Raises ArgumentError that names the file."""
        for name, facts in self.manifest["files"].items():
            if sha256(self.folder / name) != facts["sha256"]:
                raise broken(self.folder / name, "is not what was written")

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens: what a checkpoint compares before it continues."""
        names = [shard["file"] for split in SPLITS for shard in self[split].entry["shards"]]
        return hashlib.sha256(json.dumps([[name, self.manifest["files"][name]["sha256"]] for name in names]).encode()).hexdigest()[:16]

    def __getitem__(self, split: str) -> TokenSplit:
        if split not in self.splits:
            raise ArgumentError(f"TokenDataset: there is no split {split!r}, only {', '.join(self.splits)}")
        return self.splits[split]


def broken(path: Path, what: str) -> ArgumentError:
    return ArgumentError(f"TokenDataset: {path} {what}; delete the folder and prepare it anew")
