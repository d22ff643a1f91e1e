"""Held-out text as windows of tokens: of prepared tokens (labkernels.llm.data.shards), or of any file of text.

Notable: a model with another tokenizer than the tokens' reads the same documents in its own. So bits per byte can be compared between models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from labkernels.errors import ArgumentError
from labkernels.llm.survival.files import cache_folder
from labkernels.llm.data.token_dataset import TokenDataset
from labkernels.llm.data.tokenizer import Tokenizer

CALIBRATION_SHARE = 4  # of a file of text, the first of so many parts is for calibration, the others are held out


@dataclass(frozen=True)
class Windows:
    """Tokens that a model has not been trained on; windows do not overlap."""

    tokens: torch.Tensor  # (windows, seq_len + 1) int64: inputs, and each one's target behind it
    token_bytes: torch.Tensor  # (vocab_size,) int64: bytes of text that a token stands for
    source: str

    def __post_init__(self):
        if self.tokens.dim() != 2 or self.tokens.shape[1] < 2 or not len(self.tokens):
            raise ArgumentError(f"Windows: tokens has shape {tuple(self.tokens.shape)}; it must be (windows, seq_len + 1), and not empty")


def of_dataset(data: TokenDataset, split: str, tokenizer: Tokenizer, seq_len: int, tokens: int) -> Windows:
    """About `tokens` tokens of a split, from all over it."""
    source, part = f"{split} split of {data.folder.name}", data[split]
    if tokenizer.fingerprint == data.tokenizer.fingerprint:
        starts = _starts(part.tokens, seq_len, tokens, source)
        found = np.stack([part.read(start, start + seq_len + 1) for start in starts]).astype(np.int64)
        return Windows(torch.from_numpy(found), torch.from_numpy(tokenizer.token_bytes()), source)
    ids: list[int] = []
    for number in np.random.Generator(np.random.PCG64(0)).permutation(part.documents):
        ids += tokenizer.encode_documents([data.tokenizer.decode(part.document(int(number))[:-1])])[0]
        if len(ids) > tokens:
            break
    return _windows(ids, tokenizer, seq_len, tokens, f"{source}, in the model's tokenizer")


def of_text(
    path: str | os.PathLike, tokenizer: Tokenizer, seq_len: int, tokens: int, calibration_tokens: int | None = None
) -> tuple[Windows, Windows | None]:
    """About `tokens` tokens of a file of text behind its first quarter, and of that quarter those to calibrate with; None if it is too short."""
    text = Path(path).read_text(encoding="utf-8")
    ids = tokenizer.encode_documents([text])[0]
    cut = len(ids) // CALIBRATION_SHARE
    name = Path(path).name
    before = _windows(ids[:cut], tokenizer, seq_len, calibration_tokens or tokens, f"beginning of {name}") if cut > seq_len else None
    return _windows(ids[cut:], tokenizer, seq_len, tokens, f"{name} behind its first quarter"), before


def of_whole_text(path: str | os.PathLike, tokenizer: Tokenizer, seq_len: int, tokens: int) -> Windows:
    """About `tokens` tokens from all over a file of text, in windows of at most seq_len; nothing is held out."""
    ids = tokenizer.encode_documents([Path(path).read_text(encoding="utf-8")])[0]
    return _windows(ids, tokenizer, max(1, min(seq_len, len(ids) - 1)), tokens, Path(path).name)


def dataset_of(tokenizer: Tokenizer) -> TokenDataset:
    """The prepared tokens in the cache that were made with this tokenizer: those that its model was trained on. Raises ArgumentError."""
    found = []
    for folder in sorted(cache_folder("tokens").glob("*")):
        try:
            data = TokenDataset.open(folder) if (folder / "manifest.json").is_file() else None
        except ArgumentError:  # broken, or of another version: not for us to tell
            continue
        if data is not None and data.manifest.get("tokenizer") == tokenizer.fingerprint:
            found.append(data)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArgumentError("evaluate: no prepared tokens in the cache were made with this model's tokenizer; give --data FOLDER, or --text FILE")
    raise ArgumentError(f"evaluate: {', '.join(str(data.folder) for data in found)} were made with this model's tokenizer; give one of them by --data")


def _windows(ids: list[int], tokenizer: Tokenizer, seq_len: int, tokens: int, source: str) -> Windows:
    stream = np.asarray(ids, np.int64)
    found = np.stack([stream[start : start + seq_len + 1] for start in _starts(len(ids), seq_len, tokens, source)])
    return Windows(torch.from_numpy(found), torch.from_numpy(tokenizer.token_bytes()), source)


def _starts(there: int, seq_len: int, tokens: int, source: str) -> list[int]:
    """Where windows begin: as many as `tokens` say, evenly over all that is there."""
    most = (there - 1) // seq_len
    if most < 1:
        raise ArgumentError(f"{source} has {there} tokens, not the {seq_len + 1} of one window; take shorter windows or more text")
    count = min(most, max(1, tokens // seq_len))
    return [number * ((there - 1) // count) for number in range(count)]
